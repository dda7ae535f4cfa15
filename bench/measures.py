"""What is measured. Each function returns figures and judges nothing."""

from __future__ import annotations

import os
import random
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.lab import running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.candidates import Candidate
    from bench.lab import Run

__all__ = [
    "MANNERS",
    "Burst",
    "Idle",
    "Latency",
    "burst",
    "burst_of",
    "commit_ms",
    "drain_s",
    "idle",
    "import_ms",
    "latency",
    "lie",
    "ready_s",
    "run_turn_us",
]

MANNERS = ("rename", "plain")
#: A poller that looks once a second still gets this long after the last file.
_LATE_S = 5.0
_COMMITS = 200


@dataclass
class Latency:
    """Of one candidate: from the write's end to the receiver, in ms, and what it took."""

    ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu_ms: list[float] = field(default_factory=list)  #: a turn, one figure for each round
    wakeups: list[float] = field(default_factory=list)
    missed: int = 0

    @property
    def all_ms(self) -> list[float]:
        """In both manners, sorted."""
        return sorted(ms for of_manner in self.ms.values() for ms in of_manner)


def latency(
    candidates: Sequence[Candidate], disk: Path | None, *, rounds: int, turns: int, pause_ms: float
) -> dict[str, Latency]:
    """A trickle of files, each candidate in turn, and so for each round."""
    found: dict[str, Latency] = {candidate.name: Latency() for candidate in candidates}
    for number in range(rounds):
        for candidate in candidates:
            _say(f"latency, round {number + 1} of {rounds}: {candidate.name}")
            try:
                with running(candidate, disk) as run:
                    _one_round(run, found[candidate.name], turns, pause_ms)
            except RuntimeError as exc:
                _say(str(exc))
                found[candidate.name].missed += turns
    return found


def _one_round(run: Run, into: Latency, turns: int, pause_ms: float) -> None:
    for manner in MANNERS:
        before = run.cost()
        pairs = run.trickle(turns // 2, pause_ms, [manner], within_s=_LATE_S)
        after = run.cost()
        into.ms[manner] += [(arrived - stamp) / 1e6 for stamp, arrived in pairs]
        into.cpu_ms.append((after.cpu_s - before.cpu_s) * 2000 / turns)
        into.wakeups.append((after.wakeups - before.wakeups) * 2 / turns)
        into.missed += turns // 2 - len(pairs)


@dataclass(frozen=True)
class Burst:
    """Of one candidate: many files at once."""

    asked: int
    arrived: int
    per_s: float
    cpu_ms: float  #: a turn
    peak_mb: float


def burst(candidate: Candidate, disk: Path | None, turns: int, *, within_s: float = 20) -> Burst:
    """As many files as the writer can write, in both manners."""
    turns = min(turns, candidate.burst)
    _say(f"burst of {turns}: {candidate.name}")
    with running(candidate, disk) as run:
        return burst_of(run, turns, within_s)


def burst_of(run: Run, turns: int, within_s: float) -> Burst:
    """The same, of a candidate that is up."""
    before = run.cost()
    pairs = run.trickle(turns, 0, list(MANNERS), within_s=within_s)
    after = run.cost()
    if not pairs:
        return Burst(turns, 0, 0, 0, after.peak_mb)
    took_s = (max(arrived for _, arrived in pairs) - pairs[0][0]) / 1e9
    return Burst(
        asked=turns,
        arrived=len(pairs),
        per_s=len(pairs) / took_s,
        cpu_ms=(after.cpu_s - before.cpu_s) * 1000 / len(pairs),
        peak_mb=after.peak_mb,
    )


@dataclass(frozen=True)
class Idle:
    """Of one candidate: nothing to do, after it had something to do."""

    cpu_percent: float  #: of one core
    wakeups_per_s: float
    resident_mb: float


def idle(candidates: Sequence[Candidate], disk: Path | None, seconds: float) -> dict[str, Idle]:
    """All of them at the same time: they share a machine that rests.

    Each is started anew and given nothing, so that a watch which looks often after something
    moved looks as it does at rest.
    """
    _say(f"idle for {seconds:.0f} s: all")
    found: dict[str, Idle] = {}
    with ExitStack() as stack:
        runs = [stack.enter_context(running(one, disk, start=False)) for one in candidates]
        for run in runs:
            run.start()
        time.sleep(5)  # until they have started
        before = [run.cost() for run in runs]
        time.sleep(seconds)
        for run, was in zip(runs, before, strict=True):
            now = run.cost()
            found[run.candidate.name] = Idle(
                cpu_percent=(now.cpu_s - was.cpu_s) * 100 / seconds,
                wakeups_per_s=(now.wakeups - was.wakeups) / seconds,
                resident_mb=now.resident_mb,
            )
    return found


def ready_s(run: Run) -> float:
    """Start it; seconds from its start until it tells the service manager that it is ready."""
    address = str(run.own / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(60)
        began = time.monotonic()
        run.start(NOTIFY_SOCKET=address)
        while b"READY=1" not in listener.recv(4096):
            pass
        took_s = time.monotonic() - began
    Path(address).unlink()
    return took_s


def commit_ms(disk: Path | None) -> float:
    """What one durable commit of 4 KB costs on this disk; the median, in ms."""
    took = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=disk) as base:
        database = sqlite3.connect(f"{base}/commit.db", isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE body (bytes BLOB)")
        for _ in range(_COMMITS):
            data = random.randbytes(4096)
            began = time.perf_counter()
            database.execute("INSERT INTO body VALUES (?)", (data,))
            took.append((time.perf_counter() - began) * 1000)
        database.close()
    return statistics.median(took)


def import_ms(module: str, times: int = 7) -> float:
    """What an import adds to a Python that starts; the median, in ms."""
    return _process_ms(f"import {module}", times) - _process_ms("pass", times)


def _process_ms(code: str, times: int) -> float:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def run_turn_us() -> float:
    """What `run_turn` adds to a backend that answers at once; the median, in µs."""
    script = Path(__file__).with_name("null_backend.py")
    answer = subprocess.run(
        [sys.executable, str(script)], check=True, capture_output=True, text=True
    )
    return float(answer.stdout)


def lie(run: Run, count: int, *, turns: bool) -> None:
    """Put so many files in its root, that are none of its business, or old answers."""
    folder = os.open(run.root, os.O_RDONLY)
    old_s = time.time() - 86_400
    for n in range(count):
        name = f"{n:036x}.txt" if turns else f"notes-{n}.md"
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=folder))
        if turns:
            os.utime(name, (old_s, old_s), dir_fd=folder)
    os.close(folder)


def drain_s(run: Run, turns: int) -> float:
    """Fill its outbox while nobody answers; seconds from its next start until all arrived."""
    run.start(PALIADIN_CALLBACK_URL="http://127.0.0.1:9/")  # "discard": nobody listens
    run.write(turns)
    state = run.own / "state/outbox.db"
    while _pending(state) < turns:
        time.sleep(0.2)
    run.stop()
    began = time.monotonic()
    run.start()
    arrived: dict[int, int] = {}
    while len(arrived) < turns:
        arrived.update(run.take())
        time.sleep(0.05)
    return max(arrived.values()) / 1e9 - began


def _pending(path: Path) -> int:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            (count,) = database.execute("SELECT count(*) FROM delivery").fetchone()
            return int(count)
    except sqlite3.Error:
        return 0  # it is being made


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
