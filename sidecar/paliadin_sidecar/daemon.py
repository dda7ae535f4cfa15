"""The daemon: the tasks that carry turns from stage to stage, and their end.

One group of named tasks; one that dies takes the daemon down, for whoever restarts it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack, aclosing
from importlib.metadata import version
from typing import TYPE_CHECKING, TextIO, TypeVar, TypeVarTuple

import anyio

from paliadin_sidecar.audit.lines import Audit
from paliadin_sidecar.audit.printer import EventPrinter
from paliadin_sidecar.audit.service import Problems, ServiceEvents
from paliadin_sidecar.delivery.dispatcher import Dispatch
from paliadin_sidecar.delivery.sender import Sender
from paliadin_sidecar.errors import Blocked, WatchFailed
from paliadin_sidecar.host import state_directory as statedir
from paliadin_sidecar.host.limits import raise_descriptor_limit
from paliadin_sidecar.host.report import Reporter
from paliadin_sidecar.host.systemd import Notify
from paliadin_sidecar.host.threads import Threads
from paliadin_sidecar.intake import intake as finding
from paliadin_sidecar.intake import turnfile
from paliadin_sidecar.intake.intake import Intake
from paliadin_sidecar.intake.notifications import changes
from paliadin_sidecar.intake.roots import Root
from paliadin_sidecar.outbox import opening, upkeep
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from paliadin_sidecar.settings import RootSpec, Settings

__all__ = ["run"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_VERSION = version("paliadin")

#: Every so often each file is looked at, whatever the directory's time says.
_EVERY_FILE_S = 60.0
#: What an attempt in flight gets at the end, and what is left to print.
_GRACE_S = 5.0
_FLUSH_S = 1.0
#: A root that got no further for this long does not answer: the server of its mount hangs, say.
_ANSWER_S = 5.0
#: So many changed names of a root are remembered; with more, every file is looked at.
_MAX_TOUCHED = 10_000
#: Threads for names, of which one that does not resolve can hold its thread for half a minute.
_LOOKUPS = 4
#: A watch that fails is made anew after this long, doubling; meanwhile scans find everything.
_REARM_FIRST_S, _REARM_MOST_S = 0.1, 2.0
#: systemd is told the counts at most this often.
_STATUS_LAG_S = 1.0
#: These are told also when there is none.
_TOLD = ("pending", "delivered", "dead")


async def run(
    settings: Settings,
    stream: TextIO,
    *,
    quarantine: bool = False,
    on_stop: Callable[[], None] = lambda: None,
    unknown: Iterable[tuple[str, str]] = (),
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; a second one ends the process at once.

    Args:
        settings: what to do.
        stream: where the event lines go.
        quarantine: move the outbox aside first.
        on_stop: called when it was told to end.
        unknown: variables that are misspelt, each with the nearest that is right.

    Raises:
        OutboxError, StateDirError, Locked: it cannot begin, or go on.
    """
    os.umask(0o077)
    turnfile.ignore_lease_breaks()
    most_held = raise_descriptor_limit()
    audit = Audit(stream, settings.log_level)

    def say_blocked(why: str) -> None:
        audit.print_unrecorded("outbox.blocked", {"path": str(settings.state_dir), "why": why})

    with ExitStack() as stack:
        if quarantine:
            opening.quarantine(settings)
        outbox = await opening.open_outbox(stack, settings, say_blocked)
        service = _Service(settings, outbox, stream, most_held, on_stop)
        service.unknown = tuple(unknown)
        stack.callback(service.close)
        lookups = Threads(_LOOKUPS, "lookup")
        stack.callback(lookups.close)
        async with Sender(
            settings.callback_url,
            settings.secrets,
            timeout_s=settings.callback_timeout_s,
            ca_file=settings.callback_ca_file,
            lookups=lookups,
        ) as sender:
            await service.serve(sender)


