"""Decides what an attempt's outcome leads to, and records it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from paliadin_sidecar.delivery import policy
from paliadin_sidecar.delivery.evidence import FaultEvidence
from paliadin_sidecar.delivery.policy import Verdict
from paliadin_sidecar.errors import Blocked
from paliadin_sidecar.failpoints import failpoint
from paliadin_sidecar.outbox import transitions
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.records import Delivery, Outcome


@dataclass
class Recorder:
    """Decides what becomes of a delivery, and records it with the attempt.

    Args:
        group: runs the outbox's functions.
        refused_s, random: see `policy.decide`.
        wall: the clock, in epoch seconds.
        max_delay_s: the longest delay after an attempt that reached nobody.
    """

    group: GroupCommit
    refused_s: float
    random: Callable[[], float]
    wall: Callable[[], float]
    max_delay_s: Callable[[], float]
    _evidence: FaultEvidence = field(init=False, default_factory=FaultEvidence)

    async def record(
        self, delivery: Delivery, outcome: Outcome, verdict: Verdict, started_at: float
    ) -> policy.Decision:
        """Count an attempt, decide, and write both down; while the outbox is blocked, wait.

        Once this has begun it is written down, also when everything is being cancelled.

        Args:
            delivery: its history is brought up to date.
            outcome: of the attempt.
            verdict: what that says.
            started_at: when the attempt began, in epoch seconds.
        """
        self._count(delivery, verdict, started_at)
        now = self.wall()
        decision = policy.decide(
            verdict,
            delivery,
            now,
            refused_s=self.refused_s,
            random=self.random,
            floor_s=policy.retry_after_s(outcome.retry_after, now),
            ceiling_s=self.max_delay_s() if outcome.status is None else policy.MAX_BACKOFF_S,
        )
        # The first attempts of a delivery get an event each, later ones now and then.
        in_full = delivery.attempts <= policy.REPORTED_IN_FULL

        def write(outbox: Outbox) -> None:
            match decision:
                case policy.Delivered():
                    transitions.record_delivered(outbox, delivery, outcome, now)
                case policy.Dead(cause):
                    transitions.record_dead(outbox, delivery, outcome, cause)
                case policy.Retry(seconds):
                    transitions.record_retry(
                        outbox,
                        delivery,
                        outcome,
                        seconds,
                        refused=verdict is Verdict.REFUSED,
                        reported=in_full or policy.is_reported(delivery.reported_at, now),
                        keep=None if in_full else policy.REPORTED_IN_FULL,
                    )

        if isinstance(decision, policy.Delivered):
            failpoint("before an acknowledgement is recorded")
            # Nobody waits for it: at a trickle it would have a flush of its own.
            await self.group.commit_with_next(write)
            failpoint("after an acknowledgement was recorded")
        else:
            await self.group.commit_when_possible(write)
        return decision

    async def record_said(self, delivery: Delivery, outcome: Outcome) -> None:
        """Keep what the receiver said when it refused, once that is known.

        While the outbox is blocked it is not kept.
        """
        if outcome.said is not None and (said := await outcome.said) is not None:
            with suppress(Blocked):
                await self.group.commit(transitions.record_said, delivery.id, said)

    def _count(self, delivery: Delivery, verdict: Verdict, started_at: float) -> None:
        delivery.attempts += 1
        if delivery.first_attempt_at is None:
            delivery.first_attempt_at = started_at
        if verdict is Verdict.REFUSED:
            delivery.refusals += 1
            if delivery.refused_at is None:
                delivery.refused_at = started_at
        if verdict is Verdict.ACKNOWLEDGED:
            self._evidence.acknowledged(delivery.turn)
        elif verdict is Verdict.REFUSED or verdict is Verdict.FAILED:
            delivery.evidence += self._evidence.failed(delivery.turn)
        else:
            self._evidence.not_acknowledged(delivery.turn)
