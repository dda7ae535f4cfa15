"""The daemon: the tasks that carry turns from stage to stage, and their end.

One group of named tasks; one that dies takes the daemon down, for whoever restarts it.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from contextlib import ExitStack, aclosing, suppress
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, TextIO

import anyio

from paliadin_sidecar import crash, statedir, turnfile
from paliadin_sidecar import intake as finding
from paliadin_sidecar.audit import Audit, unconfirmable
from paliadin_sidecar.committer import BLOCKED_S, Committer
from paliadin_sidecar.deliver import Sender
from paliadin_sidecar.dispatch import Dispatch
from paliadin_sidecar.events import WatchFailed, changes
from paliadin_sidecar.intake import Intake
from paliadin_sidecar.notify import Notify
from paliadin_sidecar.outbox import FILENAME, Blocked, Busy, Full, Outbox, OverBudget
from paliadin_sidecar.report import Reporter
from paliadin_sidecar.threads import Threads
from paliadin_sidecar.watch import Root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from paliadin_sidecar.outbox import Event
    from paliadin_sidecar.settings import RootSpec, Settings

__all__ = ["run"]

_VERSION = version("paliadin")

#: Every so often each file is looked at, whatever the directory's time says.
_EVERY_FILE_S = 60.0
#: What an attempt in flight gets at the end, and what is left to print.
_GRACE_S = 5.0
_FLUSH_S = 1.0
#: Threads for scans, and for telling systemd meanwhile; and for names, of which one that does not
#: resolve can hold its thread for half a minute.
_WORKERS, _LOOKUPS = 3, 4
#: A metrics address that cannot be had is tried again this often.
_METRICS_AGAIN_S = 2.0
#: Files that are kept open while they settle, where the system permits.
_MOST_HELD = 2048
#: A watch that fails is made anew after this long, doubling; meanwhile scans find everything.
_REARM_FIRST_S, _REARM_MOST_S = 0.1, 2.0
#: Upkeep comes this often, and rests this long between two of its steps: delivery has the disk.
_TIDY_EVERY_S, _TIDY_REST_S = 3600.0, 0.05
#: How far the memory of what was printed may lag: so many seconds of lines may be repeated
#: after a crash, and none is missing.
_PRINTED_LAG_S = 1.0
#: A turn's lines follow each other within this time: read together, and out of its way.
_GATHER_S = 0.05
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
    most_held = _raise_descriptor_limit()
    with ExitStack() as stack:
        if quarantine:
            statedir.prepare(settings.state_dir)
            with statedir.lock(settings.state_dir):
                # Before it goes: what was undelivered in it must never become history.
                statedir.remember_outbox(settings.state_dir)
                statedir.quarantine(settings.state_dir, FILENAME)
        outbox = await _open_outbox(stack, settings, Audit(stream, settings.log_level))
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


async def _open_outbox(stack: ExitStack, settings: Settings, audit: Audit) -> Outbox:
    """The outbox and its lock, made where there is none; lack of room is waited for."""
    said = ""
    while True:
        try:
            with ExitStack() as opened:
                outbox = _outbox(opened, settings)
                stack.push(opened.pop_all())
                return outbox
        except (Full, Busy, statedir.NotNow) as exc:
            if isinstance(exc, statedir.NotNow) and not exc.no_room:
                raise
            if said != str(exc):
                said = str(exc)
                with suppress(OSError):  # a log that takes nothing ends nothing
                    fields = {"path": str(settings.state_dir), "why": said}
                    audit.line("outbox.blocked", time.time(), fields)
        await anyio.sleep(BLOCKED_S)


def _outbox(stack: ExitStack, settings: Settings) -> Outbox:
    statedir.prepare(settings.state_dir)
    held_one = stack.enter_context(statedir.lock(settings.state_dir))
    outbox = stack.enter_context(
        Outbox(
            settings.state_dir / FILENAME,
            host=settings.host_label,
            steady=_since_boot_s,
            create=True,
            successor=held_one,
            max_bytes=settings.max_outbox,
        )
    )
    statedir.remember_outbox(settings.state_dir)
    return outbox


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
        self._on_stop = on_stop
        self._outbox = outbox
        self._audit = Audit(stream, settings.log_level)
        self._stream = stream
        self._roots = [(spec, Root(spec.path, settings.owner)) for spec in settings.roots]
        self._intake = Intake(
            list(self._roots),
            owner=settings.owner,
            quiet_s=settings.quiet_s,
            max_bytes=settings.max_bytes,
            most_held=most_held,
            monotonic=time.monotonic,
            wall=time.time,
        )
        # All that a turn's way needs: no flood of anything else can take them.
        self._in_thread = Threads(_WORKERS, "work")
        self._commit_thread = Threads(1, "commit")
        self._commit = Committer(
            outbox,
            self._wrote,
            self._blocked,
            self._unblocked,
            in_thread=self._commit_thread,
        )
        self.unknown: tuple[tuple[str, str], ...] = ()
        self._journal_key = statedir.journal_key(settings.state_dir, create=True)
        self._blocked_why = ""
        self._budget_why = ""
        self._reporter = Reporter(settings.state_dir, _VERSION, settings.variables())
        (self._printed,) = outbox.transaction([outbox.printed])
        self._printing = anyio.Lock()
        self._touched: set[str] = set()
        self._every_file = True
        self._intake_wake = anyio.Event()
        self._audit_wake = anyio.Event()
        self._stop = anyio.Event()
        self._systemd = Notify(os.environ, self._in_thread)
        self._scan_done = anyio.Event()
        self._counts_moved = anyio.Event()
        self._armed = anyio.Event()
        self._listening = anyio.CancelScope()
        self._found: list[dict[str, object]] = []
        self._elsewhere: int | None = None

    def close(self) -> None:
        self._intake.close()
        self._in_thread.close()
        self._commit_thread.close()

    def scanned(self) -> tuple[int, int]:
        return self._intake.scans, self._intake.only_scanned

    async def serve(self, sender: Sender) -> None:
        settings = self._settings
        self._dispatch = Dispatch(
            self._commit,
            sender.attempt,
            host=settings.host_label,
            refused_s=settings.refused_s,
        )
        # The innermost ends first, and what it still records needs the committer.
        async with anyio.create_task_group() as store:
            store.start_soon(self._commit.run, name="commit")
            await self._work()
            store.cancel_scope.cancel()

    async def _work(self) -> None:
        async with anyio.create_task_group() as base:
            base.start_soon(self._print_events, name="audit")
            base.start_soon(self._signals, name="signals")
            base.start_soon(self._feed_watchdog, name="watchdog")
            base.start_soon(self._say_counts, name="status")
            if self._settings.metrics is not None:
                base.start_soon(self._serve_metrics, self._settings.metrics, name="metrics")
            async with anyio.create_task_group() as work:
                work.start_soon(self._dispatch.run, name="dispatch")
                work.start_soon(self._take_in, name="intake")
                work.start_soon(self._listen, name="listen")
                work.start_soon(self._tidy, name="upkeep")
                await self._stop.wait()
                await self._systemd("STOPPING=1")
                await self._happened("service.stopping")
                # Intake ends first; what it had not committed is found by the next start.
                await self._dispatch.stop(_GRACE_S)
                work.cancel_scope.cancel()
            await self._happened("service.stopped")
            with anyio.move_on_after(_FLUSH_S):
                await self._flush()
                await self._remember_printed()
            base.cancel_scope.cancel()

    async def _tidy(self) -> None:
        while True:
            more = await self._commit(Outbox.tidy)
            await anyio.sleep(_TIDY_REST_S if more else _TIDY_EVERY_S)

    async def _signals(self) -> None:
        # A terminal that was closed, unless whoever started us said that it does not matter.
        hangup = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else set()
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, *hangup) as received:
            async for number in received:
                if self._stop.is_set():
                    os._exit(128 + number)
                self._on_stop()
                self._stop.set()
                self._intake_wake.set()

    async def _happened(self, name: str, **fields: object) -> None:
        try:
            await self._commit.once(Outbox.happened, name, fields)
        except Blocked:
            self._say(name, fields)  # the state it tells of is none of ours

    def _say(self, name: str, fields: dict[str, object]) -> None:
        # Without a row. A log that takes nothing, as on the same full disk, ends nothing.
        with suppress(OSError):
            self._audit.line(name, time.time(), fields)

    def _unblocked(self) -> None:
        self._blocked_why = ""
        self._suffers("outbox", None)

    def _blocked(self, exc: Blocked) -> None:
        said = self._blocked_why
        if isinstance(exc, OverBudget):
            # Delivery goes on, and writes: only intake knows when this has passed.
            said, self._budget_why = self._budget_why, exc.detail
            self._suffers("intake", exc.detail)
        elif exc.detail != said:
            self._blocked_why = exc.detail
            self._suffers("outbox", exc.detail)
        if exc.detail != said:
            self._say("outbox.blocked", {"path": str(exc.path), "why": exc.detail})
        # Whoever waits for room on the disk looks again every few seconds: nothing hangs.
        self._scan_done.set()
        self._dispatch.looked.set()

    # --- intake ---------------------------------------------------------------------------

    async def _take_in(self) -> None:
        for spec in self._settings.roots:
            lying = await self._commit(Outbox.lying, spec.backend, spec.persona)
            self._intake.remember(spec, lying)
        started = False
        next_scan = next_every_file = 0.0
        while not self._stop.is_set():
            self._intake_wake = anyio.Event()
            now = time.monotonic()
            every_file = self._every_file or now >= next_every_file
            if every_file or now >= next_scan:
                self._every_file = False
                await self._scan(every_file=every_file)
                self._scan_done.set()
                now = time.monotonic()
                next_scan = now + self._settings.rescan_s
                next_every_file = now + _EVERY_FILE_S if every_file else next_every_file
            touched, self._touched = self._touched, set()
            await self._take(partial(self._look, touched))
            if not started:
                started = True
                await self._started()
            due_in = self._intake.due_in()
            rest = max(0.0, next_scan - time.monotonic())
            with anyio.move_on_after(rest if due_in is None else min(rest, due_in)):
                await self._intake_wake.wait()

    async def _started(self) -> None:
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

    def _look(self, touched: set[str]) -> Iterator[finding.Finding]:
        yield from self._intake.notice(touched)
        yield from self._intake.look()

    async def _scan(self, *, every_file: bool) -> None:
        elsewhere = await self._commit(Outbox.changed_elsewhere)
        if elsewhere != self._elsewhere:
            self._elsewhere = elsewhere
            self._dispatch.wake()
            self._wake_audit()
        rearm = False
        for spec, root in self._roots:
            # The old directory first: what it holds at this moment is not in the new one.
            await self._take_scanned(spec, every_file=every_file)
            changed = await self._in_thread(root.check)
            if changed is None:
                continue
            rearm = True
            why = {"why": root.why} if root.why else {}
            await self._happened(
                f"root.{changed}",
                backend=spec.backend,
                persona=spec.persona,
                path=str(spec.path),
                **why,
            )
            if root.state == "armed":
                await self._meet(spec)
                await self._take_scanned(spec, every_file=True)
        if rearm:
            self._armed.set()
            self._listening.cancel()
        found = self._intake.found()
        if found != self._found:
            self._found = found
            await self._commit(Outbox.set_roots, found)

    async def _take_scanned(self, spec: RootSpec, *, every_file: bool) -> None:
        def scan() -> list[finding.Finding]:
            try:
                return self._intake.scan(spec, every_file=every_file)
            except OSError:
                return []  # it cannot be read, which is its state now: the next check tells

        # Apart from the outbox's thread: a large directory must not hold deliveries.
        if found := await self._in_thread(scan):
            await self._take(lambda: found)

    async def _meet(self, spec: RootSpec) -> None:
        root = (spec.backend, spec.persona, str(spec.path))
        if await self._commit(Outbox.is_met, *root):
            return
        try:
            history = await self._in_thread(self._intake.history, spec)
        except OSError:
            return  # it cannot be listed: it is met when it can be
        await self._commit(Outbox.meet, *root, history)

    async def _take(self, find: Callable[[], Iterable[finding.Finding]]) -> None:
        # Finds, and takes what was found, in one step of the outbox's thread.
        found: list[finding.Finding] = []

        def take(outbox: Outbox) -> None:
            if not found:  # once: what was found is not found again
                found.extend(find())
            for one in found:
                _take_one(outbox, one)

        # It asks what is due in the same transaction, and sends when that is durable.
        self._dispatch.wake()
        try:
            await self._commit.once(take)
            self._budget_why = ""
        except Blocked as exc:
            # Intake waits here, holding one batch, while delivery goes on. One by one, since
            # the room that comes first may be for one.
            self._blocked(exc)
            if not found:  # it never began: another process holds the lock
                found += await self._in_thread(lambda: list(find()))
            for one in found:
                await self._commit(_take_one, one)
                self._dispatch.wake()
            self._suffers("intake", None)

    # --- events ---------------------------------------------------------------------------

    async def _listen(self) -> None:
        wait_s = _REARM_FIRST_S
        while True:
            self._armed = anyio.Event()
            armed = {root.path: root.fd for _, root in self._roots if root.fd is not None}
            if not armed:
                self._suffers("events", None)  # of what? Each root says what is wrong with it
                await self._armed.wait()
                continue
            began = time.monotonic()
            with anyio.CancelScope() as self._listening:
                try:
                    await self._hear(armed)
                except WatchFailed as exc:
                    if time.monotonic() - began > _REARM_MOST_S:
                        wait_s = _REARM_FIRST_S
                    self._suffers("events", str(exc))
                    if wait_s == _REARM_FIRST_S:
                        await self._happened("watch.failed", error=str(exc))
                    await anyio.sleep(wait_s)
                    wait_s = min(2 * wait_s, _REARM_MOST_S)

    async def _hear(self, directories: Mapping[Path, int]) -> None:
        by_inotify = self._settings.events == "inotify"
        async with aclosing(changes(directories, inotify=by_inotify)) as events:
            async for touched in events:
                self._suffers("events", None)
                self._every_file |= not touched
                self._touched |= (ours := set(filter(finding.is_ours, touched)))
                if ours or not touched:
                    self._intake_wake.set()

    # --- audit ----------------------------------------------------------------------------

    def _wrote(self) -> None:
        self._unblocked()
        self._wake_audit()

    def _suffers(self, what: str, why: str | None) -> None:
        self._reporter.problem(what, why)
        self._counts_moved.set()

    def _wake_audit(self) -> None:
        self._audit_wake.set()
        self._counts_moved.set()

    async def _print_events(self) -> None:
        saved, saved_at = self._printed, 0.0
        while True:
            self._audit_wake = anyio.Event()
            await self._flush()
            lag_s: float | None = None
            if self._printed != saved:
                lag_s = max(0.0, saved_at + _PRINTED_LAG_S - time.monotonic())
            with anyio.move_on_after(lag_s):
                await self._audit_wake.wait()
                await anyio.sleep(_GATHER_S)
                continue
            await self._remember_printed()
            saved, saved_at = self._printed, time.monotonic()

    async def _flush(self) -> None:
        async with self._printing:
            while events := await self._commit(Outbox.events, self._printed):
                for event in events:
                    await self._print(event)
                    self._printed = event.id

    async def _print(self, event: Event) -> None:
        while True:
            try:
                await self._writable()
                crash.point("before a line is printed")
                told = unconfirmable(event.fields, self._journal_key)
                self._audit.line(event.name, event.at, {"event_id": event.id, **told})
                crash.point("after a line was printed")
            except OSError:
                # Nobody reads, or the log's disk is full. The rows keep it; turns go on.
                await anyio.sleep(BLOCKED_S)
            else:
                return

    async def _remember_printed(self) -> None:
        with suppress(Blocked):  # lines may then be repeated, should we crash now
            await self._commit.once(Outbox.set_printed, self._printed)

    async def _writable(self) -> None:
        # A pipe that nobody reads would hold a thread, and with it the end of the process.
        if not select.select([], [self._stream], [], 0)[1]:
            await anyio.wait_writable(self._stream)

    # --- metrics --------------------------------------------------------------------------

    async def _serve_metrics(self, address: tuple[str, int]) -> None:
        # Answers matter more: whatever is wrong with it is said, and tried again.
        from paliadin_sidecar import metrics  # noqa: PLC0415 - only where it is wanted

        roots = [(spec.backend, spec.persona) for spec in self._settings.roots]
        path = self._settings.state_dir / FILENAME
        said = ""
        while True:
            try:
                async with metrics.serve(address, path, roots, self.scanned):
                    said = ""
                    self._suffers("metrics", None)
                    await anyio.sleep_forever()
            except metrics.NotServed as exc:
                if said != str(exc):
                    said = str(exc)
                    self._suffers("metrics", said)
                    self._say("metrics.failed", {"why": said})
            await anyio.sleep(_METRICS_AGAIN_S)

    # --- systemd --------------------------------------------------------------------------

    async def _feed_watchdog(self) -> None:
        # From the start: systemd begins to look at it when we are ready, and until then its
        # limit for the start holds. A receiver that is down is none of this.
        while self._systemd.watchdog_s is not None:
            self._scan_done = anyio.Event()
            self._dispatch.looked = anyio.Event()
            await anyio.sleep(self._systemd.watchdog_s / 3)
            self._dispatch.wake()  # idle, it would look once a minute
            await self._scan_done.wait()
            await self._dispatch.looked.wait()
            await self._systemd("WATCHDOG=1")

    async def _say_counts(self) -> None:
        said = ""
        while self._systemd:
            self._counts_moved = anyio.Event()
            counts = dict.fromkeys(_TOLD, 0) | await self._commit(Outbox.counts)
            text = ", ".join(f"{n} {state}" for state, n in counts.items())
            text = "; ".join([text, *(f"{p.what}: {p.why}" for p in self._reporter.problems)])
            if text != said:
                said = text
                await self._systemd(f"STATUS={text}")
            await self._counts_moved.wait()
            await anyio.sleep(_STATUS_LAG_S)


def _since_boot_s() -> float:
    # With the time that the machine was suspended, which a person waits too.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _raise_descriptor_limit() -> int:
    # Returns how many files may be held open; the rest is for the network and the database.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _MOST_HELD
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return _MOST_HELD if soft == resource.RLIM_INFINITY else min(_MOST_HELD, soft // 4)


def _take_one(outbox: Outbox, one: finding.Finding) -> None:
    match one:
        case finding.Settled(arrival):
            outbox.accept(arrival)
        case finding.Hint(key, submitted_turn_id, user_id):
            outbox.hint(key, submitted_turn_id, user_id)
        case finding.Stalled(key, why, detail):
            outbox.note("turn.stalled", key, why=why, detail=detail)
        case finding.Flooded(spec, kinds, untold):
            about = {"backend": spec.backend, "persona": spec.persona, "path": str(spec.path)}
            outbox.happened("root.flooded", about | {"waiting": kinds, "untold": untold})
        case finding.Vanished(key):
            outbox.vanished(key)
        case finding.Gone(key):
            outbox.gone(key)
