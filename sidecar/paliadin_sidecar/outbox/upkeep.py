"""What the outbox needs besides turns: pruning, and a look at what other processes wrote."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from paliadin_sidecar.host.ticks import next_tick
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.outbox import Outbox

__all__ = ["follow_commands", "prune_regularly"]

#: Pruning comes this often, and rests this long between two of its steps: delivery has the disk.
_EVERY_S, _REST_S = 3600.0, 0.05


async def prune_regularly(group: GroupCommit) -> None:
    """Prune what is old, in small steps, until cancelled."""
    while True:
        more = await group.commit_when_possible(Outbox.prune)
        await anyio.sleep(_REST_S if more else _EVERY_S)


async def follow_commands(
    group: GroupCommit, every_s: float, on_change: Callable[[], None]
) -> None:
    """Look this often whether a command, such as `replay`, wrote to the outbox, until cancelled.

    Args:
        group: runs the outbox's methods.
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
