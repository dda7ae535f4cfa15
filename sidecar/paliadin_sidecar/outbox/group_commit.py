"""The outbox's methods, off the event loop: as many as have gathered in one transaction."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import anyio

from paliadin_sidecar.errors import Blocked, Busy

if TYPE_CHECKING:
    from collections.abc import Callable

    from paliadin_sidecar.host.threads import Threads
    from paliadin_sidecar.outbox.outbox import Outbox

__all__ = ["BLOCKED_S", "Committer"]

#: Operations in one transaction: enough to share a disk flush, few enough not to delay it.
_BATCH = 256
#: How long a full disk, or another's lock, is left alone.
BLOCKED_S = 5.0

P = ParamSpec("P")
T = TypeVar("T")


class _Step:
    # One call that waits for its transaction.
    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.done = anyio.Event()
        self.result: Any = None
        self.error: BaseException | None = None


class Committer:
    """Runs the outbox's methods in a thread, one transaction for all that have gathered.

    Args:
        outbox: what they are methods of; nobody else may use it meanwhile.
        on_event: called on the event loop after transactions that wrote events.
        on_blocked: called there each time that somebody must wait.
        on_unblocked: called there when somebody who had to wait need not any more.
        in_thread: runs a call in a thread; anyio's where there is none of their own.
    """

    def __init__(
        self,
        outbox: Outbox,
        on_event: Callable[[], None],
        on_blocked: Callable[[Blocked], None],
        on_unblocked: Callable[[], None] = lambda: None,
        *,
        in_thread: Threads | None = None,
    ) -> None:
        self._in_thread = in_thread
        self._outbox = outbox
        self._on_event = on_event
        self._on_blocked = on_blocked
        self._on_unblocked = on_unblocked
        self._waiting: deque[_Step] = deque()
        self._wake = anyio.Event()

    async def once(
        self, method: Callable[Concatenate[Outbox, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run one method; it is durable when this returns.

        Raises:
            OutboxError: it did not take effect; with `Blocked` it may later.
        """
        step = _Step(partial(method, self._outbox, *args, **kwargs))
        self._waiting.append(step)
        self._wake.set()
        await step.done.wait()
        if step.error is not None:
            raise step.error
        return cast("T", step.result)

    async def __call__(
        self, method: Callable[Concatenate[Outbox, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `once`; while the outbox is blocked, wait and try again.

        Raises:
            OutboxError: it did not take effect, and will not.
        """
        waited = False
        while True:
            try:
                result = await self.once(method, *args, **kwargs)
            except Blocked as exc:
                waited = True
                self._on_blocked(exc)
                await anyio.sleep(BLOCKED_S)
            else:
                if waited:
                    self._on_unblocked()
                return result

    async def run(self) -> None:
        """Serve the calls until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                before = self._outbox.last_event
                # A commit is not abandoned: whoever cancels waits for the few ms it takes.
                with anyio.CancelScope(shield=True):
                    try:
                        in_thread = self._in_thread or anyio.to_thread.run_sync
                        await in_thread(self._commit, batch)
                    except RuntimeError as exc:  # no thread could be started
                        for step in batch:
                            step.error = exc
                for step in batch:
                    step.done.set()
                if self._outbox.last_event != before:
                    self._on_event()

    def _commit(self, batch: list[_Step]) -> None:
        try:
            results = self._outbox.transaction([step.call for step in batch])
        except Exception as exc:  # noqa: BLE001 - each caller gets its own, and judges it
            if len(batch) == 1 or isinstance(exc, Busy):
                for step in batch:
                    step.error = exc
                return
            # One that cannot be done (a full disk refuses writes alone) costs no other.
            for step in batch:
                self._commit([step])
        else:
            for step, result in zip(batch, results, strict=True):
                step.result = result
