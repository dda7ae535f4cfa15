"""What the daemon suffers from at the moment, for whoever asks how it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paliadin_sidecar.errors import Blocked, OverBudget

if TYPE_CHECKING:
    from paliadin_sidecar.audit.lines import Audit
    from paliadin_sidecar.host.report import Reporter
    from paliadin_sidecar.host.systemd import Notify

__all__ = ["Problems"]


class Problems:
    """What the service suffers from now, for `status`, `check` and `systemctl status`.

    Args:
        audit: prints that the outbox is blocked, which no row can say.
        reporter: keeps what there is.
        systemd: is told what there is.
    """

    def __init__(self, audit: Audit, reporter: Reporter, systemd: Notify) -> None:
        self._audit = audit
        self._reporter = reporter
        self._systemd = systemd
        self._blocked_why = ""
        self._budget_why = ""

    def set(self, what: str, why: str | None) -> None:
        """Something is wrong from now on; with None, no more. See `host.report.Problem`."""
        if self._reporter.problem(what, why):
            problems = self._reporter.problems
            self._systemd.show("; ".join(f"{each.what}: {each.why}" for each in problems))

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
