"""Notices that the machine slept, or came to another network. Needs no privileges.

Timers of the event loop do not run while a machine sleeps, and a network that comes is no event
of theirs: whatever waits for either would wait for the rest of its time.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import anyio

from paliadin_sidecar.host.resources import next_tick, since_boot_s

#: So much may pass unnoticed: a busy machine, a clock that is made to run faster.
_MIN_GAP_S = 5.0
#: An address comes with others, and with its routes: they are one change. Where changes go on, as
#: beside a container that is started again and again, they are gathered for longer: each ends what
#: is still connecting, which takes a second here and there.
_MIN_GATHER_S, _MAX_GATHER_S = 0.5, 4.0
#: Which name servers are asked. They may change some time after the network; who is asking the old
#: one would wait until that has not answered.
_NAME_SERVERS = Path("/etc/resolv.conf")
#: Sources: linux/rtnetlink.h, linux/if.h.
_GROUPS = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_RTM_NEWLINK, _RTM_NEWADDR, _RTM_DELADDR = 16, 20, 21
_RT_SCOPE_LINK, _IFF_RUNNING = 253, 0x40
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr
_ADDRESS = struct.Struct("=BBBBi")  # ifaddrmsg
_LINK = struct.Struct("=BxHiII")  # ifinfomsg
_MAX_DATAGRAM = 64 * 1024


class SleepDetector:
    """Compares the clocks between two looks.

    Args:
        monotonic: the loop's clock, which rests while the machine sleeps.
        boot: one that does not, and that nobody sets.
        wall: the date. Where a virtual machine is held with its host, it alone is put right.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        boot: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._clocks = monotonic, boot, wall
        self._last = self._read()

    def look(self, awaited_s: float) -> float | None:
        """For how many seconds the machine slept since the last look; None for no gap at all.

        It is 0 where time has jumped and the machine, for all that is known, did not sleep: the
        process was stopped, or the date was set forward.

        Args:
            awaited_s: how long after the last look this one was to come.
        """
        last, self._last = self._last, self._read()
        passed_s, boot_s, wall_s = (b - a for a, b in zip(last, self._last, strict=True))
        slept_s = boot_s - passed_s
        if slept_s >= _MIN_GAP_S:
            return slept_s
        return 0.0 if max(wall_s, passed_s) - awaited_s >= _MIN_GAP_S else None

    def _read(self) -> tuple[float, ...]:
        return tuple(clock() for clock in self._clocks)


class NetworkChanges:
    """Says which of the kernel's messages are about another network. Pure."""

    def __init__(self) -> None:
        self._running: dict[int, bool] = {}  # by interface

    def matter(self, datagram: bytes) -> bool:
        """Whether an address came or went that reaches beyond its link, or a link came up."""
        # All are looked at, since each may say which links run.
        return sum(self._matters(kind, body) for kind, body in _messages(datagram)) > 0

    def _matters(self, kind: int, body: bytes) -> bool:
        if kind in {_RTM_NEWADDR, _RTM_DELADDR} and len(body) >= _ADDRESS.size:
            *_, scope, _index = _ADDRESS.unpack_from(body)
            return bool(scope < _RT_SCOPE_LINK)
        if kind == _RTM_NEWLINK and len(body) >= _LINK.size:
            _family, _type, index, flags, _change = _LINK.unpack_from(body)
            ran, runs = self._running.get(index), bool(flags & _IFF_RUNNING)
            self._running[index] = runs
            return runs and ran is False
        return False


def next_gather_s(last_s: float, passed_s: float) -> float:
    """For how many seconds changes are gathered after one that was reported.

    Args:
        last_s: for how long they were gathered after the one before.
        passed_s: seconds since that was reported.
    """
    return min(2 * last_s, _MAX_GATHER_S) if passed_s <= 2 * last_s else _MIN_GATHER_S


async def watch_interruptions(every_s: float, listeners: Sequence[Callable[[float], None]]) -> None:
    """Report each, until cancelled.

    Args:
        every_s: seconds between two looks at the clocks, and at which name servers are asked.
        listeners: get the seconds for which the machine slept; 0 where it did not.
    """
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_watch_network, listeners, name="network")
        sleep = SleepDetector(anyio.current_time, since_boot_s, time.time)
        name_servers = _identity(_NAME_SERVERS)
        while True:
            now = anyio.current_time()
            await anyio.sleep(wait_s := next_tick(now, every_s) - now)
            slept_s = sleep.look(wait_s)
            before, name_servers = name_servers, _identity(_NAME_SERVERS)
            if slept_s is not None or name_servers != before:
                _notify(listeners, slept_s or 0.0)


def _identity(path: Path) -> tuple[int, ...]:
    try:
        info = path.stat()
    except OSError:
        return ()
    return info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size


def _notify(listeners: Sequence[Callable[[float], None]], slept_s: float) -> None:
    for listener in listeners:
        listener(slept_s)


async def _watch_network(listeners: Sequence[Callable[[float], None]]) -> None:
    # Where the system refuses, delays end when they end.
    with suppress(OSError), _subscribed() as kernel:
        changes = NetworkChanges()
        told_at, gather_s = -math.inf, _MIN_GATHER_S
        while True:
            await anyio.wait_readable(kernel)
            if sum(changes.matter(datagram) for datagram in _received(kernel)):
                _notify(listeners, 0.0)
                now = anyio.current_time()
                gather_s, told_at = next_gather_s(gather_s, now - told_at), now
                await anyio.sleep(gather_s)


def _subscribed() -> socket.socket:
    kernel = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    try:
        kernel.bind((0, _GROUPS))
    except BaseException:
        kernel.close()
        raise
    return kernel


def _received(kernel: socket.socket) -> Iterator[bytes]:
    with suppress(BlockingIOError):
        while True:
            try:
                yield kernel.recv(_MAX_DATAGRAM)
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                # What overflowed is lost; more of the same follows.


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _MESSAGE.size <= len(datagram):
        length, kind, *_ = _MESSAGE.unpack_from(datagram, at)
        if length < _MESSAGE.size:
            return
        yield kind, datagram[at + _MESSAGE.size : at + length]
        at += (length + 3) & ~3  # NLMSG_ALIGN
