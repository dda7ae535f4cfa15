"""What became of a delivery: attempts and what they led to, and an operator's replay."""

from __future__ import annotations

from typing import Any

from paliadin_sidecar.outbox.database import Outbox, sql
from paliadin_sidecar.outbox.event_rows import delivery_subject, record_event
from paliadin_sidecar.outbox.maintenance import drop_bodies
from paliadin_sidecar.outbox.records import (
    NOT_KNOWN,
    Delivery,
    Outcome,
    State,
    to_ms,
    to_ms_or_none,
)


def record_delivered(
    outbox: Outbox, delivery: Delivery, outcome: Outcome, at: float | None = None
) -> None:
    """Record the attempt after which the receiver has it; the delivery counts it already.

    Args:
        delivery: what was sent.
        outcome: of the attempt.
        at: when it was acknowledged, in epoch seconds, if it is recorded later; None: now.
    """
    at_ms = outbox.now() if at is None else to_ms(at)
    values = _attempted(outbox, delivery) | {"settled_at": at_ms}
    if not outbox.execute(sql.record_delivered, values).rowcount:
        return  # erased while it was under way
    _record_attempt_event(outbox, delivery, outcome)
    since_accepted_ms = max(0, at_ms - to_ms(delivery.accepted_at))
    ended = {"attempts": delivery.attempts, "since_accepted_ms": since_accepted_ms}
    record_event(outbox, "delivery.delivered", delivery.turn, delivery.subject | ended)
    if not outbox.retention.answers_s:
        drop_bodies(outbox, [delivery.id])


def record_retry(
    outbox: Outbox,
    delivery: Delivery,
    outcome: Outcome,
    delay_s: float,
    *,
    refused: bool = False,
    reported: bool = True,
    keep: int | None = None,
) -> None:
    """Record an attempt after which it is tried again.

    Args:
        delivery: what was sent, this attempt counted.
        outcome: of the attempt.
        delay_s: seconds until the next attempt.
        refused: whether the receiver refused it, or it just failed.
        reported: False for an attempt that is counted and gets no event. The next event says how
            many got none.
        keep: None for one of the first attempts, all of whose events are written. Otherwise the
            attempt's event alone is, and those of earlier attempts go, but for the first so many.
    """
    values = _attempted(outbox, delivery, reported=reported)
    next_attempt_at = outbox.now() + to_ms(delay_s)
    row = outbox.one(sql.record_retry, values | {"next_attempt_at": next_attempt_at})
    if row is None:
        return  # erased while it was under way
    outbox.retries_from = min(outbox.retries_from, next_attempt_at)
    if reported:
        _record_attempt_event(outbox, delivery, outcome)
    if keep is not None:
        if reported:
            purged = {"turn": delivery.turn, "webhook_id": delivery.webhook_id, "kept": keep}
            outbox.execute(sql.purge_attempt_events, purged | {"now": outbox.now()})
        return
    if row["state"] != State.PENDING:
        return  # superseded while it was under way
    if refused:
        about = {"status": outcome.status, "refusals": delivery.refusals}
        record_event(outbox, "delivery.refused", delivery.turn, delivery.subject | about)
    planned = {"attempt": delivery.attempts, "delay_ms": round(delay_s * 1000, 1)}
    record_event(outbox, "delivery.retry_scheduled", delivery.turn, delivery.subject | planned)


def record_dead(outbox: Outbox, delivery: Delivery, outcome: Outcome, cause: str) -> None:
    """Record the attempt after which it is given up, for an operator to see."""
    values = _attempted(outbox, delivery)
    row = outbox.one(sql.record_dead, values | {"cause": cause})
    if row is None:
        return  # erased while it was under way
    _record_attempt_event(outbox, delivery, outcome)
    if row["state"] == State.DEAD:  # else it was superseded while it was under way
        ended = {"cause": cause, "attempts": delivery.attempts}
        record_event(outbox, "delivery.dead", delivery.turn, delivery.subject | ended)


def record_said(outbox: Outbox, delivery: int, said: str) -> None:
    """Keep what the receiver said when it refused a delivery; no write where that is the same."""
    outbox.execute(sql.record_said, {"delivery": delivery, "said": said})


def shorten_delays(outbox: Outbox, longest_s: float) -> None:
    """Let every delivery that waits for its next attempt be due.

    Args:
        longest_s: what waits for longer than this does so since the receiver asked for it.
    """
    values = {"now": outbox.now(), "longest": to_ms(longest_s)}
    if outbox.execute(sql.shorten_delays, values).rowcount:
        outbox.retries_from = NOT_KNOWN


def pause(outbox: Outbox, why: str) -> None:
    """Record that the receiver is not well."""
    outbox.execute(sql.set_paused, {"at": outbox.now(), "why": why})
    record_event(outbox, "receiver.paused", None, {"why": why})


def resume(outbox: Outbox, paused_s: float) -> None:
    """Record that the receiver is well again."""
    outbox.execute(sql.set_paused, {"at": None, "why": None})
    paused_ms = max(0.0, round(paused_s * 1000, 1))
    record_event(outbox, "receiver.resumed", None, {"paused_ms": paused_ms})


def replay(
    outbox: Outbox, *, turn_id: str | None = None, dead: bool = False, since: float = 0.0
) -> tuple[int, list[str]]:
    """Send again what was settled, the newest revision of each turn.

    Args:
        turn_id: of this turn only; None for all.
        dead: only what was given up.
        since: only what was accepted or settled since then, in epoch seconds: a receiver whose
            database is of that time lacks all that it acknowledged later, however old it is.

    Returns:
        How many will be sent, and the turns that cannot be since their bodies were purged.
    """
    turns = [None]
    if turn_id is not None:
        turns = [row["id"] for row in outbox.execute(sql.turns_named, {"id": turn_id})]
    sent, without_body = 0, []
    for turn in turns:
        wanted = {"turn": turn, "dead": int(dead), "since": to_ms(since)}
        for row in outbox.execute(sql.replayable, wanted).fetchall():
            values = {"delivery": row["id"], "now": outbox.now()}
            if not outbox.execute(sql.replay, values).rowcount:
                without_body.append(row["turn_id"])
                continue
            sent += 1
            record_event(outbox, "delivery.replayed", row["turn"], delivery_subject(row))
    return sent, without_body


def _attempted(outbox: Outbox, delivery: Delivery, *, reported: bool = True) -> dict[str, Any]:
    # The values of the columns that an attempt changes.
    now = outbox.now()
    return {
        "delivery": delivery.id,
        "now": now,
        "attempts": delivery.attempts,
        "first_attempt_at": to_ms_or_none(delivery.first_attempt_at),
        "refusals": delivery.refusals,
        "refused_at": to_ms_or_none(delivery.refused_at),
        "evidence": delivery.evidence,
        "reported_at": now if reported else to_ms_or_none(delivery.reported_at),
        "reported_attempt": delivery.attempts if reported else delivery.reported_attempt,
    }


def _record_attempt_event(outbox: Outbox, delivery: Delivery, outcome: Outcome) -> None:
    fields = delivery.subject | {"attempt": delivery.attempts}
    if outcome.error is None:
        fields["status"] = outcome.status
    else:
        fields["error"] = outcome.error
    if (untold := delivery.attempts - 1 - delivery.reported_attempt) > 0:
        fields["untold"] = untold
    if outcome.detail is not None:
        fields["detail"] = outcome.detail
    fields["duration_ms"] = round(outcome.ms, 1)
    record_event(outbox, "delivery.attempted", delivery.turn, fields)
