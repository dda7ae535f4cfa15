"""What systemd is told: ready, alive, how it goes, about to end (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paliadin_sidecar.host.threads import Threads

__all__ = ["Notify"]

#: systemd reads at once, or is in trouble that is not ours.
_TIMEOUT_S = 2.0


class Notify:
    """Tells the service manager, if one asked for it; costs nothing where none did.

    Args:
        environ: the process's environment: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
        in_thread: runs a call in a thread; anyio's where there is none of their own.

    Attributes:
        watchdog_s: seconds without `WATCHDOG=1` after which we are taken for hung; None where
            nobody looks.
    """

    def __init__(self, environ: Mapping[str, str], in_thread: Threads | None = None) -> None:
        self._in_thread = in_thread
        address = environ.get("NOTIFY_SOCKET", "")
        # An "@" stands for the NUL that a name in the abstract namespace begins with.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(environ) if address else None

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    async def __call__(self, *assignments: str) -> None:
        """Send these, such as `READY=1`; one that cannot be sent is let go."""
        if self._address:
            in_thread = self._in_thread or anyio.to_thread.run_sync
            await in_thread(self._send, "\n".join(assignments).encode())

    def _send(self, message: bytes) -> None:
        # A ValueError: the address holds a NUL, or is longer than any socket's.
        with (
            suppress(OSError, ValueError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        ):
            sender.settimeout(_TIMEOUT_S)
            sender.sendto(message, self._address)


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
        pid = int(environ.get("WATCHDOG_PID", "0"))
    except ValueError:
        return None
    # It may be inherited from one that was watched in our place.
    return microseconds / 1e6 if microseconds > 0 and pid in {0, os.getpid()} else None
