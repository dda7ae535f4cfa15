"""What the outbox needs besides turns: pruning, and a look at what other processes wrote."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import msgspec

from paliadin_sidecar.host.resources import next_tick
from paliadin_sidecar.outbox.database import Outbox, sql
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.records import ANY_TIME, to_ms

#: An acknowledged body is kept this long for a replay, and a turn this long after its file has
#: gone and nothing touched it any more.
BODY_S, TURN_S = 72 * 3600.0, 90 * 86_400.0
#: Pruning comes this often, and rests this long between two of its steps: delivery has the disk.
_PRUNE_EVERY_S, _REST_S = 3600.0, 0.05
#: One step of pruning: some 10 ms that a delivery may have to wait, and the disk's time.
_STEP_ROWS, _STEP_BYTES, _STEP_PAGES = 100, 4 * 1024 * 1024, 256
#: Free pages are used again; only what a backlog left, beyond this and a quarter, is given back.
_KEPT_PAGES = 4096


def prune(outbox: Outbox) -> bool:
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


def purge_bodies(outbox: Outbox, before: int) -> bool:
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


async def prune_regularly(group: GroupCommit) -> None:
    """Prune what is old, in small steps, until cancelled."""
    while True:
        more = await group.commit_when_possible(prune)
        await anyio.sleep(_REST_S if more else _PRUNE_EVERY_S)


async def follow_commands(
    group: GroupCommit, every_s: float, on_change: Callable[[], None]
) -> None:
    """Look this often whether a command, such as `replay`, wrote to the outbox, until cancelled.

    Args:
        group: runs the outbox's functions.
        every_s: seconds between two looks.
        on_change: called after the first look, and after each that found something.
    """
    seen: int | None = None
    while True:
        elsewhere = await group.commit_when_possible(Outbox.changed_elsewhere)
        if elsewhere != seen:
            seen = elsewhere
            on_change()
        now = anyio.current_time()
        await anyio.sleep(next_tick(now, every_s) - now)


def _purge_turns(outbox: Outbox, before: int) -> bool:
    values = {"before": before, "limit": _STEP_ROWS}
    turns = outbox.execute(sql.purge_turns, values).rowcount
    return outbox.execute(sql.purge_events, values).rowcount + turns > 0


def _shrink(outbox: Outbox) -> bool:
    free = outbox.pragma("freelist_count")
    if free <= max(_KEPT_PAGES, outbox.pragma("page_count") // 4):
        return False
    # A page each time, whatever number stands there: Python's sqlite3 steps a statement
    # without columns once.
    for _ in range(min(_STEP_PAGES, free)):
        outbox.execute("PRAGMA incremental_vacuum(1)")
    return True
