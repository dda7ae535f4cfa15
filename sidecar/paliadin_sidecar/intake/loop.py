"""One root's way in: its file notifications, its scans, and what becomes of the files they name.

The system calls on a root run in a thread of its own, since its file system may hold one for ever.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple

import anyio

from paliadin_sidecar.errors import Blocked, WatchFailed
from paliadin_sidecar.host.threads import Threads
from paliadin_sidecar.host.ticks import next_tick
from paliadin_sidecar.host.watchdog import Heartbeat
from paliadin_sidecar.intake import intake as finding
from paliadin_sidecar.intake.intake import Intake
from paliadin_sidecar.intake.notifications import changes
from paliadin_sidecar.intake.roots import Root
from paliadin_sidecar.outbox.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from paliadin_sidecar.outbox.group_commit import GroupCommit
    from paliadin_sidecar.outbox.records import Delivery
    from paliadin_sidecar.settings import RootSpec, Settings

__all__ = ["Office", "RootIntake"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Every so often each file is looked at, whatever the directory's time says.
_EVERY_FILE_S = 60.0
#: A root that got no further for this long does not answer: the server of its mount hangs, say.
_ANSWER_S = 5.0
#: So many changed names of a root are remembered; with more, every file is looked at.
_MAX_TOUCHED = 10_000
#: A watch that fails is made anew after this long, doubling; meanwhile scans find everything.
_REARM_FIRST_S, _REARM_MOST_S = 0.1, 2.0


class Office(Protocol):
    """What a root's intake tells of itself to whoever runs all of them."""

    def accepted(self, deliveries: list[Delivery]) -> None:
        """These were committed, and can be sent."""

    def holds(self, exc: Blocked) -> None:
        """The outbox is blocked, and a batch of this root's is held until it is not."""

    def let_go(self) -> None:
        """The batch that was held is committed."""

    async def record(self, name: str, **fields: Any) -> None:  # noqa: ANN401 - of an event
        """Record an event of the service."""

    async def changed(self) -> None:
        """The root's state, or what was found in it, may be another."""

    def notifications(self) -> None:
        """File notifications of this root began, or ended."""


