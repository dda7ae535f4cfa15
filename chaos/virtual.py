"""The real daemon in this process, where time passes only when nothing else is left to do.

What it cannot decide is passed in: the clocks, random numbers, the network, and file notifications.
Files, directories, leases and SQLite are the real ones.
"""

from __future__ import annotations

import asyncio
import os
import random
import selectors
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self, TypeVar
from unittest.mock import patch

import anyio.lowlevel
import anyio.to_thread

from paliadin_sidecar import daemon as service
from paliadin_sidecar import failpoints
from paliadin_sidecar.audit import lines
from paliadin_sidecar.delivery import dispatcher
from paliadin_sidecar.errors import WatchFailed
from paliadin_sidecar.intake import loop as intake
from paliadin_sidecar.intake import roots as watch
from paliadin_sidecar.intake.notifications import changes as real_changes
from paliadin_sidecar.outbox import opening
from paliadin_sidecar.outbox.database import Outbox

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Iterator,
        Sequence,
    )
    from pathlib import Path
    from typing import TextIO

    from paliadin_sidecar.outbox.records import Outcome
    from paliadin_sidecar.settings import Settings


T = TypeVar("T")

#: The daemon is gone so soon after SIGTERM, whatever it was at.
_MAX_STOP_S = 10.0


class Clock:
    """Monotonic seconds that a loop moves, and dates, which can be set."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.sets = 0  #: how often the date was set
        self._shift_s = time.time() - now

    def monotonic(self) -> float:
        """As `time.monotonic`: who asks twice gets two times, or could wait for ever."""
        self.now += 1e-6
        return self.now

    def time(self) -> float:
        """As `time.time`."""
        return self.now + self._shift_s

    def set(self, by_s: float) -> None:
        """Somebody sets the date."""
        self._shift_s += by_s
        self.sets += 1


class _Selector(selectors.DefaultSelector):
    # Where the loop would rest, its clock jumps.
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits for something that never comes"
            self._clock.now += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self._ours = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self._ours.now


class _Killed(Exception):
    pass


class FileEvents:
    """Notifications of changed files: the kernel's, ours, or none at all.

    Args:
        how: `inotify` is the real engine; a `scripted` change is sent by `notify`, unless
            `overflow` or a new directory comes between; `off` is silence.
    """

    def __init__(self, how: str) -> None:
        self.how = how
        self._pending: set[str] = set()
        self._wake = asyncio.Event()
        self._broken = False
        self._watched: tuple[int, int] | None = None

    def notify(self, path: Path) -> None:
        """A name was touched."""
        if self._watched == _identity(path.parent):
            self._pending.add(path.name)
            self._wake.set()

    def overflow(self) -> None:
        """Events that were raised and not read yet are lost."""
        self._pending.clear()

    def fail(self) -> None:
        """The watch raises."""
        self._broken = True
        self._wake.set()

    def changes(self, directory: int, *, inotify: bool) -> AsyncGenerator[set[str], None]:
        """In place of `notifications.changes`."""
        return real_changes(directory, inotify=True) if inotify else self._changes(directory)

    async def _changes(self, directory: int) -> AsyncGenerator[set[str], None]:
        if self.how == "off":
            raise WatchFailed("off")
        self._watched = _identity(directory)
        self._pending = set()
        yield set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._broken:
                self._broken = False
                raise WatchFailed("broken")
            touched, self._pending = self._pending, set()
            yield touched


def _identity(path: Path | int) -> tuple[int, int]:
    try:
        info = os.stat(path)  # noqa: PTH116 - of a descriptor, too
    except OSError:
        return 0, 0
    return info.st_dev, info.st_ino


class Daemon:
    """`paliadin-sidecar run`, again and again, in a loop of its own.

    Args:
        settings: what it runs with.
        log: where its lines go.
        attempt: the network.
        file_events: the kernel's notifications.
        clock: moved by its loop.

    Attributes:
        rng: its random numbers.
    """

    def __init__(
        self,
        settings: Settings,
        log: TextIO,
        attempt: Callable[[str, bytes], Awaitable[Outcome]],
        file_events: FileEvents,
        *,
        clock: Clock,
    ) -> None:
        self.rng = rng = random.Random()
        self._settings, self._log, self._attempt = settings, log, attempt
        self._loop = _Loop(clock)
        self._task: asyncio.Task[None] | None = None
        self._terminate: Callable[[], object] = lambda: None
        self._listeners: Sequence[Callable[[float], None]] = ()
        self._points: Iterator[int] = iter(())
        self._die_at: int | None = None
        self._dead = False
        self._stack = ExitStack()
        self._stack.callback(self._loop.close)
        self._stack.callback(os.umask, os.umask(0o077))  # the daemon sets it, for its process

        class ClockedOutbox(Outbox):
            def __init__(self, path: Path, **how: Any) -> None:  # noqa: ANN401 - handed through
                super().__init__(path, **how | {"wall": clock.time, "steady": clock.monotonic})

        class ClockedDispatcher(dispatcher.Dispatcher):
            def __init__(self, *what: Any, **how: Any) -> None:  # noqa: ANN401 - handed through
                how |= {"wall": clock.time, "steady": clock.monotonic, "random": rng.random}
                super().__init__(*what, **how)

        for where, name, ours in (
            (intake, "time", clock),
            (lines, "time", clock),
            (watch, "time", clock),
            (opening, "Outbox", ClockedOutbox),
            (service, "Dispatcher", ClockedDispatcher),
            (service, "sender_of", lambda _: _Network(self)),
            (service, "watch_interruptions", self._watch_interruptions),
            (intake, "changes", file_events.changes),
            (failpoints, "on_failpoint", self._failpoint),
            (anyio.to_thread, "run_sync", _at_once),
            (intake, "Threads", _AtOnce),
        ):
            self._stack.enter_context(patch.object(where, name, ours))

    def close(self) -> None:
        """End it, whatever it does."""
        try:
            self.kill()
        finally:
            self._stack.close()

    @property
    def is_up(self) -> bool:
        """Whether it runs.

        Raises:
            BaseExceptionGroup: what ended it, if that was neither `kill` nor `stop`.
        """
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            if not self._dead:
                task.result()
            elif not task.cancelled():
                task.exception()  # looked at, so nobody complains that nobody did
        return self._task is not None

    def start(self) -> None:
        """Start it, if it does not run."""
        if not self.is_up:
            self._dead, self._die_at = False, None
            self._task = self._loop.create_task(
                service.run(self._settings, self._log, self._on_signal)
            )

    def stop(self) -> None:
        """SIGTERM, and its end."""
        if self.is_up:
            self.advance(0.0)
            if self.is_up:
                self._terminate()
                self._end()

    def kill(self, at_point: int = 0) -> None:
        """SIGKILL, now or at its Nth failpoint from now on."""
        if not self.is_up:
            return
        if at_point:
            self._die_at = at_point
            return
        self._dead = True
        assert self._task is not None
        self._task.cancel()
        self._end()

    def cancel_kill(self) -> None:
        """It is not killed at a failpoint any more."""
        self._die_at = None

    def interrupt(self, slept_s: float) -> None:
        """The machine has slept for so long, or come to another network."""

        async def notify() -> None:
            for listener in self._listeners:
                listener(slept_s)

        if self.is_up:
            self._loop.run_until_complete(notify())

    def advance(self, seconds: float) -> None:
        """Time passes; 0 is enough for what needs none."""
        self._loop.run_until_complete(_sleep(seconds))

    async def attempt(self, webhook_id: str, body: bytes) -> Outcome:
        """In place of `Sender.attempt`."""
        self._check()
        outcome = await self._attempt(webhook_id, body)
        self._check()
        return outcome

    async def _watch_interruptions(
        self, _: float, listeners: Sequence[Callable[[float], None]]
    ) -> None:
        self._listeners = listeners

    def _on_signal(self, call: Callable[[], object]) -> None:
        self._terminate = call

    def _end(self) -> None:
        assert self._task is not None
        self._loop.run_until_complete(asyncio.wait([self._task], timeout=_MAX_STOP_S))
        assert not self.is_up, "it does not end"

    def _failpoint(self, _: str) -> None:
        self._check()
        if self._die_at is not None:
            self._die_at -= 1
            self._dead = not self._die_at
            self._check()

    def _check(self) -> None:
        # Nothing of a process that was killed takes effect any more: no commit, no line, no
        # request. Each of its tasks ends with this where it would.
        if self._dead:
            raise _Killed


class _Network:
    # In place of `Sender`.
    def __init__(self, daemon: Daemon) -> None:
        self.attempt = daemon.attempt

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def interrupted(self, _: float) -> None:
        pass


class _AtOnce:
    # In place of threads that are kept.
    def __init__(self, *_: object) -> None:
        pass

    async def __call__(self, call: Callable[..., T], *args: object) -> T:
        return await _at_once(call, *args)

    def begin(self, call: Callable[..., T], *args: object) -> asyncio.Future[T]:
        return asyncio.ensure_future(_at_once(call, *args))

    def close(self) -> None:
        pass


async def _at_once(call: Callable[..., T], *args: object, **_: object) -> T:
    # In place of a thread.
    await anyio.lowlevel.checkpoint()
    return call(*args)


async def _sleep(seconds: float) -> None:
    for _ in range(50):
        await asyncio.sleep(0)
    await asyncio.sleep(seconds)
