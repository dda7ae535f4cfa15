"""Erases answers and the trace of a person: rows, their pages, and the log.

What is deleted is overwritten with zeros (`PRAGMA secure_delete`, which each connection to an
outbox sets), so nothing of it is left in free pages. The log has it until it was emptied.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from paliadin_sidecar.failpoints import failpoint
from paliadin_sidecar.outbox.database import Outbox, sql
from paliadin_sidecar.outbox.event_rows import record_event
from paliadin_sidecar.outbox.sqlite_errors import translated

#: The log can be emptied at a moment at which nobody reads; it is asked for this often.
_RETRY_S = 0.05


@dataclass(frozen=True)
class Erasable:
    """A turn of which there is something to erase.

    Attributes:
        id: its row's.
        turn_id: the name of its file.
        backend, persona: its root's.
        undelivered: how many deliveries the receiver does not have.
        is_awaited: it was announced, and its answer has not come.
        has_file: its file was there when it was last looked at.
        size: bytes of its bodies.
    """

    id: int
    turn_id: str
    backend: str
    persona: str
    undelivered: int
    is_awaited: bool
    has_file: bool
    size: int

    @property
    def is_undelivered(self) -> bool:
        """Whether somebody could still get an answer that they do not have."""
        return self.is_awaited or self.undelivered > 0


def turns_named(outbox: Outbox, turn_id: str) -> list[Erasable]:
    """The turns of an id, or submitted under it, but for those that were erased."""
    return _erasables(outbox, sql.turns_named, {"id": turn_id})


def turns_of(outbox: Outbox, user_id: str) -> list[Erasable]:
    """All turns of a user."""
    return _erasables(outbox, sql.turns_of_user, {"user": user_id})


def users_beginning(outbox: Outbox, prefix: str, limit: int) -> list[str]:
    """The ids of users that begin so, at most so many."""
    wanted = {"prefix": prefix, "limit": limit}
    return [row["user_id"] for row in outbox.execute(sql.users_beginning, wanted)]


def erase(outbox: Outbox, turn: int, by: str, *, undelivered: bool) -> Erasable | None:
    """Erase a turn, as it is by now; called within a transaction.

    Its row stays: its file may still be there, and would be taken for a new turn without it.

    Args:
        outbox: where it is.
        turn: its row's id.
        by: the system user who wants it, for the event.
        undelivered: also where it is undelivered.

    Returns:
        What was erased; None where it is undelivered or there is nothing to erase.
    """
    found = _erasable(outbox, turn)
    if found is None or (found.is_undelivered and not undelivered):
        return None
    of_turn = {"turn": turn, "now": outbox.now()}
    for statement in (sql.erase_deliveries, sql.erase_events, sql.erase_turn):
        outbox.execute(statement, of_turn)
    fields = {name: getattr(found, name) for name in ("turn_id", "backend", "persona")}
    record_event(outbox, "turn.erased", turn, fields | {"by": by, "undelivered": found.undelivered})
    return found


def portions(turns: Sequence[Erasable], max_turns: int, max_bytes: int) -> list[list[Erasable]]:
    """The same, in transactions that a delivery may have to wait for."""
    found: list[list[Erasable]] = []
    size = 0
    for turn in turns:
        if not found or len(found[-1]) == max_turns or size + turn.size > max_bytes:
            found.append([])
            size = 0
        found[-1].append(turn)
        size += turn.size
    return found


def empty_log(outbox: Outbox, within_s: float) -> bool:
    """Bring all that the log has into the database, and empty it. Not within a transaction.

    Returns:
        False where somebody read for as long: then the log still has what was erased.
    """
    failpoint("before the log is emptied")
    end = time.monotonic() + within_s
    while True:
        try:
            is_busy = outbox.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise translated(exc, outbox.path) from None
            is_busy = True
        if not is_busy:
            outbox.files.flush_log()  # SQLite does not, and a loss of power would bring it back
            return True
        if time.monotonic() > end:
            return False
        time.sleep(_RETRY_S)


def _erasables(outbox: Outbox, statement: str, wanted: Mapping[str, str]) -> list[Erasable]:
    found = [_erasable(outbox, row["id"]) for row in outbox.execute(statement, wanted).fetchall()]
    return [turn for turn in found if turn is not None]


def _erasable(outbox: Outbox, turn: int) -> Erasable | None:
    row = outbox.one(sql.erasable, {"turn": turn})
    # SQLite has no booleans, which is what is not strict here.
    return None if row is None else msgspec.convert(dict(row), Erasable, strict=False)
