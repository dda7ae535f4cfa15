"""The programs of `demo/`, started as the demo starts them, with a tmux server of their own."""

from __future__ import annotations

import base64
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import uuid4

import httpx2

from paliadin_contract.trailer import split

if TYPE_CHECKING:
    from collections.abc import Callable


_Found = TypeVar("_Found")
_ROOT = Path(__file__).parents[2]
BEARER = "bearer-" + uuid4().hex
PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"


def until(found: Callable[[], _Found], within_s: float = 30.0) -> _Found:
    """Poll for something true: no event reports it."""
    end = time.monotonic() + within_s
    while not (result := found()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return result


def _gone(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True


def prompt_of(text: str) -> str:
    """What the demo agent, and the model of the real one, say that they were asked."""
    return split(text)[0].partition("asked:\n\n> ")[2]


class Place:
    """A directory with a tmux server; everything in it ends with it."""

    def __init__(self) -> None:
        # A short path, for a socket's name may have 107 characters.
        self.path = Path(tempfile.mkdtemp(prefix="host-", dir="/tmp"))
        self.socket = self.path / "tmux"
        self.answers = self.path / "answers"
        self._end = ExitStack()
        self._end.callback(shutil.rmtree, self.path)
        self._end.callback(self._kill_agents)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def tmux(self, *arguments: str, check: bool = True) -> str:
        command = ["tmux", "-u", "-S", str(self.socket), *arguments]
        return subprocess.run(command, check=check, capture_output=True, text=True).stdout

    def windows(self, what: str = "#{session_name}:#{window_name}") -> list[str]:
        return sorted(self.tmux("list-windows", "-a", "-F", what, check=False).split())

    def screen(self, target: str) -> str:
        return self.tmux("capture-pane", "-p", "-t", target)

    def start(self, *command: str, **environment: str) -> tuple[str, subprocess.Popen[str]]:
        """Start a program that prints where it listens."""
        log = (self.path / "log").open("a")
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env={"PATH": PATH, "HOME": str(self.path), **environment},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        log.close()
        self.ends_with(process.wait)
        self.ends_with(process.kill)
        assert process.stdout
        with process.stdout:
            return process.stdout.readline().strip(), process

    def _kill_agents(self) -> None:
        agents = [int(pid) for pid in self.windows("#{pane_pid}")]
        self.tmux("kill-server", check=False)
        for pid in agents:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            until(partial(_gone, pid))

    def ends_with(self, end: Callable[[], object]) -> None:
        self._end.callback(end)


class Aichat:
    """The stand-in in a process of its own, asked over HTTP."""

    def __init__(self, place: Place, *flags: str, persona: str = "", python: str = "") -> None:
        config = place.path / "personas.toml"
        config.write_text(f'[paliadin]\nanswers = "{place.answers}"\n{persona}')
        arguments = (str(config), "--tmux", str(place.socket), *flags)
        self.url, self.process = place.start(
            *(python or sys.executable, "-m", "demo.aichat", *arguments), AICHAT_TOKEN=BEARER
        )
        self.http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {BEARER}"},
            timeout=60,
            trust_env=False,
        )
        place.ends_with(self.http.close)

    def post(self, path: str, **body: object) -> httpx2.Response:
        return self.http.post(path, json={"persona": "paliadin", "username": "alice", **body})

    def ask(self, message: str, **body: object) -> httpx2.Response:
        return self.post("/chat/turn", message=message, **body)

    def answer(self, message: str, **body: object) -> dict[str, Any]:
        response = self.ask(message, **body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def error(self, message: str, **body: object) -> dict[str, Any]:
        error: dict[str, Any] = self.ask(message, **body).json()["error"]
        return error


class Shim:
    """The shim behind a real SSH server, asked with the real `ssh`."""

    def __init__(self, place: Place, *flags: str, **environment: str) -> None:
        self.place = place
        for name in ("host_key", "user_key"):
            if not (place.path / name).exists():
                keygen = f"ssh-keygen -q -t ed25519 -N  -f {place.path / name}".split(" ")
                subprocess.run(keygen, check=True)
        command = [sys.executable, "-m", "demo.shim", "--tmux", str(place.socket), *flags]
        address, self.process = place.start(
            *(sys.executable, "-m", "demo.sshd", "--host-key", str(place.path / "host_key")),
            *("--authorized-keys", str(place.path / "user_key.pub"), shlex.join(command)),
            PALIADIN_RESPONSE_DIR=str(place.answers),
            **{"PALIADIN_REMOTE_CWD": str(place.path), **environment},
        )
        self.port = address.rpartition(":")[2]
        key = (place.path / "host_key.pub").read_text()
        (place.path / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}")

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        options = {
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": f"{self.place.path}/known_hosts",
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
        }
        return subprocess.Popen(
            [
                *("ssh", "-F", "/dev/null", "-i", str(self.place.path / "user_key")),
                *("-p", self.port, *(f"-o{name}={value}" for name, value in options.items())),
                *("agent@127.0.0.1", "--", *words),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        with self.start(*words) as process:
            out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def ask(self, message: str, session: str = "s-alice", turn_id: str = "") -> str:
        encoded = base64.b64encode(message.encode()).decode()
        done = self.run("run-turn", session, turn_id or str(uuid4()), encoded)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()


#: What a person may type, and what arrives of it.
MESSAGES = {
    "'\"'\"';;\"\"''`;": "'\"'\"';;\"\"''`;",
    ";": ";",
    '"; rm -rf /; $(reboot) `reboot` #{pane_id} #(reboot) %1 \\': (
        '"; rm -rf /; $(reboot) `reboot` #{pane_id} #(reboot) %1 \\'
    ),
    "-l --help -- -t =x": "-l --help -- -t =x",
    "vor\x1b[201~\rnach": "vor[201~ nach",
    "\x1b[200~\x03\x04\x15\x1a\x7f\x9b201~x": "[200~201~x",
    "eins\nzwei\r\ndrei\tvier\u2028fünf": "eins zwei drei vier fünf",
    "[PALIADIN:0b6f1f8e] [PAL\x00IADIN:x [paliadin:y": (
        "[ PALIADIN:0b6f1f8e] [ PALIADIN:x [ paliadin:y"
    ),
    "Fristen für Müller & Söhne: „größer“ als 5 €?": (
        "Fristen für Müller & Söhne: „größer“ als 5 €?"
    ),
    "明天到期的期限有哪些\uff1f👩‍⚖️": "明天到期的期限有哪些\uff1f👩‍⚖️",
    "[paliadin-meta]": "[paliadin-meta]",
}
