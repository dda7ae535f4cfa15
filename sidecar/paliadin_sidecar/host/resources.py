"""What the process takes of the machine: threads, descriptors, and how often it wakes."""

from __future__ import annotations

import asyncio
import math
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar, TypeVarTuple

import anyio
import anyio.lowlevel

#: Files that are kept open while they settle, where the system permits.
_MAX_HELD = 2048

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Threads:
    """A number of threads for blocking calls, all made at once and kept.

    The libraries make theirs when a call comes, and let go of idle ones: where a flood of
    something else has used up the limit of threads, no call would come through any more.

    Args:
        count: how many.
        name: what they are called in a debugger.

    Raises:
        RuntimeError: the system grants no more threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        together = threading.Barrier(count + 1)
        try:
            for _ in range(count):
                self._executor.submit(together.wait)
        except RuntimeError:
            together.abort()
            raise
        together.wait()

    async def __call__(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run this in a thread. A cancelled caller waits too: the call may use what it has open."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True):
            result = await self.begin(call, *args)
        return result  # noqa: RET504 - a scope may swallow an exception, for all that mypy knows

    def begin(self, call: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Begin it in a thread; a caller that is cancelled leaves a call that hangs to it."""
        return asyncio.wrap_future(self._executor.submit(partial(call, *args)))

    def close(self) -> None:
        """Let the threads end; nothing is waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def raise_descriptor_limit() -> int:
    """Raise the soft limit.

    Returns:
        How many files may be held open; the rest is for the network and the database.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _MAX_HELD
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return _MAX_HELD if soft == resource.RLIM_INFINITY else min(_MAX_HELD, soft // 4)


def since_boot_s() -> float:
    """A clock that nobody sets, in seconds, and that goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def wait_within(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until this is set, which the time does where nobody else has; None for no limit."""
    if seconds is None:
        await event.wait()
        return
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()


class Alarm:
    """Calls a function once, at the earliest of the times that were set since the last call.

    Args:
        call: the function; it may set the next time.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Call it in so many seconds, if it is not called before."""
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._timer is None or at < self._timer.when():
            self.cancel()
            self._timer = loop.call_at(at, self._ring)

    def cancel(self) -> None:
        """Call it at none of these times."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self._call()


def next_tick(now: float, every_s: float) -> float:
    """The next multiple of `every_s` on the clock that `now` is from.

    Whoever waits for it wakes together with all others that wait for the same multiple.
    """
    return (math.floor(now / every_s) + 1) * every_s
