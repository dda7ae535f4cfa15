"""Group commit: all outbox calls that gather in one tick of the event loop share a transaction."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio

from paliadin_sidecar.errors import Blocked, Busy
from paliadin_sidecar.outbox.database import Outbox

#: Steps in one transaction: enough to share a disk flush, few enough not to delay it.
_BATCH = 256
#: A transaction begins so long after the last one at the earliest: under load, what comes meanwhile
#: shares its flush. A turn that comes alone does not wait.
_APART_S = 0.002
#: What can wait shares the flush of the next transaction, or has one after so long; so many of
#: these are enough for one. A turn's lines are read later (`audit.printer`), and all are there.
_LAG_S, _MAX_LAGGING = 0.04, 8
#: How long a full disk, or another's lock, is left alone.
BLOCKED_S = 5.0
#: Only commands lock the outbox beside the daemon, for milliseconds. Nothing signals that they are
#: done, and SQLite would hold the event loop until then: the transaction is tried again this often.
_LOCK_RETRY_S, _MAX_LOCK_WAIT_S = 0.005, 1.0

P = ParamSpec("P")
T = TypeVar("T")

_Step = tuple["Callable[[], Any]", "asyncio.Future[Any]"]


class GroupCommit:
    """Runs the outbox's functions on the event loop, one transaction for all that have gathered.

    The first call of a tick schedules the transaction for the next one, or, under load, for a
    moment after the last one. What can wait is done with the next one. A caller goes on after the
    COMMIT: whatever it wakes then finds what was committed.

    Args:
        outbox: what they take first; nobody else may use it meanwhile.
        on_event: called after transactions that wrote events.
        on_blocked: called each time that somebody must wait.
        on_unblocked: called when somebody who had to wait need not any more.
    """

    def __init__(
        self,
        outbox: Outbox,
        on_event: Callable[[], None],
        on_blocked: Callable[[Blocked], None],
        on_unblocked: Callable[[], None] = lambda: None,
    ) -> None:
        self._outbox = outbox
        self._on_event = on_event
        self._on_blocked = on_blocked
        self._on_unblocked = on_unblocked
        self._waiting: list[_Step] = []
        self._locked_since: float | None = None
        self._free_at = 0.0  #: when the next transaction may begin
        self._next: asyncio.Handle
        self._next_at = math.inf  #: when that is called
        outbox.do_not_wait_for_locks()

    def submit(
        self, function: Callable[Concatenate[Outbox, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Have one function run in the next transaction.

        Returns:
            Its result, or an OutboxError where it did not take effect. It runs once, also where
            the caller no longer waits for it.
        """
        return self._submit(partial(function, self._outbox, *args, **kwargs))

    async def commit(
        self, function: Callable[Concatenate[Outbox, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run one function; it is durable when this returns.

        Raises:
            OutboxError: it did not take effect; with `Blocked` it may later.
        """
        return await self._done(self.submit(function, *args, **kwargs))

    async def commit_when_possible(
        self, function: Callable[Concatenate[Outbox, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `commit`; while the outbox is blocked, wait and try again.

        Raises:
            OutboxError: it did not take effect, and will not.
        """
        return await self._when_possible(partial(self.commit, function, *args, **kwargs))

    async def commit_with_next(
        self, function: Callable[Concatenate[Outbox, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The same for what can wait: together with the next transaction, or after `_LAG_S`."""
        step = partial(function, self._outbox, *args, **kwargs)
        return await self._when_possible(lambda: self._done(self._submit(step, _LAG_S)))

    async def _when_possible(self, commit: Callable[[], Awaitable[T]]) -> T:
        waited = False
        while True:
            try:
                result = await commit()
            except Blocked as exc:
                waited = True
                self._on_blocked(exc)
                await anyio.sleep(BLOCKED_S)
            else:
                if waited:
                    self._on_unblocked()
                return result

    def _submit(self, call: Callable[[], T], lag_s: float = 0.0) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._waiting.append((call, done))
        self._schedule(loop, lag_s if len(self._waiting) < _MAX_LAGGING else 0.0)
        return done

    async def _done(self, done: asyncio.Future[T]) -> T:
        try:
            return await done
        except asyncio.CancelledError:
            # The loop may end soon, and this is done all the same.
            if self._waiting:
                self._run_at(asyncio.get_running_loop(), 0.0)
            raise

    def _schedule(self, loop: asyncio.AbstractEventLoop, lag_s: float = 0.0) -> None:
        at = loop.time() + lag_s
        if len(self._waiting) < _BATCH:
            at = max(at, self._free_at)
        if at < self._next_at:
            self._run_at(loop, at)

    def _run_at(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._next_at < math.inf:
            self._next.cancel()
        self._next_at = at
        is_now = at <= loop.time()
        self._next = loop.call_soon(self._run) if is_now else loop.call_at(at, self._run)

    def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._next_at = math.inf
        batch = self._waiting[:_BATCH]
        before = self._outbox.last_event
        try:
            self._commit(batch)
        except Busy as exc:
            now = loop.time()
            self._locked_since = self._locked_since or now
            if now - self._locked_since < _MAX_LOCK_WAIT_S:
                self._free_at = now + _LOCK_RETRY_S
                self._run_at(loop, self._free_at)
                return
            for _, done in batch:
                _fail(done, exc)
        except Exception as exc:  # noqa: BLE001 - each caller gets its own, and judges it
            if len(batch) == 1:
                _fail(batch[0][1], exc)
            else:
                # One that cannot be done (a full disk refuses writes alone) costs no other.
                for step in batch:
                    self._commit_alone(step)
        self._locked_since = None
        self._free_at = loop.time() + _APART_S
        del self._waiting[: len(batch)]
        if self._waiting:
            self._schedule(loop)
        if self._outbox.last_event != before:
            self._on_event()

    def _commit(self, batch: list[_Step]) -> None:
        results = self._outbox.transaction([call for call, _ in batch])
        for (_, done), result in zip(batch, results, strict=True):
            if not done.done():
                done.set_result(result)

    def _commit_alone(self, step: _Step) -> None:
        try:
            self._commit([step])
        except Exception as exc:  # noqa: BLE001 - as above
            _fail(step[1], exc)


def _fail(done: asyncio.Future[Any], exc: Exception) -> None:
    if not done.done():
        done.set_exception(exc)
