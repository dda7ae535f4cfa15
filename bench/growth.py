"""What a host that has served for long looks like: an outbox of a million delivered turns."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from paliadin_sidecar.delivery.sender import Outcome
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.outbox import Outbox
from paliadin_sidecar.outbox.records import Arrival, TurnKey

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["delivered"]

_REAL = 10_000
_DAYS = 90
#: Each copy of the real turns has ids of its own, and its rows the same sizes.
_COPY = """
INSERT INTO turn SELECT id + :by, backend, persona, printf('%08x', :n) || substr(turn_id, 9),
    submitted_turn_id, user_id, revision, answered_at, seen_content_key, sent_content_key,
    fingerprint, gone_at, seen_at FROM turn WHERE id <= :real;
INSERT INTO delivery (id, turn, revision, webhook_id, state, reason, bytes, sha256, accepted_at,
        attempts, first_attempt_at, attempted_at, next_attempt_at, settled_at, body_purged_at, root)
    SELECT id + :by, turn + :by, revision, webhook_id || '_' || :n, state, reason, bytes, sha256,
        accepted_at, attempts, first_attempt_at, attempted_at, next_attempt_at, settled_at,
        body_purged_at, root FROM delivery WHERE id <= :real;
INSERT INTO event (at, name, turn, fields) SELECT at, name, turn + :by, fields
    FROM event WHERE turn <= :real;
"""


def delivered(state: Path, turns: int) -> None:
    """Make an outbox that delivered so many turns, whose files and bodies have gone."""
    state.mkdir(mode=0o700, exist_ok=True)
    path = state / FILENAME
    clock = [time.time() - _DAYS * 86_400 / 2]
    with Outbox(path, host="bench", wall=lambda: clock[0], create=True) as outbox:
        keys = [TurnKey("aichat", "paliadin", f"{n:036x}") for n in range(min(turns, _REAL))]
        outbox.transaction([partial(_deliver, outbox, key, clock[0]) for key in keys])
        clock[0] += 4 * 86_400  # bodies are let go after three days
        while outbox.transaction([outbox.prune])[0]:
            pass
        outbox.transaction([lambda: outbox.set_printed(outbox.last_event)])
    database = sqlite3.connect(path)
    for n in range(1, turns // _REAL):
        for statement in _COPY.split(";")[:3]:
            database.execute(statement, {"by": n * _REAL, "n": n, "real": _REAL})
        database.commit()
    database.execute("UPDATE service SET printed = (SELECT max(id) FROM event)")
    database.commit()
    database.close()


def copy(made: Path, state: Path) -> None:
    """Put it where a daemon finds it."""
    state.mkdir(mode=0o700)
    shutil.copyfile(made / FILENAME, state / FILENAME)


def _deliver(outbox: Outbox, key: TurnKey, now: float) -> None:
    data = (f"{key.turn_id} ".encode() * 120)[:4096]
    digest = hashlib.sha256(data).hexdigest()
    outbox.record_hint(key, key.turn_id, "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11")
    arrival = Arrival(key, digest[:40], datetime.fromtimestamp(now, UTC), len(data), data, digest)
    outbox.accept(arrival)
    ((due,), _) = outbox.fetch_due((), limit=1, max_retries=0)
    tried = replace(due, attempts=1, first_attempt_at=now)
    outbox.record_delivered(tried, Outcome(status=204, ms=12.0))
    outbox.mark_gone(key)
