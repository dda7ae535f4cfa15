"""What the daemon suffers from at the moment, for whoever asks how it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paliadin_sidecar.errors import Blocked, OverBudget
from paliadin_sidecar.host.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from paliadin_sidecar.audit.lines import Audit
    from paliadin_sidecar.settings import Settings

__all__ = ["Problems"]


class Problems:
    """What the service suffers from now, for `status`, `check` and `systemctl status`.

    Args:
        settings: of the daemon; its state directory has the report that `status` reads.
        version: of the program.
        audit: prints that the outbox is blocked, which no row can say.
        show_status: is told what there is.
    """

    def __init__(
        self, settings: Settings, version: str, audit: Audit, show_status: Callable[[str], None]
    ) -> None:
        self._reporter = Reporter(settings.state_dir, version, settings.variables())
        self._audit = audit
        self._show_status = show_status
        self._blocked_why = ""
        self._budget_why = ""

    def show_ready(self) -> None:
        """The first scan is done."""
        self._reporter.ready()

    def set(self, what: str, why: str | None) -> None:
        """Something is wrong from now on; with None, no more. See `host.report.Problem`."""
        if self._reporter.problem(what, why):
            problems = self._reporter.problems
            self._show_status("; ".join(f"{each.what}: {each.why}" for each in problems))

    def outbox_blocked(self, exc: Blocked) -> None:
        """The outbox refuses to take something. Each reason is printed once."""
        told = self._blocked_why
        if isinstance(exc, OverBudget):
            # Delivery goes on, and writes: only intake knows when this has passed.
            told, self._budget_why = self._budget_why, exc.detail
            self.set("intake", exc.detail)
        elif exc.detail != told:
            self._blocked_why = exc.detail
            self.set("outbox", exc.detail)
        if exc.detail != told:
            fields = {"path": str(exc.path), "why": exc.detail}
            self._audit.print_unrecorded("outbox.blocked", fields)

    def outbox_unblocked(self) -> None:
        """The outbox takes what comes."""
        if self._blocked_why:
            self._blocked_why = ""
            self.set("outbox", None)

    def intake_unblocked(self) -> None:
        """All that was held back for lack of room is accepted."""
        self._budget_why = ""
        self.set("intake", None)
