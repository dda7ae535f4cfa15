"""Starts and ends processes in a directory of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_PROJECT = Path(__file__).parents[1]
#: Seconds in which agents must end when their terminals have ended.
_END_S = 10.0
#: Bytes of the base's path: the kernel takes 107 for a socket, which has a name and a lock there.
_MAX_PATH = 80
_OURS = ("PALIADIN_", "AICHAT_", "SUPABASE_")


class HostError(Exception):
    """Something did not work, or not in time. The text says what."""


class Daemons:
    """Processes by name, which can be killed and started again.

    Args:
        logs: where what they say is kept.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: list[str], **environ: str) -> None:
        """Start one."""
        self._running[name] = start(self._logs, name, command, **environ)

    def end(self, name: str, number: signal.Signals) -> int:
        """Signal one, and return its exit code when it is gone."""
        process = self._running.pop(name)
        process.send_signal(number)
        return process.wait()

    def check(self) -> None:
        """See whether everything runs that should.

        Raises:
            HostError: something does not.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                raise HostError(f"the {name} ended by itself ({process.returncode})")

    def close(self) -> None:
        """End all of them, and what they started."""
        for process in self._running.values():
            kill_group(process)


def start(logs: Path, name: str, command: list[str], **environ: str) -> subprocess.Popen[bytes]:
    """Start a process with nothing of ours in its environment but what is given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
    with (logs / f"{name}.out").open("ab") as out, (logs / f"{name}.err").open("ab") as err:
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


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started here, and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_tmux(socket_path: Path) -> list[str]:
    """End a tmux server and what runs in its panes; returns what is left all the same."""
    panes = tmux(socket_path, "list-panes", "-a", "-F", "#{pid} #{pane_pid}")
    tmux(socket_path, "kill-server")
    end = time.monotonic() + _END_S
    while (left := set(filter(_runs, panes.split()))) and time.monotonic() < end:
        time.sleep(0.05)
    return [f"process {pid} of tmux does not end" for pid in left]


def tmux(socket_path: Path, *arguments: str) -> str:
    """What tmux prints; nothing where it refuses."""
    command = ["tmux", "-u", "-S", str(socket_path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def directory() -> Path:
    """A new directory for its owner alone, which sockets and roots can lie in."""
    # In TMPDIR, unless its path is too long for a socket or has a colon, which separates roots.
    base = Path(tempfile.mkdtemp(prefix="paliadin-demo-")).resolve()
    if len(os.fsencode(base)) > _MAX_PATH or ":" in str(base):
        base.rmdir()
        base = Path(tempfile.mkdtemp(prefix="paliadin-demo-", dir="/tmp")).resolve()
    return base


def remove_all_but(kept: Path, base: Path) -> None:
    """Remove everything in a directory but one."""
    for path in base.iterdir():
        if path != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def module(name: str) -> list[str]:
    """The command that runs a module with this Python."""
    return [sys.executable, "-m", name]


def are_listening(*ports: int) -> bool:
    """Whether all these ports of loopback take connections."""
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return False
    return True


def _runs(pid: str) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a zombie has none
    except OSError:
        return False
