"""One root's way in: its file notifications, its scans, and what becomes of the files they name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from functools import partial
from typing import Protocol, TypeVar

import anyio

from paliadin_sidecar.errors import WatchFailed
from paliadin_sidecar.host.resources import Threads, next_tick, wait_within
from paliadin_sidecar.host.systemd import Heartbeat
from paliadin_sidecar.intake.completion import IntakeRules
from paliadin_sidecar.intake.events import IntakeEvent
from paliadin_sidecar.intake.inspection import inspect_due
from paliadin_sidecar.intake.notifications import changes
from paliadin_sidecar.intake.roots import Root
from paliadin_sidecar.intake.scan import Depth, find_history, is_old, run_slice, scan
from paliadin_sidecar.intake.tracking import WatchedRoot, is_ours
from paliadin_sidecar.outbox import acceptance
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.records import Arrival
from paliadin_sidecar.settings import RootSpec, Settings

T = TypeVar("T")

#: So many old files of a new root are recorded in one transaction, which takes some 10 ms.
_HISTORY_BATCH = 100
#: Every so often the names are listed and the root is judged, whatever their times say.
_NAMES_S = 60.0
#: A scan holds up everybody else for about this long, and then rests, so that a turn meets a few of
#: its slices at most.
_SLICE_S, _REST_S = 0.0005, 0.001
#: Where notifications have each new name, listing them takes at most this share of a core.
_LISTING_SHARE = 0.01
#: A root that got no further for this long does not answer: the server of its mount hangs, say.
_UNRESPONSIVE_AFTER_S = 5.0
#: So many changed names of a root are remembered; with more, every file is compared.
_MAX_TOUCHED = 10_000
#: The first scan of a root waits for its notifications to begin, for so long at most.
_WATCH_BEGINS_S = 1.0
#: A watch that fails is made anew after this long, doubling; meanwhile scans find everything.
_MIN_REARM_S, _MAX_REARM_S = 0.1, 2.0


class IntakeListener(Protocol):
    """What a root's intake calls in whatever runs all of them."""

    record: Callable[..., Awaitable[None]]  #: records an event of the service

    async def commit(self, events: list[IntakeEvent]) -> None:
        """Write these down, waiting while the outbox is blocked, and have sent what can be."""

    async def save_root_states(self) -> None:
        """Write down what all roots are and hold, where that changed."""

    def report_missing_events(self) -> None:
        """Say which roots miss file notifications."""


