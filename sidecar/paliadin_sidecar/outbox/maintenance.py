"""What the outbox needs besides turns: pruning, and a look at what other processes wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import msgspec

from paliadin_sidecar.host.resources import next_tick
from paliadin_sidecar.outbox.database import LATE_S, Outbox, sql
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.records import ANY_TIME, Retention, to_ms

#: A turn that a token announced is waited for this long at least: its answer needs what that said.
AWAITED_S = 86_400.0
#: Pruning comes this often, or as often as this where something is kept for less than some hours,
#: and rests this long between two of its steps: delivery has the disk.
_PRUNE_EVERY_S, _MIN_PRUNE_EVERY_S, _REST_S = 3600.0, 60.0, 0.05
#: One step of pruning: some 10 ms that a delivery may have to wait, and the disk's time.
_STEP_ROWS, _STEP_BYTES, _STEP_PAGES = 100, 4 * 1024 * 1024, 256
#: Free pages are used again; only what a backlog left, beyond this and a quarter, is given back.
_KEPT_PAGES = 4096


def prune(outbox: Outbox) -> bool:
    """One small step of pruning; True where there may be more to do.

    Bodies go `answers_s` of the outbox's retention after their acknowledgement. A turn goes, with
    its deliveries and events, `turns_s` after its file has gone (or never came) and nothing touched
    it any more; an event of the service as late. Where the outbox takes more than it may, what is
    old goes earlier, see `make_room`. What is pending or dead never goes, nor a turn whose file is
    still there: it would be taken for a new one.
    """
    now = _now(outbox)
    return (
        purge_bodies(outbox, now - to_ms(outbox.retention.answers_s))
        or _purge_turns(outbox, turns_before := now - to_ms(outbox.retention.turns_s))
        or _purge_events(outbox, turns_before)
        or (outbox.is_over_budget() and make_room(outbox))
        or _shrink(outbox)
    )


def make_room(outbox: Outbox) -> bool:
    """Drop before its time some of what the receiver has; False where nothing of it may go.

    Bodies go first. Then turns, the oldest first, whose files have gone and that nothing touched
    for as long as a change of them would be sent: a new answer is worth more than an old row.
    """
    if purge_bodies(outbox, ANY_TIME):
        return True
    before = _now(outbox) - to_ms(min(LATE_S, outbox.retention.turns_s))
    return _purge_turns(outbox, before)


def purge_bodies(outbox: Outbox, before: int) -> bool:
    """Drop some of the bodies that were settled before then; False where there are none."""
    expired, size = [], 0
    for row in outbox.execute(sql.expired_bodies, {"before": before, "limit": _STEP_ROWS}):
        expired.append(row["id"])
        size += row["bytes"]
        if size >= _STEP_BYTES:
            break
    return drop_bodies(outbox, expired) > 0


def drop_bodies(outbox: Outbox, deliveries: Sequence[int]) -> int:
    """Drop the bodies of these deliveries; how many there were."""
    values = {"deliveries": msgspec.json.encode(deliveries).decode(), "now": outbox.now()}
    outbox.execute(sql.delete_bodies, values)
    return outbox.execute(sql.mark_bodies_purged, values).rowcount


async def prune_regularly(group: GroupCommit, retention: Retention) -> None:
    """Prune what is older than this, in small steps, until cancelled."""
    while True:
        more = await group.commit_when_possible(prune)
        await anyio.sleep(_REST_S if more else prune_every_s(retention))


def prune_every_s(retention: Retention) -> float:
    """How often pruning comes: no later than a tenth of the time for which something is kept."""
    shortest = min(retention.answers_s or retention.turns_s, retention.turns_s)
    return min(_PRUNE_EVERY_S, max(_MIN_PRUNE_EVERY_S, shortest / 10))


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
    awaited = min(before, _now(outbox) - to_ms(AWAITED_S))
    values = {"before": before, "awaited_before": awaited, "limit": _STEP_ROWS}
    return outbox.execute(sql.purge_turns, values).rowcount > 0


def _purge_events(outbox: Outbox, before: int) -> bool:
    values = {"before": before, "limit": _STEP_ROWS}
    return outbox.execute(sql.purge_events, values).rowcount > 0


def _now(outbox: Outbox) -> int:
    return outbox.now() - outbox.set_forward_ms  # a wrong date is no reason to forget


def _shrink(outbox: Outbox) -> bool:
    free = outbox.pragma("freelist_count")
    if free <= max(_KEPT_PAGES, outbox.pragma("page_count") // 4):
        return False
    # A page each time, whatever number stands there: Python's sqlite3 steps a statement
    # without columns once.
    for _ in range(min(_STEP_PAGES, free)):
        outbox.execute("PRAGMA incremental_vacuum(1)")
    return True
