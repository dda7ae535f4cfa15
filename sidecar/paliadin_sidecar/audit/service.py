"""All that the daemon reports of itself and its turns: event lines, its problems, and metrics."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import TextIO

import anyio

from paliadin_sidecar.audit.lines import Audit
from paliadin_sidecar.audit.printer import EventPrinter
from paliadin_sidecar.errors import Blocked, OverBudget
from paliadin_sidecar.host.report import Reporter
from paliadin_sidecar.outbox import event_rows
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.held import held_transactions_reported
from paliadin_sidecar.settings import Settings

_VERSION = version("paliadin")


class AuditService:
    """The audit of one daemon, which can use it once its outbox is open and `attach` was called.

    Args:
        settings: of the daemon.
        stream: where event lines go.
        show_status: shows a text to whoever asks systemd how the daemon does.
        on_blocked: called each time that somebody waits since the outbox is blocked.
    """

    def __init__(
        self,
        settings: Settings,
        stream: TextIO,
        show_status: Callable[[str], None],
        on_blocked: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._show_status = show_status
        self._on_blocked = on_blocked
        self._changing = threading.Lock()
        self._lines = Audit(stream, settings.log_level)

    def attach(self, outbox: Outbox, group: GroupCommit) -> None:
        """From now on events are recorded in this outbox, and printed from it."""
        self._outbox, self._group = outbox, group
        self._reporter = Reporter(self._settings.state_dir, _VERSION, self._settings.variables())
        self._printer = EventPrinter(outbox, group, self._lines)

    async def run(self, scan_counts: Callable[[], tuple[int, int]]) -> None:
        """Print events and serve metrics, until cancelled.

        Args:
            scan_counts: how often a root was scanned, and how many files only a scan found.
        """
        with held_transactions_reported(lambda: self._outbox.began_at, self._disk_held):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._printer.run, name="printer")
                if self._settings.metrics is not None:
                    from paliadin_sidecar.audit import metrics_endpoint  # noqa: PLC0415 - 5 MB, for those who want it

                    serve = metrics_endpoint.serve_until_cancelled
                    about = self._settings, scan_counts, self._metrics_failed
                    tasks.start_soon(serve, *about, name="metrics")

    async def flush(self) -> None:
        """Print what is recorded and not printed yet."""
        await self._printer.flush()

    async def record(self, name: str, **fields: object) -> None:
        """Record an event of the service, which is printed from its row as every other.

        Where the outbox takes nothing, it is printed without a row: no state depends on it.

        Raises:
            OutboxError: it was not recorded, and nothing else will be.
        """
        try:
            await self._group.commit(event_rows.record_service_event, name, fields)
        except Blocked:
            self._lines.print_unrecorded(name, fields)

    async def record_started(self) -> None:
        """All is ready: show it to `status`, and record it with what looks wrong."""
        self._reporter.ready()  # before its line: who has read that asks how it does
        await self.record(
            "service.started",
            version=_VERSION,
            pid=os.getpid(),
            host=self._settings.host_label,
            roots=[str(spec.path) for spec in self._settings.roots],
        )
        for name, nearest in self._settings.unknown:
            await self.record("service.unknown_variable", variable=name, nearest=nearest)

    def opening_blocked(self, why: str) -> None:
        """The outbox cannot be opened yet, so no row can say so."""
        fields = {"path": str(self._settings.state_dir), "why": why}
        self._lines.print_unrecorded("outbox.blocked", fields)

    def set_problem(self, what: str, why: str | None) -> bool:
        """Something is wrong from now on; with None, no more. Returns whether that is new.

        It is shown by `status`, `check` and `systemctl status`; see `host.report.Problem`.
        """
        with self._changing:
            is_new = self._reporter.problem(what, why)
            if is_new:
                problems = self._reporter.report.problems
                self._show_status("; ".join(f"{each.what}: {each.why}" for each in problems))
        return is_new

    def outbox_blocked(self, exc: Blocked) -> None:
        """Somebody waits since the outbox refuses to take something. Each reason is printed once.

        No row can say so.
        """
        # Over its budget delivery goes on, and writes: only intake knows when that has passed.
        what = "intake" if isinstance(exc, OverBudget) else "outbox"
        if self.set_problem(what, exc.detail):
            fields = {"path": str(exc.path), "why": exc.detail}
            self._lines.print_unrecorded("outbox.blocked", fields)
        self._on_blocked()

    def outbox_unblocked(self) -> None:
        """The outbox takes what comes."""
        self.set_problem("outbox", None)

    def events_recorded(self) -> None:
        """Events were committed, by this process or by a command: print them."""
        self.outbox_unblocked()
        self._printer.wake()

    def _disk_held(self, why: str | None) -> None:
        # In a thread of its own; the event loop waits for the disk.
        if self.set_problem("disk", why) and why is not None:
            fields = {"path": str(self._settings.state_dir), "why": why}
            self._lines.print_unrecorded("outbox.blocked", fields)

    def _metrics_failed(self, why: str | None) -> None:
        if self.set_problem("metrics", why) and why is not None:
            self._lines.print_unrecorded("metrics.failed", {"why": why})
