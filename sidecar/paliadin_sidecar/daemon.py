"""The daemon: the tasks that carry turns from stage to stage, and their end.

One group of named tasks; one that dies takes the daemon down, for whoever restarts it.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, TextIO

import anyio

from paliadin_sidecar.audit.lines import Audit
from paliadin_sidecar.audit.printer import EventPrinter
from paliadin_sidecar.audit.service import Problems, ServiceEvents
from paliadin_sidecar.delivery.dispatcher import Dispatch
from paliadin_sidecar.delivery.sender import Sender
from paliadin_sidecar.host import state_directory as statedir
from paliadin_sidecar.host.limits import raise_descriptor_limit
from paliadin_sidecar.host.report import Reporter
from paliadin_sidecar.host.systemd import Notify
from paliadin_sidecar.host.threads import Threads
from paliadin_sidecar.intake import turnfile
from paliadin_sidecar.intake.service import IntakeService
from paliadin_sidecar.outbox import opening, upkeep
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from paliadin_sidecar.errors import Blocked
    from paliadin_sidecar.settings import Settings

__all__ = ["run"]

_VERSION = version("paliadin")

#: What an attempt in flight gets at the end, and what is left to print.
_GRACE_S = 5.0
_FLUSH_S = 1.0
#: Threads for names, of which one that does not resolve can hold its thread for half a minute.
_LOOKUPS = 4
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
        # All that a turn's way needs: no flood of anything else can take them.
        self._notify_thread = Threads(1, "notify")
        self._group = GroupCommit(outbox, self._wrote, self._blocked, self._unblocked)
        self._intake = IntakeService(
            settings,
            self._group,
            most_held,
            record=self._happened,
            on_accepted=self._accepted,
            on_blocked=self._blocked,
            on_unblocked=self._has_room,
            on_no_events=partial(self._suffers, "events"),
        )
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
        self._stop = anyio.Event()
        self._systemd = Notify(os.environ, self._notify_thread)
        self._counts_moved = anyio.Event()

    def close(self) -> None:
        self._intake.close()
        self._notify_thread.close()

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
                work.start_soon(self._intake.run, name="intake")
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
                self._intake.stop()

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

    def _accepted(self) -> None:
        # It asks what is due in the same transaction, and sends when that is durable.
        self._dispatch.wake()

    def _has_room(self) -> None:
        self._problems.intake_unblocked()
        self._counts_moved.set()

    def _blocked(self, exc: Blocked) -> None:
        self._problems.outbox_blocked(exc)
        self._counts_moved.set()
        # Whoever waits for room on the disk looks again every few seconds: nothing hangs.
        self._intake.excuse()
        self._dispatch.looked.set()

    async def _started(self) -> None:
        await self._intake.began()
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

    # --- metrics --------------------------------------------------------------------------

    async def _serve_metrics(self, address: tuple[str, int]) -> None:
        from paliadin_sidecar.audit import metrics_endpoint  # noqa: PLC0415 - 5 MB, where wanted

        await metrics_endpoint.serve_until_cancelled(
            address,
            self._settings.state_dir / FILENAME,
            [(spec.backend, spec.persona) for spec in self._settings.roots],
            self._intake.counts,
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
            self._intake.watch_progress()
            self._dispatch.looked = anyio.Event()
            await anyio.sleep(self._systemd.watchdog_s / 3)
            self._dispatch.wake()  # idle, it would look once a minute
            await self._intake.progress()
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
