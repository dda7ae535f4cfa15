"""Starts and ends the processes of the demo, in a directory of their own."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import uuid
from typing import TYPE_CHECKING

import asyncssh

from demo.processes import (
    HostError,
    are_listening,
    directory,
    end_tmux,
    kill_group,
    module,
    remove_all_but,
    start,
    tmux,
)
from demo.receiver import Receiver, reserve
from demo.turns import Written
from demo.writers import MANNERS

if TYPE_CHECKING:
    from collections.abc import Mapping


class Host:
    """Whoever makes one closes it.

    Attributes:
        base: holds everything, for its owner alone.
        logs: what all processes say and keep account of.
        receiver: where the sidecar pushes to.
        environ: by backend, what a client needs to know of it.
        events: the names of what happened to the sidecar, over all its starts.
    """

    def __init__(self) -> None:
        self.base = directory()
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
        self._started: list[subprocess.Popen[bytes]] = []
        (self.logs / "sidecar.out").touch()
        self._said, self._rest = (self.logs / "sidecar.out").open("rb"), b""

    def start_sidecar(self) -> None:
        """Start the real one, as it is shipped but for where it looks and keeps its state."""
        self._daemons["sidecar"] = self._start(
            "sidecar",
            # Without a file, since that of a sidecar that serves this very host is not the demo's.
            [*module("paliadin_sidecar.operator.cli"), "run", "--env-file", os.devnull],
            PALIADIN_CALLBACK_URL=self.receiver.url,
            PALIADIN_CALLBACK_SECRET=self._secret,
            PALIADIN_WATCH=":".join(f"{n}/paliadin={path}" for n, path in self.roots.items()),
            PALIADIN_STATE_DIR=str(self.base / "state"),
        )

    def start_aichat(self, deadline_s: float) -> None:
        """Start the stand-in, which names turns itself and gives them up after so long."""
        personas = self.base / "personas.toml"
        answers = json.dumps(str(self.roots["aichat"]), ensure_ascii=False)  # quoted as in TOML
        personas.write_text(f"[paliadin]\nanswers = {answers}\n", encoding="utf-8")
        port = str(self._ports["aichat"].getsockname()[1])
        options = ("--port", port, "--deadline", str(deadline_s), "--own-ids")
        self._daemons["aichat"] = self._start(
            "aichat",
            [*module("demo.aichat"), str(personas), "--tmux", str(self.base / "tmux"), *options],
            AICHAT_TOKEN=self.environ["aichat"]["AICHAT_TOKEN"],
        )

    def start_sshd(self) -> None:
        """Start the server whose only command is the shim."""
        keys = ("--host-key", str(self.base / "host"), "--authorized-keys", str(self.base / "key"))
        port = str(self._ports["sshd"].getsockname()[1])
        shim = shlex.join([*module("demo.shim"), "--tmux", str(self.base / "tmux")])
        self._daemons["sshd"] = self._start(
            "sshd",
            [*module("demo.sshd"), *keys, "--port", port, shim],
            PALIADIN_REMOTE_CWD=str(self.base),
            PALIADIN_RESPONSE_DIR=str(self.roots["legacy"]),
        )

    def signal(self, name: str, number: signal.Signals) -> subprocess.Popen[bytes]:
        """Signal a daemon, which is to end by it."""
        process = self._daemons.pop(name)
        process.send_signal(number)
        return process

    def write(self, row: str, manner: str) -> Written:
        """Start a process that writes one turn file, in either root by turns."""
        turn_id = str(uuid.uuid4())
        root = tuple(self.roots.values())[len(self._started) % len(self.roots)]
        log = self.logs / f"writer-{turn_id}.jsonl"
        command = [*module("demo.writers"), manner, str(root / f"{turn_id}.txt"), str(log)]
        return Written(
            id=turn_id,
            row=row,
            title=MANNERS[manner].title,
            root=root,
            receiver=self.receiver,
            log=log,
            writer=self._start("writers", command),
        )

    def are_listening(self, *names: str) -> bool:
        """Whether these daemons take connections."""
        return are_listening(*(self._ports[name].getsockname()[1] for name in names))

    def tmux(self, *arguments: str) -> str:
        """What tmux prints; nothing where it refuses."""
        return tmux(self.base / "tmux", *arguments)

    def check(self) -> None:
        """Take in what the sidecar said, and see whether everything runs that should.

        Raises:
            HostError: something does not.
        """
        *lines, self._rest = (self._rest + self._said.read()).split(b"\n")
        for line in map(json.loads, lines):
            self.events.append(line["event"])
            if line["event"] == "root.untrusted":
                raise HostError(f"the sidecar does not trust its roots: {line['why']}")
        for name, process in self._daemons.items():
            if process.poll() is not None:
                raise HostError(f"the {name} ended by itself ({process.returncode})")

    def close(self, *, keep_logs: bool) -> list[str]:
        """End every process and remove every file, but for the logs where they are wanted.

        Returns:
            What is left all the same.
        """
        for process in self._started:
            # A daemon that ended by itself may have left its children.
            if process.poll() is None or process in self._daemons.values():
                kill_group(process)
        left = end_tmux(self.base / "tmux")
        self._said.close()
        remove_all_but(self.logs, self.base)
        if not keep_logs:
            shutil.rmtree(self.base)
        return left

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

    def _start(self, name: str, command: list[str], **environ: str) -> subprocess.Popen[bytes]:
        process = start(self.logs, name, command, **environ)
        self._started.append(process)
        return process
