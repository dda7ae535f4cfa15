"""The real `paliadin-sidecar`, as a process of its own."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

from click.testing import CliRunner

from paliadin_sidecar.operator.cli import main
from support.waiting import PATIENCE_S, until

TRAILER = "\n[paliadin-meta]\nused_tools: search\nrows_seen: 3\nclassifier_tag: fristen\n"
COMMAND = str(Path(sys.executable).with_name("paliadin-sidecar"))


def new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


class Sidecar:
    """One host: two roots, a state directory, an environment, and the daemon on them."""

    def __init__(self, base: Path, url: str, **environ: str) -> None:
        self.base = base
        self.aichat, self.legacy, self.state = base / "aichat", base / "legacy", base / "state"
        self.secret = new_secret()
        self.lines: list[dict[str, Any]] = []
        self.raw: list[bytes] = []  # lines of stdout and stderr of every start
        self.prefix: list[str] = []  #: a command that becomes the daemon
        self.environ = {
            "PATH": os.environ["PATH"],
            "PALIADIN_CALLBACK_URL": url,
            "PALIADIN_CALLBACK_SECRET": self.secret,
            "PALIADIN_WATCH": f"aichat/paliadin={self.aichat}:legacy/paliadin={self.legacy}",
            "PALIADIN_STATE_DIR": str(self.state),
            "PALIADIN_HOST_LABEL": "mriver",
            "PALIADIN_RESCAN_S": "0.2",
            "PALIADIN_QUIET_S": "0.5",
            **{k: v for k, v in os.environ.items() if k.startswith(("COVERAGE", "COV_"))},
            **environ,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def make_roots(self) -> None:
        for root in (self.aichat, self.legacy):
            root.mkdir(mode=0o700)

    # --- the daemon -------------------------------------------------------------------------

    def start(self, *args: str, wait: bool = True) -> None:
        """Start it, and wait until it has scanned once."""
        started = len(self.events("service.started"))
        self.process = subprocess.Popen(
            [*self.prefix, COMMAND, "run", *args],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()
        if wait:
            until(
                "service.started",
                lambda: len(self.events("service.started")) > started or self._is_dead(),
            )
            assert not self._is_dead(), self.output.decode()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        assert self.process is not None
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.wait()

    def _is_dead(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for line in stream:
                self.raw.append(line)
                try:
                    self.lines.append(json.loads(line))
                except ValueError:
                    self.lines.append(
                        {"event": "unreadable", "line": line.decode(errors="replace")}
                    )

    # --- what it says -----------------------------------------------------------------------

    @property
    def output(self) -> bytes:
        return b"".join(self.raw)

    def events(self, name: str, **fields: object) -> list[dict[str, Any]]:
        return [
            line
            for line in self.lines
            if line.get("event") == name and all(line.get(k) == v for k, v in fields.items())
        ]

    def wait_event(self, name: str, count: int = 1, **fields: object) -> dict[str, Any]:
        """The `count`th event of this name and these fields, once it was printed."""
        until(f"{count} {name} {fields}", lambda: len(self.events(name, **fields)) >= count)
        return self.events(name, **fields)[count - 1]

    def command(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run another of its commands to its end."""
        return subprocess.run(
            [COMMAND, *args],
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def typed(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """The same in this very process, in a tenth of the time. Not for `run`."""
        handler = signal.getsignal(signal.SIGPIPE)
        environment = patch.dict(os.environ, self.environ | environ, clear=True)
        arguments = patch.object(sys, "argv", ["paliadin-sidecar", *args])
        try:
            with environment, arguments:
                done = CliRunner().invoke(main, args, catch_exceptions=False)
        finally:
            signal.signal(signal.SIGPIPE, handler)
        return subprocess.CompletedProcess(args, done.exit_code, done.stdout, done.stderr)

    # --- what agents do ---------------------------------------------------------------------

    def answer(self, turn_id: str, text: str = "Antwort", root: Path | None = None) -> bytes:
        """A whole answer by temp + rename; returns the file's bytes."""
        data = (text + TRAILER).encode()
        root = root or self.aichat
        temp = root / f"{turn_id}.txt.tmp.1.abc"
        temp.write_bytes(data)
        temp.rename(root / f"{turn_id}.txt")
        return data