class RootIntake:
    """One root on its way in.

    Files of a disk of this machine are inspected on the event loop. Any other file system may
    never answer, so all that it is asked runs in a thread of the root's own, and costs no other
    root when that is held.

    Args:
        spec: the root.
        settings: what to do.
        max_open_files: files whose descriptors are kept between two inspections.
        group: the outbox.
        listener: is called with what happens.

    Attributes:
        root: its directory.
        files: what is known of the files in it.
        heartbeat: beats with each scan; suspended where that hangs.
        began: it was scanned once, or does not answer.
        no_events: why there are no notifications, where there are none.
    """

    def __init__(
        self,
        spec: RootSpec,
        settings: Settings,
        max_open_files: int,
        group: GroupCommit,
        listener: IntakeListener,
    ) -> None:
        self.spec = spec
        self.root = Root(spec.path, settings.owner)
        rules = IntakeRules(
            owner=settings.owner,
            quiet_s=settings.quiet_s,
            max_bytes=settings.max_bytes,
            max_open_files=max_open_files,
            monotonic=time.monotonic,
            wall=time.time,
        )
        self.files = WatchedRoot(spec, self.root, rules)
        self.heartbeat = Heartbeat()
        self.began = asyncio.Event()
        self.no_events: str | None = None
        self._settings = settings
        self._group = group
        self._listener = listener
        self._thread = Threads(1, "root")
        self._file_system_lock = asyncio.Lock()
        self._committing = asyncio.Lock()
        self._stopped = False
        self._is_known = False  #: its old files are registered
        self._scanned = False  #: since files were inspected
        self._touched: set[str] = set()  #: names in notifications
        self._every_file = True  #: at the next scan
        self._is_notified = False  #: of each new name
        self._list_at = 0.0  #: when names are listed again, where it is
        self._scan_s = 0.0  #: what scans took so far
        self._wake = asyncio.Event()
        self._wake_scan = asyncio.Event()
        self._armed = asyncio.Event()
        self._watch_tried = asyncio.Event()  #: notifications began, or cannot
        self._listening = anyio.CancelScope()

    def stop(self) -> None:
        """Take in nothing more."""
        self._stopped = True
        self._wake.set()

    def close(self) -> None:
        """Let go of all descriptors."""
        # Closing asks the file system too.
        if not self.heartbeat.suspended:
            self.files.close()
        self._thread.close()

    async def run(self) -> None:
        """Take in what comes, until stopped or cancelled."""
        self.files.remember(
            await self._group.commit_when_possible(
                acceptance.present_files, self.spec.backend, self.spec.persona
            )
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._scan_loop, name="scan")
            tasks.start_soon(self._notification_loop, name="notifications")
            await self._inspection_loop()
            tasks.cancel_scope.cancel()

    async def _inspection_loop(self) -> None:
        while not self._stopped:
            self._wake = asyncio.Event()
            scanned, self._scanned = self._scanned, False
            # Taken on the event loop, where they are added: the call may run in the root's thread.
            touched, self._touched = self._touched, set()
            await self._commit(await self._call(partial(self._inspect, touched)))
            if scanned:
                self.began.set()
                self.heartbeat.beat()
            async with self._file_system_lock:  # a scan in the root's thread may change what is due
                due_s = self.files.due_in()
            await wait_within(self._wake, due_s)

    def _inspect(self, touched: set[str]) -> list[IntakeEvent]:
        if not self._is_known:  # what is old is left to the registration, and the scan after it
            touched = {name for name in touched if not is_old(self.files, name)}
        return [*self.files.notice(touched), *inspect_due(self.files)]

    async def _commit(self, events: list[IntakeEvent]) -> None:
        if events:
            async with self._committing:  # in the order in which they were found
                await self._listener.commit(events)

    # --- scans ------------------------------------------------------------------------------

    async def _scan_loop(self) -> None:
        names_at = 0.0
        while True:
            self._wake_scan = asyncio.Event()
            depth = Depth.NAMES if time.monotonic() >= names_at else Depth.MOVED
            if self._every_file:
                depth, self._every_file = Depth.EVERY_FILE, False
            await self._scan(depth)
            self._scanned = True
            self._wake.set()
            now = time.monotonic()
            if depth >= Depth.NAMES:
                names_at = now + _NAMES_S
            await wait_within(self._wake_scan, next_tick(now, self._settings.rescan_s) - now)

    async def _scan(self, depth: Depth) -> None:
        # The old directory first: what it holds at this moment is not in the new one.
        if self._is_known:
            await self._scan_files(depth)
        if depth < Depth.NAMES and self.root.leases_on is not None and self.root.is_as_checked():
            await self._listener.save_root_states()
            return
        # The check may ask a directory service, so it never runs on the loop.
        async with self._file_system_lock:
            changed = await self._call_in_thread(self.root.check)
        if changed is not None:
            await self._record_state(changed)
            self._watch_tried = asyncio.Event()
            self._armed.set()
            self._listening.cancel()
            if self.root.state == "armed":
                # A scan finds what came before notifications; one that begins before them would
                # have to be repeated.
                await wait_within(self._watch_tried, _WATCH_BEGINS_S)
                await self._register()
                self._every_file = False
                await self._scan_files(Depth.EVERY_FILE)
        await self._listener.save_root_states()

    async def _record_state(self, changed: str) -> None:
        why = {"why": self.root.why} if self.root.why else {}
        await self._listener.record(f"root.{changed}", **self.spec.about, **why)

    async def _scan_files(self, depth: Depth) -> None:
        is_told = self._is_notified and self.root.leases_on is not None
        if depth == Depth.MOVED and is_told and time.monotonic() < self._list_at:
            depth = Depth.ACCEPTED
        slices: AsyncIterator[list[IntakeEvent]] = self._slices(scan(self.files, depth))
        before_s = self._scan_s
        # Where it cannot be read, that is its state now: the next check says so.
        with suppress(OSError):
            async for events in slices:
                await self._commit(events)
        if depth >= Depth.MOVED:
            self._list_at = time.monotonic() + (self._scan_s - before_s) / _LISTING_SHARE

    async def _register(self) -> None:
        if not await self._group.commit_when_possible(acceptance.is_known_root, self.spec.about):
            # New answers are accepted and sent meanwhile, between two small transactions.
            history: list[Arrival] = []
            try:
                async for found in self._slices(find_history(self.files)):
                    history += found
                    self._wake.set()
                    if len(history) >= _HISTORY_BATCH:
                        await self._group.commit_when_possible(acceptance.record_history, history)
                        history = []
            except OSError:
                return  # it cannot be listed: it is registered when it can be
            await self._group.commit_when_possible(
                acceptance.register_root, self.spec.about, history
            )
        self._is_known = True

    async def _slices(self, steps: Iterator[T | None]) -> AsyncIterator[list[T]]:
        # Files are inspected, and turns sent, between two slices.
        def step() -> tuple[list[T], bool]:
            before_s = time.monotonic()
            try:
                return run_slice(steps, _SLICE_S, time.monotonic)
            finally:
                self._scan_s += time.monotonic() - before_s

        more = True
        while more:
            found, more = await self._call(step)
            yield found
            if more:
                await anyio.sleep(_REST_S if self.began.is_set() else 0)

    async def _call(self, call: Callable[[], T]) -> T:
        async with self._file_system_lock:
            return call() if self.root.leases_on is not None else await self._call_in_thread(call)

    async def _call_in_thread(self, call: Callable[[], T]) -> T:
        # In the root's thread, since the call may never return.
        answer = self._thread.begin(call)
        # A cancelled caller waits for the call to end, since the call uses descriptors that are
        # closed afterwards.
        with anyio.CancelScope(shield=True):
            steps = None
            while not answer.done() and steps != self.files.steps:
                steps = self.files.steps
                await asyncio.wait([answer], timeout=_UNRESPONSIVE_AFTER_S)
        if not answer.done():
            self.heartbeat.suspended = True
            self.root.mark_unresponsive()
            await self._record_state(self.root.state)
            await self._listener.save_root_states()
            self.began.set()
            self.heartbeat.beat()
            await asyncio.wait([answer])
            self.heartbeat.suspended = False
        return answer.result()

    # --- notifications ----------------------------------------------------------------------

    async def _notification_loop(self) -> None:
        # Each root has a watch of its own: what one of them cannot bear costs no other's.
        wait_s = _MIN_REARM_S
        while True:
            self._is_notified = False
            self._armed = asyncio.Event()
            if self.root.fd is None or self.root.state != "armed":
                # There is nothing to watch; the root's state says why.
                self._set_no_events(None)
                await self._armed.wait()
                continue
            began = time.monotonic()
            with anyio.CancelScope() as self._listening:
                try:
                    await self._consume_events(self.root.fd)
                except WatchFailed as exc:
                    self._is_notified = False
                    self._watch_tried.set()
                    if time.monotonic() - began > _MAX_REARM_S:
                        wait_s = _MIN_REARM_S
                    self._set_no_events(str(exc))
                    if wait_s == _MIN_REARM_S:
                        path = str(self.spec.path)
                        await self._listener.record("watch.failed", path=path, error=str(exc))
                    await anyio.sleep(wait_s)
                    wait_s = min(2 * wait_s, _MAX_REARM_S)

    def _set_no_events(self, why: str | None) -> None:
        if why != self.no_events:
            self.no_events = why
            self._listener.report_missing_events()

    async def _consume_events(self, directory: int) -> None:
        heard = changes(directory, inotify=self._settings.events == "inotify")
        async with aclosing(heard) as events:
            async for touched in events:
                self._is_notified = True
                self._watch_tried.set()
                self._set_no_events(None)
                self._touched |= (ours := set(filter(is_ours, touched)))
                if ours:
                    self._wake.set()
                is_full = len(self._touched) > _MAX_TOUCHED
                if is_full:
                    self._touched.clear()
                if is_full or not touched:
                    self._every_file = True
                    self._wake_scan.set()
