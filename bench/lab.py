"""One run of one candidate: started, warmed up, given files, its cost read, and ended."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.candidates import Candidate


_HERE = Path(__file__).parent
#: The service's state directory, below a run's base.
STATE = Path("own/state")
_TICKS = os.sysconf("SC_CLK_TCK")
_WARM = 5  #: files in a row that must arrive before anything is measured
_WARM_S, _WARM_TRIES = 3.0, 20
_POLL_S = 0.05
#: As in the unit.
_WATCHDOG_USEC = 180_000_000


@dataclass(frozen=True)
class Cost:
    """What a candidate's processes took, its children that ended included."""

    cpu_s: float
    wakeups: int
    peak_mb: float
    resident_mb: float


class _Manager:
    # The service manager's end of the notification socket, as under the unit: somebody reads it.
    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.environ = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(_WATCHDOG_USEC)}
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        while message := self._socket.recv(4096):
            if b"READY=1" in message:
                self.ready.set()


class Run:
    """A candidate that is up.

    Args:
        base: holds the directory that it watches and one of its own; both may be there already.
        candidate: which one.
    """

    def __init__(self, base: Path, candidate: Candidate) -> None:
        self.root, self.own = base / "root", base / "own"
        for folder in (self.root, self.own):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.candidate = candidate
        self._manager = _Manager(self.own / "notify")
        self._receiver = subprocess.Popen(
            [sys.executable, str(_HERE / "receiver.py")], stdout=subprocess.PIPE
        )
        assert self._receiver.stdout is not None
        self.port = int(self._receiver.stdout.readline())
        self._asking = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **more: str) -> None:
        """Start it, with so much more in its environment."""
        argv, environ = self.candidate.command(self.root, self.port, self.own)
        self._manager.ready.clear()
        if self.candidate.is_service:
            environ |= self._manager.environ
        with (self.own / "output").open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                env=os.environ | environ | more,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self, within_s: float) -> None:
        """Wait until it notified the service manager that it is ready.

        Raises:
            TimeoutError: it did not.
        """
        if not self._manager.ready.wait(within_s):
            raise TimeoutError(self.candidate.name)

    def warm_up(self) -> None:
        """Give it files until several in a row arrived.

        Raises:
            RuntimeError: none does, or it has ended.
        """
        arrived = 0
        for _ in range(_WARM_TRIES):
            if arrived >= _WARM:
                return
            if self._process is None or self._process.poll() is not None:
                break
            arrived = arrived + 1 if self.trickle(1, 0, ["rename"], within_s=_WARM_S) else 0
        tail = (self.own / "output").read_bytes()[-2000:].decode(errors="replace")
        raise RuntimeError(f"{self.candidate.name} delivers nothing: {tail}")

    def trickle(
        self, count: int, pause_ms: float, manners: list[str], *, within_s: float
    ) -> list[tuple[int, int]]:
        """Write files, wait for them, and return (stamp, arrived) of each, in ns, as stamped."""
        argv = [str(_HERE / "writer.py"), str(self.root), str(count), str(pause_ms), *manners]
        found: dict[int, int] = {}
        with subprocess.Popen([sys.executable, *argv]) as writer:
            end: float | None = None
            while len(found) < count and (end is None or time.monotonic() < end):
                for stamp, arrived in self.take():
                    found.setdefault(stamp, arrived)
                if end is None and writer.poll() is not None:
                    end = time.monotonic() + within_s
                time.sleep(_POLL_S)
        return sorted(found.items())

    def write(self, count: int) -> None:
        """Write files, and wait for no arrival."""
        argv = [str(_HERE / "writer.py"), str(self.root), str(count), "0", "rename", "plain"]
        subprocess.run([sys.executable, *argv], check=True)

    def take(self) -> list[tuple[int, int]]:
        """(stamp, arrived) of what arrived since the last time."""
        self._asking.request("GET", "/take")
        lines = self._asking.getresponse().read().split(b"\n")[:-1]
        pairs = (line.split() for line in lines)
        return [(int(stamp), int(arrived)) for arrived, stamp in pairs]

    def cost(self) -> Cost:
        """What it took so far."""
        assert self._process is not None
        ours = [p for p in _processes() if p.session == self._process.pid]
        return Cost(
            cpu_s=sum(p.cpu_s for p in ours),
            wakeups=sum(p.wakeups for p in ours),
            peak_mb=sum(p.peak_mb for p in ours),
            resident_mb=sum(p.resident_mb for p in ours),
        )

    def stop(self) -> None:
        """End it and all that it started."""
        if self._process is not None:
            for process in _processes():
                if process.session == self._process.pid:
                    os.kill(process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End everything."""
        self.stop()
        self._manager.close()
        self._receiver.kill()
        self._receiver.wait()
        self._asking.close()


@contextmanager
def running(
    candidate: Candidate, disk: Path | None, *, start: bool = True, base: Path | None = None
) -> Iterator[Run]:
    """A candidate, up and warm, on directories of its own.

    Args:
        candidate: which one.
        disk: where its directories are made; None for the system's temporary directory.
        start: False to be started by the caller, and not warmed up.
        base: directories of an earlier run, which stay.
    """
    made = base or Path(tempfile.mkdtemp(prefix="bench-", dir=disk))
    run = Run(made, candidate)
    try:
        if start:
            run.start()
            run.warm_up()
        yield run
    finally:
        run.close()
        if base is None:
            shutil.rmtree(made)


@dataclass(frozen=True)
class _Process:
    pid: int
    session: int
    cpu_s: float
    wakeups: int
    peak_mb: float
    resident_mb: float


def _processes() -> Iterator[_Process]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            yield _process(entry)
        except (FileNotFoundError, ProcessLookupError, KeyError):
            continue  # it ended meanwhile


def _process(entry: Path) -> _Process:
    # proc(5). The fields of `stat` are counted from behind the name, which may hold blanks.
    fields = (
        (entry / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    )
    said = dict(
        line.split(":", 1) for line in (entry / "status").read_text(encoding="utf-8").splitlines()
    )
    running_ns = wakeups = 0
    for task in (entry / "task").iterdir():
        running_ns += int((task / "schedstat").read_text(encoding="ascii").split()[0])
        of_task = (task / "status").read_text(encoding="utf-8")
        wakeups += int(of_task.partition("\nvoluntary_ctxt_switches:")[2].split("\n")[0])
    ended_s = (int(fields[13]) + int(fields[14])) / _TICKS
    return _Process(
        pid=int(entry.name),
        session=int(fields[3]),
        cpu_s=running_ns / 1e9 + ended_s,
        wakeups=wakeups,
        peak_mb=int(said["VmHWM"].split()[0]) / 1024,
        resident_mb=int(said["VmRSS"].split()[0]) / 1024,
    )
