"""Pruning: what is finished goes after its time, in small steps."""

from __future__ import annotations

import msgspec

from paliadin_sidecar.outbox.database import Database
from paliadin_sidecar.outbox.records import ANY_TIME, to_ms
from paliadin_sidecar.outbox.statements import sql

__all__ = ["BODY_S", "TURN_S", "prune", "purge_bodies"]

#: An acknowledged body is kept this long for a replay, and a turn this long after its file has
#: gone and nothing touched it any more.
BODY_S, TURN_S = 72 * 3600.0, 90 * 86_400.0
#: One step of pruning: some 10 ms that a delivery may have to wait, and the disk's time.
_STEP_ROWS, _STEP_BYTES, _STEP_PAGES = 100, 4 * 1024 * 1024, 256
#: Free pages are used again; only what a backlog left, beyond this and a quarter, is given back.
_KEPT_PAGES = 4096


def prune(outbox: Database) -> bool:
    """One small step of pruning; True where there may be more to do.

    Bodies go `BODY_S` after their acknowledgement, or as soon as the outbox takes more than it
    may. A turn goes, with its deliveries and events, `TURN_S` after its file has gone (or never
    came) and nothing touched it any more; an event of the service as late. What is pending or
    dead never goes, nor a turn whose file is still there: it would be taken for a new one.
    """
    now = outbox.now() - outbox.set_forward_ms  # a wrong date is no reason to forget
    before = ANY_TIME if outbox.is_over_budget() else now - to_ms(BODY_S)
    return (
        purge_bodies(outbox, before) or _purge_turns(outbox, now - to_ms(TURN_S)) or _shrink(outbox)
    )


def purge_bodies(outbox: Database, before: int) -> bool:
    """Drop some of the bodies that were settled before then; False where there are none."""
    expired, size = [], 0
    for row in outbox.execute(sql.expired_bodies, {"before": before, "limit": _STEP_ROWS}):
        expired.append(row["id"])
        size += row["bytes"]
        if size >= _STEP_BYTES:
            break
    values = {"deliveries": msgspec.json.encode(expired).decode(), "now": outbox.now()}
    outbox.execute(sql.delete_bodies, values)
    return outbox.execute(sql.mark_bodies_purged, values).rowcount > 0


def _purge_turns(outbox: Database, before: int) -> bool:
    values = {"before": before, "limit": _STEP_ROWS}
    turns = outbox.execute(sql.purge_turns, values).rowcount
    return outbox.execute(sql.purge_events, values).rowcount + turns > 0


def _shrink(outbox: Database) -> bool:
    free = outbox.pragma("freelist_count")
    if free <= max(_KEPT_PAGES, outbox.pragma("page_count") // 4):
        return False
    # A page each time, whatever number stands there: Python's sqlite3 steps a statement
    # without columns once.
    for _ in range(min(_STEP_PAGES, free)):
        outbox.execute("PRAGMA incremental_vacuum(1)")
    return True
