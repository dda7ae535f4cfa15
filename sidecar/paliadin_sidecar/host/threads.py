"""Threads that are there before they are needed, so that no limit of threads is met later."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Deadline", "Threads"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: What the interpreter gets to end: a name that does not resolve can hold a thread, and with it
#: the end of the process, for half a minute.
_INTERPRETER_S = 2.0


class Deadline:
    """Ends the process some time after it was told to end, whatever still hangs in it.

    Its thread waits from the start: at the end there may be no room for another one, and what
    hangs may be the event loop.

    Args:
        seconds: what the process gets to end by itself.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun, self._done = threading.Event(), threading.Event()
        self._code = 0
        threading.Thread(target=self._watch, name="deadline", daemon=True).start()

    def begin(self) -> None:
        """From now on the seconds count; who is late ends with exit code 0."""
        self._begun.set()

    def done(self, code: int) -> None:
        """Nothing is left but the interpreter's own end, with this exit code."""
        self._code = code
        self._done.set()
        self._begun.set()

    def _watch(self) -> None:
        self._begun.wait()
        if self._done.wait(self._seconds):
            time.sleep(_INTERPRETER_S)
        os._exit(self._code)


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
        """Run this in a thread. Who is cancelled waits for its end: it may use what is theirs."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True):
            result = await self.abandonable(call, *args)
        return result  # noqa: RET504 - a scope may swallow an exception, for all that mypy knows

    async def abandonable(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """The same; who is cancelled leaves it to its thread, which may be held for long."""
        return await self.begin(call, *args)

    def begin(self, call: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Begin it, for who does something else meanwhile."""
        return asyncio.wrap_future(self._executor.submit(partial(call, *args)))

    def close(self) -> None:
        """Let the threads end; nothing is waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)
