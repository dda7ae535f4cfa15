"""The daemon: opens what the rooms need, runs them in one group of named tasks, and ends them.

A turn goes through the rooms in this order: intake finds and reads its file, the outbox commits
it, delivery sends it and commits what came of that, and audit prints the events of both. A task
that fails takes the daemon down, for whoever restarts it.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, TextIO

import anyio

from paliadin_sidecar.audit.lines import Audit
from paliadin_sidecar.audit.printer import EventPrinter
from paliadin_sidecar.audit.service import Problems, ServiceEvents
from paliadin_sidecar.delivery.dispatcher import Dispatcher
from paliadin_sidecar.delivery.sender import Sender
from paliadin_sidecar.host.limits import raise_descriptor_limit
from paliadin_sidecar.host.report import Reporter
from paliadin_sidecar.host.state_directory import journal_key
from paliadin_sidecar.host.systemd import Notify
from paliadin_sidecar.host.threads import Threads
from paliadin_sidecar.host.watchdog import feed_watchdog
from paliadin_sidecar.intake.service import IntakeService
from paliadin_sidecar.intake.turnfile import ignore_lease_breaks
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.opening import open_outbox, quarantine_outbox
from paliadin_sidecar.outbox.upkeep import follow_commands, prune_regularly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from paliadin_sidecar.errors import Blocked
    from paliadin_sidecar.outbox.outbox import Outbox
    from paliadin_sidecar.settings import Settings

__all__ = ["run"]

_VERSION = version("paliadin")

#: What an attempt in flight gets at the end, and what is left to print.
_GRACE_S = 5.0
_FLUSH_S = 1.0
#: Threads for names, of which one that does not resolve can hold its thread for half a minute.
_LOOKUPS = 4


async def run(
    settings: Settings,
    stream: TextIO,
    on_signal: Callable[[Callable[[], object]], None],
    *,
    quarantine: bool = False,
    unknown: Iterable[tuple[str, str]] = (),
) -> None:
    """Serve until told to end.

    Args:
        settings: what to do.
        stream: where the event lines go.
        on_signal: takes what is to be called, in any thread, when it is to end.
        quarantine: move the outbox aside first.
        unknown: variables that are misspelt, each with the nearest that is right.

    Raises:
        OutboxError, StateDirError, Locked: it cannot begin, or go on.
    """
    os.umask(0o077)
    ignore_lease_breaks()
    audit = Audit(stream, settings.log_level)
    stopping, opening = anyio.Event(), anyio.CancelScope()

    def stop() -> None:
        stopping.set()
        opening.cancel()  # it may wait for room on the disk

    def say_blocked(why: str) -> None:
        audit.print_unrecorded("outbox.blocked", {"path": str(settings.state_dir), "why": why})

    on_signal(partial(asyncio.get_running_loop().call_soon_threadsafe, stop))
    with ExitStack() as stack:
        if quarantine:
            quarantine_outbox(settings)
        with opening:
            outbox = await open_outbox(stack, settings, say_blocked)
        if opening.cancelled_caught:
            return
        lookups = Threads(_LOOKUPS, "lookup")
        stack.callback(lookups.close)
        async with Sender(
            settings.callback_url,
            settings.secrets,
            timeout_s=settings.callback_timeout_s,
            ca_file=settings.callback_ca_file,
            lookups=lookups,
        ) as sender:
            daemon = _Daemon(settings, outbox, sender, audit, stream)
            stack.callback(daemon.intake.close)
            await daemon.serve(stopping, unknown)


class _Daemon:
    # The rooms, and what one of them tells another.

    def __init__(
        self, settings: Settings, outbox: Outbox, sender: Sender, audit: Audit, stream: TextIO
    ) -> None:
        self.settings = settings
        self.audit = audit
        self.systemd = Notify(os.environ)
        self.reporter = Reporter(settings.state_dir, _VERSION, settings.variables())
        self.problems = Problems(audit, self.reporter, self.systemd)
        self.group = GroupCommit(
            outbox, self.on_events, self.on_blocked, self.problems.outbox_unblocked
        )
        self.events = ServiceEvents(self.group, audit)
        self.printer = EventPrinter(
            self.group,
            audit,
            stream,
            key=journal_key(settings.state_dir, create=True),
            printed=outbox.transaction([outbox.printed])[0],
        )
        self.dispatcher = Dispatcher(
            self.group,
            sender.attempt,
            host=settings.host_label,
            refused_s=settings.refused_s,
        )
        self.intake = IntakeService(
            settings,
            self.group,
            raise_descriptor_limit(),
            record=self.events.record,
            on_accepted=self.dispatcher.offer,
            on_blocked=self.on_blocked,
            on_unblocked=self.problems.intake_unblocked,
            on_no_events=partial(self.problems.set, "events"),
        )
        self.heartbeats = [self.dispatcher.heartbeat, *self.intake.heartbeats]

    async def serve(self, stopping: anyio.Event, unknown: Iterable[tuple[str, str]]) -> None:
        async with anyio.create_task_group() as base:
            base.start_soon(self.printer.run, name="audit")
            base.start_soon(
                feed_watchdog, self.systemd, self.heartbeats, self.dispatcher.wake, name="watchdog"
            )
            if self.settings.metrics is not None:
                base.start_soon(self.serve_metrics, self.settings.metrics, name="metrics")
            async with anyio.create_task_group() as work:
                work.start_soon(self.dispatcher.run, name="dispatcher")
                work.start_soon(self.intake.run, name="intake")
                work.start_soon(self.say_started, unknown, name="started")
                work.start_soon(
                    follow_commands,
                    self.group,
                    self.settings.rescan_s,
                    self.on_command,
                    name="commands",
                )
                work.start_soon(prune_regularly, self.group, name="upkeep")
                await stopping.wait()
                await self.systemd("STOPPING=1")
                # What intake has not committed is found by the next start.
                self.intake.stop()
                await self.events.record("service.stopping")
                await self.dispatcher.stop(_GRACE_S)
                work.cancel_scope.cancel()
            await self.events.record("service.stopped")
            with anyio.move_on_after(_FLUSH_S):
                await self.printer.flush()
            base.cancel_scope.cancel()

    async def say_started(self, unknown: Iterable[tuple[str, str]]) -> None:
        await self.intake.began()
        self.reporter.ready()  # before its line: who has read that asks how it does
        await self.events.record(
            "service.started",
            version=_VERSION,
            pid=os.getpid(),
            host=self.settings.host_label,
            roots=[str(spec.path) for spec in self.settings.roots],
        )
        for name, nearest in unknown:
            await self.events.record("service.unknown_variable", variable=name, nearest=nearest)
        await self.systemd("READY=1")

    async def serve_metrics(self, address: tuple[str, int]) -> None:
        from paliadin_sidecar.audit import metrics_endpoint  # noqa: PLC0415 - 5 MB, where wanted

        await metrics_endpoint.serve_until_cancelled(
            address,
            self.settings.state_dir / FILENAME,
            [(spec.backend, spec.persona) for spec in self.settings.roots],
            self.intake.counts,
            self.on_metrics,
        )

    def on_events(self) -> None:
        self.problems.outbox_unblocked()
        self.printer.wake()

    def on_command(self) -> None:
        self.dispatcher.wake()
        self.printer.wake()

    def on_blocked(self, exc: Blocked) -> None:
        self.problems.outbox_blocked(exc)
        # Whoever waits for room on the disk looks again every few seconds: nothing hangs.
        for heartbeat in self.heartbeats:
            heartbeat.beat()

    def on_metrics(self, why: str | None) -> None:
        self.problems.set("metrics", why)
        if why is not None:
            self.audit.print_unrecorded("metrics.failed", {"why": why})
