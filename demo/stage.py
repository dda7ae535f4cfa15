"""The directories and processes of the demo: one host in small, and paliad's side of it."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import asyncssh

from demo.receiver import Receiver, reserve
from demo.verdict import Written
from demo.writers import MANNERS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LOOK_S", "Stage", "StageError"]

LOOK_S = 0.05
_PROJECT = Path(__file__).parents[1]
#: What the sidecar promises is 10 s.
_STOP_S = 15.0
_OURS = ("PALIADIN_", "AICHAT_", "SUPABASE_")


class StageError(Exception):
    """Something did not work, or not in time; the text says what."""


class Stage:
    """Whoever makes one closes it.

    Attributes:
        base: holds everything, for its owner alone.
        logs: what all processes say and keep account of.
        receiver: where the sidecar pushes to.
        environ: by backend, what a client needs to know of it.
        events: the names of what happened to the sidecar, over all its starts.
    """

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="paliadin-demo-")).resolve()
        self.logs = self.base / "logs"
        self.roots = {name: self.base / name for name in ("aichat", "legacy")}
        for folder in (self.logs, self.base / "drafts", *self.roots.values()):
            folder.mkdir(mode=0o700)
        self._secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self.receiver = Receiver(self._secret)
        self._ports = {name: reserve() for name in ("aichat", "sshd")}
        self.environ = {"aichat": self._aichat_environ(), "legacy": self._legacy_environ()}
        self.events: list[str] = []
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._writers: dict[str, subprocess.Popen[bytes]] = {}
        (self.logs / "sidecar.out").touch()
        self._said, self._rest = (self.logs / "sidecar.out").open("rb"), b""

    def start_sidecar(self) -> None:
        """Start the real one, as it is shipped but for where it looks and keeps its state."""
        command = str(Path(sys.executable).with_name("paliadin-sidecar"))
        self._daemons["sidecar"] = self._start(
            "sidecar",
            # No file: the settings of a sidecar that serves this very host are not the demo's.
            [command, "run", "--env-file", os.devnull],
            PALIADIN_CALLBACK_URL=self.receiver.url,
            PALIADIN_CALLBACK_SECRET=self._secret,
            PALIADIN_WATCH=":".join(f"{n}/paliadin={path}" for n, path in self.roots.items()),
            PALIADIN_STATE_DIR=str(self.base / "state"),
        )

    def start_aichat(self, deadline_s: float) -> None:
        """Start the stand-in, which names turns itself and gives them up after so long."""
        personas = self.base / "personas.toml"
        personas.write_text(f'[paliadin]\nanswers = "{self.roots["aichat"]}"\n')
        port = str(self._ports["aichat"].getsockname()[1])
        options = ("--port", port, "--deadline", str(deadline_s), "--own-ids")
        self._daemons["aichat"] = self._start(
            "aichat",
            [*_module("demo.aichat"), str(personas), "--tmux", str(self.base / "tmux"), *options],
            AICHAT_TOKEN=self.environ["aichat"]["AICHAT_TOKEN"],
        )

    def start_sshd(self) -> None:
        """Start the server whose only command is the shim."""
        keys = ("--host-key", str(self.base / "host"), "--authorized-keys", str(self.base / "key"))
        port = str(self._ports["sshd"].getsockname()[1])
        shim = shlex.join([*_module("demo.shim"), "--tmux", str(self.base / "tmux")])
        self._daemons["sshd"] = self._start(
            "sshd",
            [*_module("demo.sshd"), *keys, "--port", port, shim],
            PALIADIN_REMOTE_CWD=str(self.base),
            PALIADIN_RESPONSE_DIR=str(self.roots["legacy"]),
        )

    async def stop(self, name: str, number: signal.Signals) -> int:
        """Signal a daemon, and return its exit code.

        Raises:
            StageError: it does not end.
        """
        process = self._daemons.pop(name)
        process.send_signal(number)
        with anyio.move_on_after(_STOP_S):
            while process.poll() is None:
                await anyio.sleep(LOOK_S)
            return process.returncode
        self._daemons[name] = process
        raise StageError(f"the {name} did not end within {_STOP_S:g} s")

    def write(self, row: str, manner: str) -> Written:
        """Start a process that writes one turn file, in either root by turns."""
        turn_id = str(uuid.uuid4())
        backend = tuple(self.roots)[len(self._writers) % len(self.roots)]
        turn = Written(
            id=turn_id,
            row=row,
            backend=backend,
            title=MANNERS[manner].title,
            root=self.roots[backend],
            log=self.logs / f"writer-{turn_id}.jsonl",
        )
        file = turn.root / f"{turn_id}.txt"
        command = [*_module("demo.writers"), manner, str(file), str(turn.log)]
        self._writers[turn_id] = self._start("writers", command)
        return turn

    def is_written(self, turn: Written) -> bool:
        """Whether its writer has ended.

        Raises:
            StageError: it failed.
        """
        code = self._writers[turn.id].poll()
        if code:
            raise StageError(f"a writer ({turn.title}) failed: {self._error('writers')}")
        return code is not None

    def is_listening(self, name: str) -> bool:
        """Whether this daemon takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex(self._ports[name].getsockname()) == 0

    def tmux(self, *arguments: str) -> str:
        """What tmux prints; nothing where it refuses."""
        command = ["tmux", "-u", "-S", str(self.base / "tmux"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def check(self) -> None:
        """Take in what the sidecar said, and see whether everything runs that should.

        Raises:
            StageError: something does not.
        """
        *lines, self._rest = (self._rest + self._said.read()).split(b"\n")
        for line in map(json.loads, lines):
            self.events.append(line["event"])
            if line["event"] == "root.untrusted":
                raise StageError(f"the sidecar does not trust its roots: {line['why']}")
        for name, process in self._daemons.items():
            if process.poll() is not None:
                code = process.returncode
                raise StageError(f"the {name} ended by itself ({code}): {self._error(name)}")

    def close(self, *, keep_logs: bool) -> list[str]:
        """End every process and remove every file, but for the logs where they are wanted.

        Returns:
            What is left all the same.
        """
        for process in (*self._daemons.values(), *self._writers.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        panes = self.tmux("list-panes", "-a", "-F", "#{pid} #{pane_pid}")
        self.tmux("kill-server")
        end = time.monotonic() + _STOP_S
        while (left := set(filter(_runs, panes.split()))) and time.monotonic() < end:
            time.sleep(LOOK_S)
        self._said.close()
        for path in self.base.iterdir():
            if path != self.logs:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not keep_logs:
            shutil.rmtree(self.base)
        return [f"process {pid} of tmux does not end" for pid in left]

    def _aichat_environ(self) -> Mapping[str, str]:
        return {
            "PALIADIN_BACKEND": "aichat",
            "AICHAT_URL": "http://{}:{}".format(*self._ports["aichat"].getsockname()),
            "AICHAT_TOKEN": secrets.token_urlsafe(32),
            "SUPABASE_JWT_SECRET": secrets.token_urlsafe(32),
        }

    def _legacy_environ(self) -> Mapping[str, str]:
        port = self._ports["sshd"].getsockname()[1]
        ours, theirs = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        (self.base / "host").touch(mode=0o600)
        (self.base / "host").write_bytes(theirs.export_private_key())
        (self.base / "key").write_bytes(ours.export_public_key())
        return {
            "PALIADIN_BACKEND": "legacy",
            "PALIADIN_REMOTE_HOST": "127.0.0.1",
            "PALIADIN_REMOTE_PORT": str(port),
            "PALIADIN_SSH_PRIVATE_KEY": ours.export_private_key().decode(),
            "PALIADIN_KNOWN_HOSTS": f"[127.0.0.1]:{port} {theirs.export_public_key().decode()}",
        }

    def _error(self, name: str) -> str:
        lines = (self.logs / f"{name}.err").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "without a word"

    def _start(self, name: str, command: list[str], **environ: str) -> subprocess.Popen[bytes]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
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


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


def _runs(pid: str) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a zombie has none
    except OSError:
        return False