class RootIntake:
    """One root on its way in.

    Args:
        spec: the root.
        settings: what to do.
        most_held: files whose descriptors are kept between two looks.
        group: the outbox.
        office: whom it tells.
    """

    def __init__(
        self,
        spec: RootSpec,
        settings: Settings,
        most_held: int,
        group: GroupCommit,
        office: Office,
    ) -> None:
        self.spec = spec
        self.root = Root(spec.path, settings.owner)
        self.intake = Intake(
            [(spec, self.root)],
            owner=settings.owner,
            quiet_s=settings.quiet_s,
            max_bytes=settings.max_bytes,
            most_held=most_held,
            monotonic=time.monotonic,
            wall=time.time,
        )
        self.heartbeat = Heartbeat()  #: beats with each scan; excused where that hangs
        self.began = anyio.Event()  #: it was looked through once, or does not answer
        self.no_events: str | None = None  #: why there are none
        self._settings = settings
        self._group = group
        self._office = office
        self._thread = Threads(1, "root")
        self._stopped = False
        self._touched: set[str] = set()  #: paths that events named
        self._every_file = True  #: at the next scan
        self._wake = anyio.Event()
        self._armed = anyio.Event()
        self._listening = anyio.CancelScope()

    def stop(self) -> None:
        """End the intake loop before its next step."""
        self._stopped = True
        self._wake.set()

    def close(self) -> None:
        """Let go of all descriptors."""
        # Closing asks the file system too.
        if not self.heartbeat.excused:
            self.intake.close()
        self._thread.close()

    async def run(self) -> None:
        """Take in what comes, until stopped or cancelled."""
        spec, intake = self.spec, self.intake
        lying = await self._group.commit_when_possible(
            Outbox.present_files, spec.backend, spec.persona
        )
        intake.remember(spec, lying)
        next_scan = next_every_file = 0.0
        while not self._stopped:
            self._wake = anyio.Event()
            now = time.monotonic()
            every_file = self._every_file or now >= next_every_file
            if every_file or now >= next_scan:
                self._every_file = False
                await self._scan(every_file=every_file)
                self.heartbeat.beat()
                now = time.monotonic()
                next_scan = next_tick(now, self._settings.rescan_s)
                next_every_file = now + _EVERY_FILE_S if every_file else next_every_file
            # A disk of this machine is read on the loop: a change of thread costs more.
            is_local = self.root.leases_on is not None
            found = self._look() if is_local else await self._ask(self._look)
            if found:
                await self._take(found)
            self.began.set()
            due_in = intake.due_in()
            rest = max(0.0, next_scan - time.monotonic())
            with anyio.move_on_after(rest if due_in is None else min(rest, due_in)):
                await self._wake.wait()

    async def listen(self) -> None:
        """Hear of changed files, and wake the intake loop, until cancelled."""
        # Each root has a watch of its own: what one of them cannot bear costs no other's.
        wait_s = _REARM_FIRST_S
        while True:
            self._armed = anyio.Event()
            if self.root.fd is None or self.root.state != "armed":
                self._misses_events(None)  # of what? The root says what is wrong
                await self._armed.wait()
                continue
            began = time.monotonic()
            with anyio.CancelScope() as self._listening:
                try:
                    await self._hear(self.root.fd)
                except WatchFailed as exc:
                    if time.monotonic() - began > _REARM_MOST_S:
                        wait_s = _REARM_FIRST_S
                    self._misses_events(str(exc))
                    if wait_s == _REARM_FIRST_S:
                        path = str(self.spec.path)
                        await self._office.record("watch.failed", path=path, error=str(exc))
                    await anyio.sleep(wait_s)
                    wait_s = min(2 * wait_s, _REARM_MOST_S)

    def _misses_events(self, why: str | None) -> None:
        self.no_events = why
        self._office.notifications()

    async def _hear(self, directory: int) -> None:
        by_inotify = self._settings.events == "inotify"
        heard = changes({self.root.path: directory}, inotify=by_inotify)
        async with aclosing(heard) as events:
            async for touched in events:
                self._misses_events(None)
                self._every_file |= not touched
                self._touched |= (ours := set(filter(finding.is_ours, touched)))
                if len(self._touched) > _MAX_TOUCHED:
                    self._touched.clear()
                    self._every_file = True
                if ours or not touched:
                    self._wake.set()

    # --- scans ----------------------------------------------------------------------------

    async def _scan(self, *, every_file: bool) -> None:
        # The old directory first: what it holds at this moment is not in the new one.
        await self._take_scanned(every_file=every_file)
        changed = await self._ask(self.root.check)
        if changed is not None:
            await self._tell_root(changed)
            if self.root.state == "armed":
                await self._meet()
                await self._take_scanned(every_file=True)
            self._armed.set()
            self._listening.cancel()
        await self._office.changed()

    async def _tell_root(self, changed: str) -> None:
        why = {"why": self.root.why} if self.root.why else {}
        about = {"backend": self.spec.backend, "persona": self.spec.persona}
        await self._office.record(f"root.{changed}", **about, path=str(self.spec.path), **why)

    async def _take_scanned(self, *, every_file: bool) -> None:
        def scan() -> list[finding.Finding]:
            try:
                return self.intake.scan(self.spec, every_file=every_file)
            except OSError:
                return []  # it cannot be read, which is its state now: the next check tells

        if found := await self._ask(scan):
            await self._take(found)

    async def _meet(self) -> None:
        spec = self.spec
        root = (spec.backend, spec.persona, str(spec.path))
        if await self._group.commit_when_possible(Outbox.is_known_root, *root):
            return
        try:
            history = await self._ask(self.intake.history, spec)
        except OSError:
            return  # it cannot be listed: it is met when it can be
        await self._group.commit_when_possible(Outbox.register_root, *root, history)

    async def _ask(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        # All that its file system is asked, which may never answer: that costs this root alone,
        # until it does.
        answer = self._thread.begin(call, *args)
        # Who is cancelled waits for its end: it uses what is closed then.
        with anyio.CancelScope(shield=True):
            steps = None
            while not answer.done() and steps != self.intake.steps:
                steps = self.intake.steps
                await asyncio.wait([answer], timeout=_ANSWER_S)
        if not answer.done():
            self.heartbeat.excused = True
            self.root.does_not_answer()
            await self._tell_root(self.root.state)
            await self._office.changed()
            self.began.set()
            self.heartbeat.beat()
            await asyncio.wait([answer])
            self.heartbeat.excused = False
        return answer.result()

    # --- files ----------------------------------------------------------------------------

    def _look(self) -> list[finding.Finding]:
        touched, self._touched = self._touched, set()
        return [*self.intake.notice(touched), *self.intake.look()]

    async def _take(self, found: list[finding.Finding]) -> None:
        try:
            accepted = await self._group.commit(_take_all, found)
        except Blocked as exc:
            # This root's intake waits here, holding one batch, while delivery goes on. One by
            # one, since the room that comes first may be for one.
            self._office.holds(exc)
            for one in found:
                accepted = await self._group.commit_when_possible(_take_all, [one])
                self._office.accepted(accepted)
            self._office.let_go()
        else:
            self._office.accepted(accepted)


def _take_all(outbox: Outbox, found: list[finding.Finding]) -> list[Delivery]:
    # Returns what is to be sent.
    return [delivery for one in found if (delivery := _take_one(outbox, one)) is not None]


def _take_one(outbox: Outbox, one: finding.Finding) -> Delivery | None:
    match one:
        case finding.Settled(arrival):
            return outbox.accept(arrival)
        case finding.Hint(key, submitted_turn_id, user_id):
            outbox.record_hint(key, submitted_turn_id, user_id)
        case finding.Stalled(key, why, detail):
            outbox.record_turn_event("turn.stalled", key, why=why, detail=detail)
        case finding.Flooded(spec, kinds, untold, names):
            about = {"backend": spec.backend, "persona": spec.persona, "path": str(spec.path)}
            outbox.record_service_event(
                "root.flooded", about | {"waiting": kinds, "untold": untold, "names": names}
            )
        case finding.Vanished(key):
            outbox.mark_vanished(key)
        case finding.Gone(key):
            outbox.mark_gone(key)
    return None