class _Service:
    def __init__(
        self,
        settings: Settings,
        outbox: Outbox,
        stream: TextIO,
        most_held: int,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._audit = audit = Audit(stream, settings.log_level)
        self._on_stop = on_stop
        self._outbox = outbox
        self._watched = [
            _Watched(spec, settings, most_held // len(settings.roots)) for spec in settings.roots
        ]
        # All that a turn's way needs: no flood of anything else can take them.
        self._notify_thread = Threads(1, "notify")
        self._group = GroupCommit(outbox, self._wrote, self._blocked, self._unblocked)
        self.unknown: tuple[tuple[str, str], ...] = ()
        self._reporter = Reporter(settings.state_dir, _VERSION, settings.variables())
        self._problems = Problems(audit, self._reporter)
        self._events = ServiceEvents(self._group, audit)
        self._printer = EventPrinter(
            self._group,
            audit,
            stream,
            key=statedir.journal_key(settings.state_dir, create=True),
            printed=outbox.transaction([outbox.printed])[0],
        )
        self._held_back = 0
        self._stop = anyio.Event()
        self._systemd = Notify(os.environ, self._notify_thread)
        self._counts_moved = anyio.Event()
        self._found: list[dict[str, object]] = []

    def close(self) -> None:
        for watched in self._watched:
            watched.close()
        self._notify_thread.close()

    def scanned(self) -> tuple[int, int]:
        intakes = [watched.intake for watched in self._watched]
        return sum(one.scans for one in intakes), sum(one.only_scanned for one in intakes)

    async def serve(self, sender: Sender) -> None:
        settings = self._settings
        self._dispatch = Dispatch(
            self._group,
            sender.attempt,
            host=settings.host_label,
            refused_s=settings.refused_s,
        )
        await self._work()

    async def _work(self) -> None:
        async with anyio.create_task_group() as base:
            base.start_soon(self._printer.run, name="audit")
            base.start_soon(self._signals, name="signals")
            base.start_soon(self._feed_watchdog, name="watchdog")
            base.start_soon(self._say_counts, name="status")
            if self._settings.metrics is not None:
                base.start_soon(self._serve_metrics, self._settings.metrics, name="metrics")
            async with anyio.create_task_group() as work:
                work.start_soon(self._dispatch.run, name="dispatch")
                for watched in self._watched:
                    work.start_soon(self._take_in, watched, name="intake")
                    work.start_soon(self._listen, watched, name="listen")
                work.start_soon(self._started, name="started")
                work.start_soon(
                    upkeep.follow_commands,
                    self._group,
                    self._settings.rescan_s,
                    self._wrote_elsewhere,
                    name="commands",
                )
                work.start_soon(upkeep.prune_regularly, self._group, name="upkeep")
                await self._stop.wait()
                await self._systemd("STOPPING=1")
                await self._happened("service.stopping")
                # Intake ends first; what it had not committed is found by the next start.
                await self._dispatch.stop(_GRACE_S)
                work.cancel_scope.cancel()
            await self._happened("service.stopped")
            with anyio.move_on_after(_FLUSH_S):
                await self._printer.flush()
            base.cancel_scope.cancel()

    async def _signals(self) -> None:
        # A terminal that was closed, unless whoever started us said that it does not matter.
        hangup = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else set()
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, *hangup) as received:
            async for number in received:
                if self._stop.is_set():
                    os._exit(128 + number)
                self._on_stop()
                self._stop.set()
                for watched in self._watched:
                    watched.wake.set()

    async def _happened(self, name: str, **fields: object) -> None:
        await self._events.record(name, **fields)

    def _wrote(self) -> None:
        self._unblocked()
        self._printer.wake()
        self._counts_moved.set()

    def _wrote_elsewhere(self) -> None:
        self._dispatch.wake()
        self._printer.wake()
        self._counts_moved.set()

    def _suffers(self, what: str, why: str | None) -> None:
        self._problems.set(what, why)
        self._counts_moved.set()

    def _unblocked(self) -> None:
        self._problems.outbox_unblocked()
        self._counts_moved.set()

    def _blocked(self, exc: Blocked) -> None:
        self._problems.outbox_blocked(exc)
        self._counts_moved.set()
        # Whoever waits for room on the disk looks again every few seconds: nothing hangs.
        for watched in self._watched:
            watched.scanned.set()
        self._dispatch.looked.set()

    # --- intake ---------------------------------------------------------------------------

    async def _take_in(self, watched: _Watched) -> None:
        spec, intake = watched.spec, watched.intake
        intake.remember(
            spec,
            await self._group.commit_when_possible(
                Outbox.present_files, spec.backend, spec.persona
            ),
        )
        next_scan = next_every_file = 0.0
        while not self._stop.is_set():
            watched.wake = anyio.Event()
            now = time.monotonic()
            every_file = watched.every_file or now >= next_every_file
            if every_file or now >= next_scan:
                watched.every_file = False
                await self._scan(watched, every_file=every_file)
                watched.scanned.set()
                now = time.monotonic()
                next_scan = now + self._settings.rescan_s
                next_every_file = now + _EVERY_FILE_S if every_file else next_every_file
            # A disk of this machine is read on the loop: a change of thread costs more.
            is_local = watched.root.leases_on is not None
            found = watched.look() if is_local else await self._ask(watched, watched.look)
            if found:
                await self._take(found)
            watched.began.set()
            due_in = intake.due_in()
            rest = max(0.0, next_scan - time.monotonic())
            with anyio.move_on_after(rest if due_in is None else min(rest, due_in)):
                await watched.wake.wait()

    async def _started(self) -> None:
        for watched in self._watched:
            await watched.began.wait()
        self._reporter.ready()  # before its line: who has read that asks how it does
        await self._happened(
            "service.started",
            version=_VERSION,
            pid=os.getpid(),
            host=self._settings.host_label,
            roots=[str(spec.path) for spec in self._settings.roots],
        )
        for name, nearest in self.unknown:
            await self._happened("service.unknown_variable", variable=name, nearest=nearest)
        await self._systemd("READY=1")

    async def _scan(self, watched: _Watched, *, every_file: bool) -> None:
        # The old directory first: what it holds at this moment is not in the new one.
        await self._take_scanned(watched, every_file=every_file)
        changed = await self._ask(watched, watched.root.check)
        if changed is not None:
            await self._tell_root(watched, changed)
            if watched.root.state == "armed":
                await self._meet(watched)
                await self._take_scanned(watched, every_file=True)
            watched.armed.set()
            watched.listening.cancel()
        await self._tell_found()

    async def _tell_root(self, watched: _Watched, changed: str) -> None:
        why = {"why": watched.root.why} if watched.root.why else {}
        about = {"backend": watched.spec.backend, "persona": watched.spec.persona}
        await self._happened(f"root.{changed}", **about, path=str(watched.spec.path), **why)

    async def _tell_found(self) -> None:
        found = [one for watched in self._watched for one in watched.intake.found()]
        if found != self._found:
            self._found = found
            await self._group.commit_when_possible(Outbox.set_roots, found)

    async def _take_scanned(self, watched: _Watched, *, every_file: bool) -> None:
        def scan() -> list[finding.Finding]:
            try:
                return watched.intake.scan(watched.spec, every_file=every_file)
            except OSError:
                return []  # it cannot be read, which is its state now: the next check tells

        if found := await self._ask(watched, scan):
            await self._take(found)

    async def _meet(self, watched: _Watched) -> None:
        spec = watched.spec
        root = (spec.backend, spec.persona, str(spec.path))
        if await self._group.commit_when_possible(Outbox.is_known_root, *root):
            return
        try:
            history = await self._ask(watched, watched.intake.history, spec)
        except OSError:
            return  # it cannot be listed: it is met when it can be
        await self._group.commit_when_possible(Outbox.register_root, *root, history)

    async def _ask(self, watched: _Watched, call: Callable[[*Ts], T], *args: *Ts) -> T:
        # All that its file system is asked, which may never answer: that costs this root alone,
        # until it does.
        answer = watched.thread.begin(call, *args)
        # Who is cancelled waits for its end: it uses what is closed then.
        with anyio.CancelScope(shield=True):
            steps = None
            while not answer.done() and steps != watched.intake.steps:
                steps = watched.intake.steps
                await asyncio.wait([answer], timeout=_ANSWER_S)
        if not answer.done():
            watched.hangs = True
            watched.root.does_not_answer()
            await self._tell_root(watched, watched.root.state)
            await self._tell_found()
            watched.began.set()
            watched.scanned.set()
            await asyncio.wait([answer])
            watched.hangs = False
        return answer.result()

    async def _take(self, found: list[finding.Finding]) -> None:
        def take(outbox: Outbox) -> None:
            for one in found:
                _take_one(outbox, one)

        # It asks what is due in the same transaction, and sends when that is durable.
        self._dispatch.wake()
        try:
            await self._group.commit(take)
        except Blocked as exc:
            # This root's intake waits here, holding one batch, while delivery goes on. One by
            # one, since the room that comes first may be for one.
            self._held_back += 1
            self._blocked(exc)
            for one in found:
                await self._group.commit_when_possible(_take_one, one)
                self._dispatch.wake()
            self._held_back -= 1
            if not self._held_back:
                self._problems.intake_unblocked()
                self._counts_moved.set()

    # --- events ---------------------------------------------------------------------------

    async def _listen(self, watched: _Watched) -> None:
        # Each root has a watch of its own: what one of them cannot bear costs no other's.
        wait_s = _REARM_FIRST_S
        while True:
            watched.armed = anyio.Event()
            if watched.root.fd is None or watched.root.state != "armed":
                self._misses_events(watched, None)  # of what? The root says what is wrong
                await watched.armed.wait()
                continue
            began = time.monotonic()
            with anyio.CancelScope() as watched.listening:
                try:
                    await self._hear(watched, watched.root.fd)
                except WatchFailed as exc:
                    if time.monotonic() - began > _REARM_MOST_S:
                        wait_s = _REARM_FIRST_S
                    self._misses_events(watched, str(exc))
                    if wait_s == _REARM_FIRST_S:
                        path = str(watched.spec.path)
                        await self._happened("watch.failed", path=path, error=str(exc))
                    await anyio.sleep(wait_s)
                    wait_s = min(2 * wait_s, _REARM_MOST_S)

    def _misses_events(self, watched: _Watched, why: str | None) -> None:
        watched.no_events = why
        failed = [f"{w.spec.path} ({w.no_events})" for w in self._watched if w.no_events]
        self._suffers("events", ", ".join(failed) or None)

    async def _hear(self, watched: _Watched, directory: int) -> None:
        by_inotify = self._settings.events == "inotify"
        heard = changes({watched.root.path: directory}, inotify=by_inotify)
        async with aclosing(heard) as events:
            async for touched in events:
                self._misses_events(watched, None)
                watched.every_file |= not touched
                watched.touched |= (ours := set(filter(finding.is_ours, touched)))
                if len(watched.touched) > _MAX_TOUCHED:
                    watched.touched.clear()
                    watched.every_file = True
                if ours or not touched:
                    watched.wake.set()

    # --- metrics --------------------------------------------------------------------------

    async def _serve_metrics(self, address: tuple[str, int]) -> None:
        from paliadin_sidecar.audit import metrics_endpoint  # noqa: PLC0415 - 5 MB, where wanted

        await metrics_endpoint.serve_until_cancelled(
            address,
            self._settings.state_dir / FILENAME,
            [(spec.backend, spec.persona) for spec in self._settings.roots],
            self.scanned,
            self._metrics_fail,
        )

    def _metrics_fail(self, why: str | None) -> None:
        self._suffers("metrics", why)
        if why is not None:
            self._audit.print_unrecorded("metrics.failed", {"why": why})

    # --- systemd --------------------------------------------------------------------------

    async def _feed_watchdog(self) -> None:
        # From the start: systemd begins to look at it when we are ready, and until then its
        # limit for the start holds. A receiver that is down is none of this.
        while self._systemd.watchdog_s is not None:
            for watched in self._watched:
                if not watched.hangs:
                    watched.scanned = anyio.Event()
            self._dispatch.looked = anyio.Event()
            await anyio.sleep(self._systemd.watchdog_s / 3)
            self._dispatch.wake()  # idle, it would look once a minute
            for watched in self._watched:
                await watched.scanned.wait()
            await self._dispatch.looked.wait()
            await self._systemd("WATCHDOG=1")

    async def _say_counts(self) -> None:
        said = ""
        while self._systemd:
            self._counts_moved = anyio.Event()
            counts = dict.fromkeys(_TOLD, 0) | await self._group.commit_when_possible(Outbox.counts)
            text = ", ".join(f"{n} {state}" for state, n in counts.items())
            text = "; ".join([text, *(f"{p.what}: {p.why}" for p in self._reporter.problems)])
            if text != said:
                said = text
                await self._systemd(f"STATUS={text}")
            await self._counts_moved.wait()
            await anyio.sleep(_STATUS_LAG_S)


class _Watched:
    # One root on its way in, with a thread of its own: its file system may hold that for ever.
    def __init__(self, spec: RootSpec, settings: Settings, most_held: int) -> None:
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
        self.thread = Threads(1, "root")
        self.hangs = False
        self.touched: set[str] = set()  #: paths that events named
        self.every_file = True  #: at the next scan
        self.wake = anyio.Event()
        self.began = anyio.Event()  #: it was looked through once, or does not answer
        self.scanned = anyio.Event()  #: since the watchdog was fed
        self.no_events: str | None = None  #: why there are none
        self.armed = anyio.Event()
        self.listening = anyio.CancelScope()

    def look(self) -> list[finding.Finding]:
        touched, self.touched = self.touched, set()
        return [*self.intake.notice(touched), *self.intake.look()]

    def close(self) -> None:
        # Closing asks the file system too.
        if not self.hangs:
            self.intake.close()
        self.thread.close()


def _take_one(outbox: Outbox, one: finding.Finding) -> None:
    match one:
        case finding.Settled(arrival):
            outbox.accept(arrival)
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
