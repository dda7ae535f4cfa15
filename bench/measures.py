"""What is measured. Each function returns figures and judges nothing."""

from __future__ import annotations

import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from bench.lab import running
from bench.results import Burst, Idle, Latency

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.candidates import Candidate
    from bench.lab import Run


MANNERS = ("rename", "plain")
#: A poller that looks once a second still gets this long after the last file.
_LATE_S = 5.0
_COMMITS = 200


def latency(
    candidates: Sequence[Candidate],
    disk: Path | None,
    *,
    rounds: int,
    turns: int,
    pause_ms: float,
    rounds_of_others: int = 1,
) -> dict[str, Latency]:
    """A trickle of files, each candidate in turn, and so for each round.

    Those that only stand for comparison, of kind `other`, take part in fewer rounds.
    """
    found: dict[str, Latency] = {candidate.name: Latency() for candidate in candidates}
    for number in range(rounds):
        for candidate in candidates:
            if candidate.kind == "other" and number >= rounds_of_others:
                continue
            say(f"latency, round {number + 1} of {rounds}: {candidate.name}")
            try:
                with running(candidate, disk) as run:
                    _one_round(run, found[candidate.name], turns, pause_ms)
            except RuntimeError as exc:
                say(str(exc))
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


def burst(candidate: Candidate, disk: Path | None, turns: int, *, within_s: float = 20) -> Burst:
    """As many files as the writer can write, in both manners."""
    turns = min(turns, candidate.burst)
    say(f"burst of {turns}: {candidate.name}")
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


def idle(candidates: Sequence[Candidate], disk: Path | None, seconds: float) -> dict[str, Idle]:
    """All of them at the same time: they share a machine that rests.

    Each is started anew and given nothing, so that a watch which looks often after something
    moved looks as it does at rest.
    """
    say(f"idle for {seconds:.0f} s: all")
    found: dict[str, Idle] = {}
    with ExitStack() as stack:
        runs = [stack.enter_context(running(one, disk, start=False)) for one in candidates]
        for run in runs:
            run.start()
        for run in runs:
            if run.candidate.is_service:  # it says so, and the others start as fast
                run.wait_ready(120)
        time.sleep(8)  # until what follows a start is over
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
    """Start it; seconds from its start until it notifies the service manager that it is ready."""
    began = time.monotonic()
    run.start()
    run.wait_ready(60)
    return time.monotonic() - began


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


def say(what: str) -> None:
    """Print what is measured now, for whoever waits."""
    print(what, file=sys.stderr, flush=True)
