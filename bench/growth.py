"""The service on a host that has served for long, beside one that is new.

It has delivered a million turns, or a hundred thousand of its answers are still in its root, or
both. Each such host is made once; the service is started on it again for each round.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from bench import measures
from bench.lab import STATE, running
from bench.results import Grown
from paliadin_sidecar.outbox import acceptance, event_rows, maintenance, queue, transitions
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.records import Arrival, Outcome, TurnKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.candidates import Candidate


_REAL = 10_000
_DAYS = 90
#: What a copy of the first turns' rows has of its own; all other columns are the same.
_OF_ITS_OWN = {
    ("turn", "id"): "id + :by",
    ("turn", "turn_id"): "printf('%08x', :n) || substr(turn_id, 9)",
    ("delivery", "id"): "id + :by",
    ("delivery", "turn"): "turn + :by",
    ("delivery", "webhook_id"): "webhook_id || '_' || :n",
    ("event", "id"): "NULL",
    ("event", "turn"): "turn + :by",
}
_WHICH = {"turn": "id <= :real", "delivery": "id <= :real", "event": "turn <= :real"}


class Hosts:
    """Directories of hosts of several ages, for one run of the measurements.

    Args:
        service: the candidate that serves on them.
        disk: where they are made; None for the system's temporary directory.
        turns: how many an old one has delivered.
        answers: how many of its answers are still in the root of a full one.
    """

    def __init__(
        self, service: Candidate, disk: Path | None, folder: Path, *, turns: int, answers: int
    ) -> None:
        self._service, self._disk = service, disk
        delivered, there = f"{turns:,} delivered turns", f"{answers:,} of our answers in the root"
        self._bases: dict[str, Path | None] = {
            "an empty start": None,
            delivered: self._make(folder / "old", turns, 0),
            there: self._make(folder / "full", 0, answers),
            f"{delivered} and {there}": self._make(folder / "both", turns, answers),
        }
        self.old = folder / "old"
        self.outbox_mb = sum(file.stat().st_size for file in (self.old / STATE).iterdir()) / 1e6

    def __iter__(self) -> Iterator[str]:
        """Their names, the new one first."""
        return iter(self._bases)

    def measure(self, name: str, *, turns: int, pause_ms: float, burst: int) -> Grown:
        """Start the service there, and give it a trickle and a burst, which are removed again."""
        base = self._bases[name]
        measures.say(f"growth: {name}")
        with running(self._service, self._disk, base=base) as run:
            before = set(run.root.iterdir())
            was = run.cost()
            pairs = run.trickle(turns, pause_ms, list(measures.MANNERS), within_s=10)
            now = run.cost()
            found = Grown(
                latency_ms=[(arrived - stamp) / 1e6 for stamp, arrived in pairs],
                trickle_cpu_ms=(now.cpu_s - was.cpu_s) * 1000 / turns,
                burst=measures.burst_of(run, burst, 60),
            )
            run.stop()
            for path in set(run.root.iterdir()) - before:
                path.unlink()
            return found

    def _make(self, base: Path, turns: int, answers: int) -> Path:
        measures.say(f"growth: a host with {turns:,} delivered turns and {answers:,} answers")
        base.mkdir()
        (base / STATE.parent).mkdir(mode=0o700)
        if turns:
            delivered(base / STATE, turns)
        if answers:
            with running(self._service, self._disk, base=base) as run:
                run.trickle(answers, 0, list(measures.MANNERS), within_s=600)
        return base


def delivered(state: Path, turns: int) -> None:
    """Make an outbox that delivered so many turns, whose files and bodies have gone."""
    state.mkdir(mode=0o700, exist_ok=True)
    path = state / FILENAME
    clock = [time.time() - _DAYS * 86_400 / 2]
    with Outbox(path, host="bench", wall=lambda: clock[0], create=True) as outbox:
        keys = [TurnKey("aichat", "paliadin", f"{n:036x}") for n in range(min(turns, _REAL))]
        outbox.transaction([partial(_deliver, outbox, key, clock[0]) for key in keys])
        clock[0] += 4 * 86_400  # bodies are let go after three days
        while outbox.transaction([partial(maintenance.prune, outbox)])[0]:
            pass
        outbox.transaction([lambda: event_rows.set_printed(outbox, outbox.last_event)])
    database = sqlite3.connect(path)
    copies = [_copy(database, table) for table in _WHICH]
    for n in range(1, turns // _REAL):
        for statement in copies:
            database.execute(statement, {"by": n * _REAL, "n": n, "real": _REAL})
        database.commit()
    database.execute("UPDATE service SET printed = (SELECT max(id) FROM event)")
    database.commit()
    database.close()


def _copy(database: sqlite3.Connection, table: str) -> str:
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    values = [_OF_ITS_OWN.get((table, column), column) for column in columns]
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} "
        f"FROM {table} WHERE {_WHICH[table]}"
    )


def _deliver(outbox: Outbox, key: TurnKey, now: float) -> None:
    data = (f"{key.turn_id} ".encode() * 120)[:4096]
    digest = hashlib.sha256(data).hexdigest()
    acceptance.record_hint(outbox, key, key.turn_id, "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11")
    arrival = Arrival(key, digest[:40], datetime.fromtimestamp(now, UTC), len(data), data, digest)
    acceptance.accept(outbox, arrival)
    ((due,), _) = queue.fetch_due(outbox, (), limit=1, max_retries=0)
    tried = replace(due, attempts=1, first_attempt_at=now)
    transitions.record_delivered(outbox, tried, Outcome(status=204, ms=12.0))
    acceptance.mark_gone(outbox, key)
