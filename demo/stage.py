"""The directories and processes of the demo: a receiver, a sidecar, writers."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from demo.verdict import Tail, Turn

__all__ = ["Stage", "StageError"]

_PROJECT = Path(__file__).parents[1]
#: What the sidecar promises is 10 s.
_STOP_S = 15.0


class StageError(Exception):
    """Something of the demo's own does not work; the text says what."""


class Stage:
    """One host in small. Whoever makes one closes it.

    Attributes:
        base: holds everything, for its owner alone.
        logs: what all processes say and keep account of.
        events: the names of what happened to the sidecar, over all its starts.
    """

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="paliadin-demo-")).resolve()
        self.logs = self.base / "logs"
        self.receiver_log = self.logs / "receiver.jsonl"
        self.events: list[str] = []
        self._roots = {name: self.base / name for name in ("aichat", "legacy")}
        for folder in (self.logs, self.base / "drafts", *self._roots.values()):
            folder.mkdir(mode=0o700)
        # Bound and never listened on: the port stays the receiver's while the receiver is down.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        self._secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._writers: dict[str, subprocess.Popen[bytes]] = {}
        self._said = Tail(self.logs / "sidecar.out", dict[str, object])

    def start_receiver(self) -> None:
        """Start it, the first time or again, on the same port."""
        port = str(self._port.getsockname()[1])
        self._daemons["receiver"] = self._start(
            "receiver",
            [sys.executable, "-m", "demo.receiver", port, str(self.receiver_log)],
            PALIADIN_CALLBACK_SECRET=self._secret,
        )

    def start_sidecar(self) -> None:
        """Start the real one, as it is shipped but for where it looks and keeps its state."""
        command = str(Path(sys.executable).with_name("paliadin-sidecar"))
        self._daemons["sidecar"] = self._start(
            "sidecar",
            # No file: the settings of a sidecar that serves this very host are not the demo's.
            [command, "run", "--env-file", os.devnull],
            PALIADIN_CALLBACK_URL=f"http://127.0.0.1:{self._port.getsockname()[1]}/callback",
            PALIADIN_CALLBACK_SECRET=self._secret,
            PALIADIN_WATCH=":".join(f"{n}/paliadin={path}" for n, path in self._roots.items()),
            PALIADIN_STATE_DIR=str(self.base / "state"),
        )

    def stop(self, name: str, number: signal.Signals) -> int:
        """Signal the receiver or the sidecar, and return its exit code.

        Raises:
            StageError: it does not end.
        """
        process = self._daemons[name]
        process.send_signal(number)
        try:
            code = process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            raise StageError(f"the {name} did not end within {_STOP_S:g} s") from None
        del self._daemons[name]
        return code

    def write(self, row: str, manner: str) -> Turn:
        """Start a process that writes one turn file, in either root by turns."""
        turn_id = str(uuid.uuid4())
        backend = tuple(self._roots)[len(self._writers) % len(self._roots)]
        turn = Turn(
            id=turn_id,
            row=row,
            backend=backend,
            manner=manner,
            file=self._roots[backend] / f"{turn_id}.txt",
            log=self.logs / f"writer-{turn_id}.jsonl",
        )
        command = [sys.executable, "-m", "demo.writers", manner, str(turn.file), str(turn.log)]
        self._writers[turn_id] = self._start("writers", command)
        return turn

    def is_written(self, turn: Turn) -> bool:
        """Whether its writer has ended.

        Raises:
            StageError: it failed.
        """
        code = self._writers[turn.id].poll()
        if code:
            raise StageError(f"the writer {turn.manner!r} failed: {self._error('writers')}")
        return code is not None

    def is_listening(self) -> bool:
        """Whether the receiver takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex(self._port.getsockname()) == 0

    def check(self) -> None:
        """Take in what the sidecar said, and see whether everything runs that should.

        Raises:
            StageError: something does not.
        """
        for line in self._said.new():
            self.events.append(str(line["event"]))
            if line["event"] == "root.untrusted":
                raise StageError(f"the sidecar does not trust its roots: {line['why']}")
        for name, process in self._daemons.items():
            if process.poll() is not None:
                code = process.returncode
                raise StageError(f"the {name} ended by itself ({code}): {self._error(name)}")

    def close(self, *, keep_logs: bool) -> None:
        """End every process and remove every file, but for the logs where they are wanted."""
        for process in (*self._daemons.values(), *self._writers.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._port.close()
        if not keep_logs:
            shutil.rmtree(self.base)
            return
        for path in self.base.iterdir():
            if path != self.logs:
                shutil.rmtree(path)

    def _error(self, name: str) -> str:
        lines = (self.logs / f"{name}.err").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "without a word"

    def _start(self, name: str, command: list[str], **environ: str) -> subprocess.Popen[bytes]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PALIADIN_")}
        with (
            (self.logs / f"{name}.out").open("ab") as out,
            (self.logs / f"{name}.err").open("ab") as err,
        ):
            return subprocess.Popen(
                command,
                cwd=_PROJECT,
                env=kept | environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                # A terminal's Ctrl-C is for the demo alone, which then ends them all.
                process_group=0,
            )
