"""The daemon: opens the rooms, runs them as named tasks in one group, and ends them in order.

A turn goes through the rooms in this order: intake finds its file, waits until that is complete
and reads it; the outbox commits it; delivery sends it and commits what came of that; audit prints
the events of all this. A task that fails takes the daemon down, for whoever restarts it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TextIO

import anyio

from paliadin_sidecar.audit.service import AuditService
from paliadin_sidecar.delivery.dispatcher import Dispatcher
from paliadin_sidecar.delivery.sender import sender_of
from paliadin_sidecar.host.interruptions import watch_interruptions
from paliadin_sidecar.host.systemd import Notify, feed_watchdog
from paliadin_sidecar.intake.service import IntakeService
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.maintenance import follow_commands, prune_regularly
from paliadin_sidecar.outbox.opening import open_outbox, quarantine_outbox
from paliadin_sidecar.settings import Settings

#: What an attempt in flight gets at the end, and what is left to print.
_GRACE_S = 5.0
_FLUSH_S = 1.0


async def run(
    settings: Settings,
    stream: TextIO,
    on_signal: Callable[[Callable[[], object]], None],
    *,
    quarantine: bool = False,
) -> None:
    """Serve until asked to end.

    Args:
        settings: what to do.
        stream: where the event lines go.
        on_signal: takes what is to be called, in any thread, when it is to end.
        quarantine: move the outbox aside first.

    Raises:
        OutboxError, StateDirError, Locked: it cannot begin, or go on.
    """
    os.umask(0o077)
    stopping, opening = anyio.Event(), anyio.CancelScope()

    def stop() -> None:
        stopping.set()
        opening.cancel()  # it may wait for room on the disk

    def beat_all() -> None:
        # Whoever waits for room on the disk looks again every few seconds: nothing hangs.
        for heartbeat in heartbeats:
            heartbeat.beat()

    def on_external_write() -> None:
        dispatcher.wake()
        audit.events_recorded()

    async def announce_ready() -> None:
        await intake.began()
        await audit.record_started()
        await systemd("READY=1")

    on_signal(partial(asyncio.get_running_loop().call_soon_threadsafe, stop))
    systemd = Notify(os.environ)
    audit = AuditService(settings, stream, systemd.show, beat_all)
    async with AsyncExitStack() as stack:
        if quarantine:
            quarantine_outbox(settings)
        with opening:
            outbox = await open_outbox(stack, settings, audit.opening_blocked)
        if opening.cancelled_caught:
            return
        group = GroupCommit(
            outbox, audit.events_recorded, audit.outbox_blocked, audit.outbox_unblocked
        )
        audit.attach(outbox, group)
        sender = await stack.enter_async_context(sender_of(settings))
        dispatcher = Dispatcher(
            group, sender.attempt, host=settings.host_label, refused_s=settings.refused_s
        )
        intake = IntakeService(
            settings,
            group,
            record=audit.record,
            on_accepted=dispatcher.offer,
            on_unblocked=partial(audit.set_problem, "intake", None),
            on_no_events=partial(audit.set_problem, "events"),
        )
        stack.callback(intake.close)
        heartbeats = [dispatcher.heartbeat, *intake.heartbeats]

        async with anyio.create_task_group() as base:
            base.start_soon(audit.run, intake.counts, name="audit")
            base.start_soon(feed_watchdog, systemd, heartbeats, dispatcher.wake, name="watchdog")
            async with anyio.create_task_group() as work:
                for task, name in (
                    (dispatcher.run, "dispatcher"),
                    (intake.run, "intake"),
                    (announce_ready, "started"),
                ):
                    work.start_soon(task, name=name)
                work.start_soon(
                    follow_commands, group, settings.rescan_s, on_external_write, name="commands"
                )
                work.start_soon(prune_regularly, group, outbox.retention, name="upkeep")
                work.start_soon(
                    watch_interruptions,
                    settings.rescan_s,
                    [sender.interrupted, dispatcher.interrupted],
                    name="interruptions",
                )
                await stopping.wait()
                await systemd("STOPPING=1")
                # What intake has not committed is found by the next start.
                intake.stop()
                await audit.record("service.stopping")
                await dispatcher.stop(_GRACE_S)
                work.cancel_scope.cancel()
            await audit.record("service.stopped")
            with anyio.move_on_after(_FLUSH_S):
                await audit.flush()
            base.cancel_scope.cancel()
