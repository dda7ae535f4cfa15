"""Tells systemd that the daemon is alive, as long as each of its loops comes around."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paliadin_sidecar.host.systemd import Notify

__all__ = ["Heartbeat", "feed_watchdog"]


class Heartbeat:
    """The sign of life of one loop.

    Attributes:
        excused: nothing is asked of it, since it waits for what is not in this process's hands.
    """

    def __init__(self) -> None:
        self.excused = False
        self._beaten = anyio.Event()

    def beat(self) -> None:
        """The loop came around."""
        self._beaten.set()

    def reset(self) -> None:
        """Ask for another one."""
        if not self.excused:
            self._beaten = anyio.Event()

    async def wait(self) -> None:
        """Wait until the loop came around since `reset`."""
        await self._beaten.wait()


async def feed_watchdog(
    systemd: Notify, heartbeats: Sequence[Heartbeat], wake: Callable[[], None]
) -> None:
    """Send `WATCHDOG=1` three times within the watchdog's time, until cancelled.

    From the start: systemd begins to look at it when we are ready, and until then its limit for
    the start holds. Where no watchdog is set, this returns at once.

    Args:
        systemd: is told.
        heartbeats: of the loops, each of which must come around in between.
        wake: makes those come around that would rest for longer.
    """
    while systemd.watchdog_s is not None:
        for heartbeat in heartbeats:
            heartbeat.reset()
        await anyio.sleep(systemd.watchdog_s / 3)
        wake()
        for heartbeat in heartbeats:
            await heartbeat.wait()
        await systemd("WATCHDOG=1")
