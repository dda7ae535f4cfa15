"""What became of a delivery: attempts, their ends, and an operator's replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paliadin_sidecar.outbox.event_rows import record_delivery_event, record_event
from paliadin_sidecar.outbox.records import rounded, to_ms, to_ms_or_none
from paliadin_sidecar.outbox.statements import sql

if TYPE_CHECKING:
    from paliadin_sidecar.outbox.database import Database
    from paliadin_sidecar.outbox.records import Delivery

__all__ = ["attempted", "delivered", "mark_dead", "pause", "replay", "resume", "retry"]


def attempted(
    outbox: Database,
    due: Delivery,
    *,
    status: int | None,
    error: str | None,
    ms: float,
    detail: str | None = None,
    told: bool = True,
    keep: int | None = None,
) -> None:
    """Record an attempt; what it led to follows in the same transaction.

    Args:
        due: the delivery, this attempt counted.
        status: what was answered.
        error: why nothing was.
        detail: more about that.
        ms: how long it took.
        told: False for one that is counted and gets no event. The next event says how many
            were not told.
        keep: the events of earlier attempts go, but for those of the first so many.
    """
    now = outbox.now()
    outbox.last_attempt_at = max(outbox.last_attempt_at, now)
    sql.record_attempt(
        outbox.connection,
        delivery=due.id,
        now=now,
        attempts=due.attempts,
        first_attempt_at=to_ms_or_none(due.first_attempt_at),
        refusals=due.refusals,
        refused_at=to_ms_or_none(due.refused_at),
        evidence=due.evidence,
    )
    if not told:
        return
    fields: dict[str, Any] = {"status": status} if error is None else {"error": error}
    if (untold := due.attempts - 1 - due.reported_attempt) > 0:
        fields["untold"] = untold
    if detail is not None:
        fields["detail"] = detail
    record_delivery_event(
        outbox,
        "delivery.attempted",
        due.id,
        attempt=due.attempts,
        **fields,
        duration_ms=rounded(ms),
    )
    sql.mark_reported(outbox.connection, delivery=due.id, now=outbox.now())
    if keep is not None:
        sql.purge_attempt_events(
            outbox.connection, turn=due.turn, webhook_id=due.webhook_id, kept=keep, now=outbox.now()
        )


def delivered(outbox: Database, due: Delivery) -> None:
    """The receiver has it."""
    sql.mark_delivered(outbox.connection, delivery=due.id, now=outbox.now())
    since_accepted_ms = max(0, outbox.now() - to_ms(due.accepted_at))
    record_delivery_event(
        outbox,
        "delivery.delivered",
        due.id,
        attempts=due.attempts,
        since_accepted_ms=since_accepted_ms,
    )


def retry(
    outbox: Database,
    due: Delivery,
    seconds: float,
    *,
    refused_with: int | None = None,
    told: bool = True,
) -> None:
    """Again after so many seconds; it was refused, or it just failed."""
    if not sql.schedule_retry(
        outbox.connection, delivery=due.id, next_attempt_at=outbox.now() + to_ms(seconds)
    ):
        return  # superseded while it was under way
    if not told:
        return
    if refused_with is not None:
        record_delivery_event(
            outbox, "delivery.refused", due.id, status=refused_with, refusals=due.refusals
        )
    record_delivery_event(
        outbox,
        "delivery.retry_scheduled",
        due.id,
        attempt=due.attempts,
        delay_ms=rounded(seconds * 1000),
    )


def mark_dead(outbox: Database, due: Delivery, cause: str) -> None:
    """Give it up, for an operator to see."""
    if not sql.mark_dead(outbox.connection, delivery=due.id, reason=cause, now=outbox.now()):
        return  # superseded while it was under way
    record_delivery_event(outbox, "delivery.dead", due.id, cause=cause, attempts=due.attempts)


def pause(outbox: Database, why: str) -> None:
    """The receiver is not well."""
    sql.set_paused(outbox.connection, at=outbox.now(), why=why)
    record_event(outbox, "receiver.paused", None, why=why)


def resume(outbox: Database, paused_s: float) -> None:
    """The receiver is well again."""
    sql.set_paused(outbox.connection, at=None, why=None)
    record_event(outbox, "receiver.resumed", None, paused_ms=max(0.0, rounded(paused_s * 1000)))


def replay(
    outbox: Database, *, turn_id: str | None = None, dead: bool = False, since: float = 0.0
) -> tuple[int, int]:
    """Send again what was settled, the newest revision of each turn.

    Args:
        turn_id: of this turn only; None for all.
        dead: only what was given up.
        since: only what was accepted since then, in epoch seconds.

    Returns:
        How many will be sent, and how many cannot since their bodies were let go.
    """
    turns = [None]
    if turn_id is not None:
        turns = [row["id"] for row in list(sql.turns_named(outbox.connection, id=turn_id))]
    sent = without_body = 0
    for turn in turns:
        found = list(
            sql.replayable(outbox.connection, turn=turn, dead=int(dead), since=to_ms(since))
        )
        for row in found:
            if not sql.replay(outbox.connection, delivery=row["id"], now=outbox.now()):
                without_body += 1
                continue
            sent += 1
            record_delivery_event(outbox, "delivery.replayed", row["id"])
    return sent, without_body
