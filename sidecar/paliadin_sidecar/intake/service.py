"""All roots together: a loop for each, and what they report as one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from paliadin_sidecar.errors import Blocked
from paliadin_sidecar.host.resources import raise_descriptor_limit
from paliadin_sidecar.intake.events import IntakeEvent, record_events
from paliadin_sidecar.intake.loop import RootIntake
from paliadin_sidecar.intake.turnfile import ignore_lease_breaks
from paliadin_sidecar.outbox import queries
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.records import Delivery
from paliadin_sidecar.settings import Settings


class IntakeService:
    """The intake of all roots.

    Args:
        settings: what to do.
        group: the outbox.
        record: records an event of the service.
        on_accepted: called with what was committed and can be sent.
        on_unblocked: called when no root holds a batch any more.
        on_no_events: called with why roots miss file notifications; None where none does.

    Attributes:
        heartbeats: of each root's loop.
    """

    def __init__(
        self,
        settings: Settings,
        group: GroupCommit,
        *,
        record: Callable[..., Awaitable[None]],
        on_accepted: Callable[[list[Delivery]], None],
        on_unblocked: Callable[[], object],
        on_no_events: Callable[[str | None], object],
    ) -> None:
        ignore_lease_breaks()
        max_open_files = raise_descriptor_limit() // len(settings.roots)
        self._group = group
        self.record = record
        self._on_unblocked = on_unblocked
        self._on_no_events = on_no_events
        self._on_accepted = on_accepted
        self._blocked_roots = 0
        self._described: list[dict[str, object]] = []
        self.roots = [
            RootIntake(spec, settings, max_open_files, group, self) for spec in settings.roots
        ]
        self.heartbeats = [root.heartbeat for root in self.roots]

    async def run(self) -> None:
        """Take in what comes to each root, until cancelled."""
        async with anyio.create_task_group() as tasks:
            for root in self.roots:
                tasks.start_soon(root.run, name="intake")

    async def began(self) -> None:
        """Wait until each root was looked through once, or does not answer."""
        for root in self.roots:
            await root.began.wait()

    def stop(self) -> None:
        """Take in nothing more."""
        for root in self.roots:
            root.stop()

    def close(self) -> None:
        """Let go of all descriptors and threads."""
        for root in self.roots:
            root.close()

    def counts(self) -> tuple[int, int]:
        """How many scans there were, and how many files only a scan found."""
        intakes = [root.files for root in self.roots]
        return sum(one.scans for one in intakes), sum(one.only_scanned for one in intakes)

    # --- called by a root: see `loop.IntakeListener` ------------------------------------------

    async def commit(self, events: list[IntakeEvent]) -> None:
        """Write down what a root found. While the outbox is blocked this root waits."""
        try:
            accepted = await self._group.commit(record_events, events)
        except Blocked:
            # The root holds these, while delivery goes on. One by one, since the room that comes
            # first may be for one.
            self._blocked_roots += 1
            for event in events:
                accepted = await self._group.commit_when_possible(record_events, [event])
                self._on_accepted(accepted)
            self._blocked_roots -= 1
            if not self._blocked_roots:
                self._on_unblocked()
        else:
            self._on_accepted(accepted)

    async def save_root_states(self) -> None:
        """Write down what all roots are and hold, where that changed."""
        described = [root.files.describe() for root in self.roots]
        if described != self._described:
            self._described = described
            await self._group.commit_when_possible(queries.set_roots, described)

    def report_missing_events(self) -> None:
        """Say which roots miss file notifications."""
        failed = [f"{r.spec.path} ({r.no_events})" for r in self.roots if r.no_events]
        self._on_no_events(", ".join(failed) or None)
