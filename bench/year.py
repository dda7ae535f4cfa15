"""A year of turns through a real outbox, on a clock of its own: how large, how fast.

    .venv/bin/python bench/year.py [--days 365] [--turns 1000] [--dir /var/tmp]

Each turn is accepted, attempted and acknowledged on its day, its file goes a week later, and
upkeep comes every hour, as in the daemon. Then the real commands are timed on what is left.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from paliadin_sidecar.outbox import acceptance, event_rows, maintenance, queue, transitions
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.records import Arrival, Outcome, TurnKey

_DAY_S, _HOUR_S = 86_400.0, 3600.0
_ANSWER_BYTES = 4096
#: systemd-tmpfiles takes the files away after so many days.
_FILE_DAYS = 7
_COMMAND = str(Path(sys.executable).with_name("paliadin-sidecar"))


def main() -> None:
    """Simulate, then measure."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--days", type=int, default=365)
    arguments.add_argument("--turns", type=int, default=1000)
    arguments.add_argument("--dir", type=Path, default=None, help="on the disk to measure")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as base:
        state = Path(base) / "state"
        state.mkdir(mode=0o700)
        simulate(state / FILENAME, options.days, options.turns)
        measure(Path(base), state, options.days, options.turns)


class Year:
    """The outbox and its clock."""

    def __init__(self, path: Path, starts_at: float) -> None:
        self.now = starts_at
        self.path = path
        self.outbox = Outbox(path, host="bench", wall=lambda: self.now, create=True)
        self.steps: list[float] = []
        self.largest = self.largest_log = 0

    def accept(self, keys: list[TurnKey]) -> None:
        """Take one file each, in one transaction."""
        self.outbox.transaction([lambda key=key: self._accept(key) for key in keys])  # type: ignore[misc]  # mypy takes no default of a lambda

    def _accept(self, key: TurnKey) -> None:
        data = (f"{key.turn_id} ".encode() * 120)[:_ANSWER_BYTES]
        at = datetime.fromtimestamp(self.now, UTC)
        digest = hashlib.sha256(data).hexdigest()
        acceptance.record_hint(
            self.outbox, key, key.turn_id, "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11"
        )
        acceptance.accept(
            self.outbox, Arrival(key, digest[:30], at, len(data), data=data, sha256=digest)
        )

    def deliver(self) -> None:
        """Acknowledge all that is due."""

        def all_due() -> int:
            due, _ = queue.fetch_due(self.outbox, (), limit=250, max_retries=0)
            for one in due:
                tried = replace(one, attempts=1, first_attempt_at=self.now)
                transitions.record_delivered(self.outbox, tried, Outcome(status=204, ms=12.0))
            return len(due)

        while self.outbox.transaction([all_due])[0]:
            pass
        self.outbox.transaction(
            [partial(event_rows.set_printed, self.outbox, self.outbox.last_event)]
        )

    def gone(self, keys: list[TurnKey]) -> None:
        """Their files went."""
        self.outbox.transaction([partial(acceptance.mark_gone, self.outbox, key) for key in keys])

    def prune(self) -> None:
        """One hour's upkeep, each step timed."""
        more = True
        while more:
            began = time.perf_counter()
            (more,) = self.outbox.transaction([partial(maintenance.prune, self.outbox)])
            self.steps.append(time.perf_counter() - began)
        self.largest = max(self.largest, self.path.stat().st_size)
        log = self.path.with_name(f"{FILENAME}-wal")
        self.largest_log = max(self.largest_log, log.stat().st_size)


def simulate(path: Path, days: int, turns: int) -> None:
    """Let the days pass, the last of them now."""
    began = time.perf_counter()
    year = Year(path, time.time() - days * _DAY_S)
    for day in range(days):
        for hour in range(24):
            todays = range(hour * turns // 24, (hour + 1) * turns // 24)
            year.accept([_key(day, n) for n in todays])
            year.deliver()
            if day >= _FILE_DAYS:
                year.gone([_key(day - _FILE_DAYS, n) for n in todays])
            year.now += _HOUR_S
            year.prune()
        if (days - 1 - day) % 30 == 0:
            print(f"day {day + 1}: {_mb(path.stat().st_size)}", flush=True)
    year.outbox.close()
    steps = sorted(year.steps)
    print(f"simulated in {time.perf_counter() - began:.0f} s")
    print(f"largest database {_mb(year.largest)}, largest log {_mb(year.largest_log)}")
    print(
        f"{len(steps)} steps of upkeep: median {steps[len(steps) // 2] * 1000:.1f} ms, "
        f"99 % within {steps[len(steps) * 99 // 100] * 1000:.1f} ms, "
        f"longest {steps[-1] * 1000:.1f} ms"
    )


def measure(base: Path, state: Path, days: int, turns: int) -> None:
    """Time what an operator types, as processes."""
    root = base / "root"
    root.mkdir(mode=0o700)
    environ = os.environ | {
        "PALIADIN_STATE_DIR": str(state),
        "PALIADIN_WATCH": f"aichat/paliadin={root}",
        "PALIADIN_CALLBACK_URL": "http://127.0.0.1:9/",
        "PALIADIN_CALLBACK_SECRET": "whsec_" + base64.b64encode(os.urandom(32)).decode(),
    }
    print(f"daemon, from exec to service.started: {_best(lambda: _start(environ)):.0f} ms")
    known = _key(days - 1, turns // 2).turn_id
    for command in (
        ["--version"], ["status"], ["turns"], ["turns", "--state", "dead"],
        ["show", known], ["check"], ["export"], ["export", "--turns"],
        ["report", "--out", "-", "--since", "0"],
    ):  # fmt: skip
        ms = _best(lambda command=command: _run(command, environ))
        print(f"{' '.join(command[:3] if command[0] != 'show' else ['show'])}: {ms:.0f} ms")


def _best(call: object) -> float:
    # The median of five, in ms.
    assert callable(call)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def _run(command: list[str], environ: dict[str, str]) -> None:
    subprocess.run([_COMMAND, *command], env=environ, capture_output=True, check=False)


def _start(environ: dict[str, str]) -> None:
    with subprocess.Popen([_COMMAND, "run"], env=environ, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        while b"service.started" not in daemon.stdout.readline():
            assert daemon.poll() is None
        daemon.send_signal(signal.SIGKILL)


def _key(day: int, number: int) -> TurnKey:
    # A UUID's length; always the same one for the same turn.
    name = hashlib.sha256(f"{day} {number}".encode()).hexdigest()[:36]
    return TurnKey("aichat", "paliadin", name)


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
