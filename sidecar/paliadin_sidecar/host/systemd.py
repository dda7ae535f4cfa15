"""What is sent to systemd: ready, alive, what is wrong, about to end (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import anyio

#: systemd reads at once, or is in trouble that is not ours.
_TIMEOUT_S = 2.0


class Notify:
    """Notifies the service manager, if one asked for it; costs nothing where none did.

    Args:
        environ: the process's environment: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.

    Attributes:
        watchdog_s: seconds without `WATCHDOG=1` after which we are taken for hung; None where
            nobody looks.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # An "@" stands for the NUL that a name in the abstract namespace begins with.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(environ) if address else None

    async def __call__(self, *assignments: str) -> None:
        """Send these, such as `READY=1`, in one datagram; one that cannot be sent is dropped.

        A queue that is full is waited for, for a moment.
        """
        if not self._address:
            return
        message = "\n".join(assignments).encode()
        # A ValueError: the address holds a NUL, or is longer than any socket's.
        with suppress(OSError, ValueError), _datagrams() as sender:
            sender.connect(self._address)
            with suppress(BlockingIOError):
                sender.send(message)
                return
            with anyio.move_on_after(_TIMEOUT_S):
                await anyio.wait_writable(sender)
                sender.send(message)

    def show(self, status: str) -> None:
        """Have this shown by `systemctl status`; dropped where it cannot be sent at once."""
        if self._address:
            with suppress(OSError, ValueError), _datagrams() as sender:
                sender.sendto(f"STATUS={status}".encode(), self._address)


class Heartbeat:
    """The sign of life of one loop.

    Attributes:
        suspended: nothing is asked of it, since it waits for what is not in this process's hands.
    """

    def __init__(self) -> None:
        self.suspended = False
        self._beaten = anyio.Event()

    def beat(self) -> None:
        """The loop came around."""
        self._beaten.set()

    def reset(self) -> None:
        """Ask for another one."""
        if not self.suspended:
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
        systemd: is notified.
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


def _datagrams() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
        pid = int(environ.get("WATCHDOG_PID", "0"))
    except ValueError:
        return None
    # It may be inherited from one that was watched in our place.
    return microseconds / 1e6 if microseconds > 0 and pid in {0, os.getpid()} else None
