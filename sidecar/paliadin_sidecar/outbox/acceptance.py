"""What intake finds becomes turns and deliveries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from paliadin_contract.callback import Answer, Failure, TurnCompleted, TurnFailed, encode
from paliadin_contract.ids import webhook_id
from paliadin_sidecar.errors import OverBudget
from paliadin_sidecar.outbox.bodies import pack
from paliadin_sidecar.outbox.database import LATE_S
from paliadin_sidecar.outbox.event_rows import record_event
from paliadin_sidecar.outbox.maintenance import purge_bodies
from paliadin_sidecar.outbox.records import ANY_TIME, to_ms
from paliadin_sidecar.outbox.statements import Row, sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paliadin_sidecar.outbox.database import Database
    from paliadin_sidecar.outbox.records import Arrival, TurnKey

__all__ = [
    "accept",
    "is_known_root",
    "mark_gone",
    "mark_vanished",
    "present_files",
    "record_hint",
    "record_turn_event",
    "register_root",
]


def record_hint(outbox: Database, key: TurnKey, submitted_turn_id: str, user_id: str) -> None:
    """Keep what a turn's token said; the first one counts."""
    turn = find_or_add_turn(outbox, key)
    sql.record_hint(
        outbox.connection, turn=turn["id"], submitted_turn_id=submitted_turn_id, user_id=user_id
    )


def accept(outbox: Database, arrival: Arrival) -> bool:
    """Take a settled file: freeze its body and id, or only its event. True if it is sent.

    The same content as before is nothing new. A later revision supersedes what is still
    undelivered of the turn. Only audited are: a change that has no text, one that comes
    late, and a failure after an answer.

    Where the outbox takes more than it may, some of what the receiver has goes before its
    time; what is undelivered never goes.

    Raises:
        OverBudget: nothing is left that may go.
    """
    turn = find_or_add_turn(outbox, arrival.key)
    seen = {
        "turn": turn["id"],
        "fingerprint": arrival.fingerprint,
        "content_key": arrival.content_key,
    }
    # Nothing new, or it came back to what the receiver has.
    if arrival.content_key in (turn["seen_content_key"], turn["sent_content_key"]):
        sql.update_seen(outbox.connection, **seen)
        return False
    why_not = _why_not(outbox, arrival, turn)
    about: dict[str, Any] = {"bytes": arrival.size, "sha256": arrival.sha256}
    if why_not is not None:
        sql.update_seen(outbox.connection, **seen)
        name = "turn.revised" if turn["answered_at"] is not None else "turn.vanished"
        record_event(outbox, name, turn, **about, pushed=False, why=why_not)
        return False
    _make_room(outbox)
    revision = turn["revision"] + 1
    id_ = webhook_id(
        arrival.key.backend, arrival.key.persona, arrival.key.turn_id, revision, arrival.content_key
    )
    superseded = []
    if revision > 1:
        found = sql.supersede(outbox.connection, turn=turn["id"], now=outbox.now())
        superseded = [row["webhook_id"] for row in found]
    delivery = _add_delivery(
        outbox, turn["id"], arrival, revision=revision, id_=id_, state="pending"
    )
    packed = pack(_body(outbox, arrival, turn, revision))
    sql.add_body(
        outbox.connection,
        delivery=delivery,
        bytes=packed.data,
        size=packed.size,
        deflated=packed.deflated,
    )
    answered_at = turn["answered_at"]
    if answered_at is None and arrival.reason is None:
        answered_at = outbox.now()
    sql.update_revision(outbox.connection, **seen, revision=revision, answered_at=answered_at)
    if arrival.reason:
        name, about["reason"] = "turn.failed", arrival.reason
        if arrival.why:
            about["why"] = arrival.why
    else:
        name, about["pushed"] = "turn.accepted" if revision == 1 else "turn.revised", True
    if superseded:
        about["superseded"] = superseded
    record_event(
        outbox,
        name,
        turn,
        revision=revision,
        webhook_id=id_,
        **about,
        settle_ms=max(0, outbox.now() - to_ms(arrival.completed_at.timestamp())),
    )
    return True


def mark_gone(outbox: Database, key: TurnKey) -> None:
    """Note that a turn's file is no longer there."""
    sql.mark_gone(
        outbox.connection,
        backend=key.backend,
        persona=key.persona,
        turn_id=key.turn_id,
        now=outbox.now(),
    )


def mark_vanished(outbox: Database, key: TurnKey) -> None:
    """Note that a file went before it could be opened; no event if the turn was taken."""
    turn = find_or_add_turn(outbox, key)
    if turn["seen_content_key"] is None:
        record_event(outbox, "turn.vanished", turn)
    sql.mark_gone(
        outbox.connection,
        backend=key.backend,
        persona=key.persona,
        turn_id=key.turn_id,
        now=outbox.now(),
    )


def record_turn_event(outbox: Database, name: str, key: TurnKey, **fields: Any) -> None:  # noqa: ANN401 - JSON values
    """Record an event of a turn that changes no state."""
    record_event(outbox, name, find_or_add_turn(outbox, key), **fields)


def is_known_root(outbox: Database, backend: str, persona: str, path: str) -> bool:
    """Whether this root was ever watched by this outbox, or one that it follows."""
    if sql.service(outbox.connection)["successor"]:
        return True
    found = sql.root(outbox.connection, backend=backend, persona=persona, path=path)
    return found is not None


def register_root(
    outbox: Database, backend: str, persona: str, path: str, history: Sequence[Arrival]
) -> None:
    """Record a root that was never watched, and its old files as history."""
    now = outbox.now()
    if sql.root(outbox.connection, backend=backend, persona=persona, path=path) is not None:
        return
    sql.add_root(outbox.connection, backend=backend, persona=persona, path=path, now=now)
    for arrival in history:
        turn = find_or_add_turn(outbox, arrival.key)
        sql.update_seen(
            outbox.connection,
            turn=turn["id"],
            fingerprint=arrival.fingerprint,
            content_key=arrival.content_key,
        )
        _add_delivery(outbox, turn["id"], arrival, revision=0, id_=None, state="history")
        record_event(outbox, "turn.history", turn, bytes=arrival.size, sha256=arrival.sha256)


def present_files(outbox: Database, backend: str, persona: str) -> dict[str, str]:
    """Fingerprints by turn id of the files that were there when last looked at."""
    rows = sql.present_files(outbox.connection, backend=backend, persona=persona)
    return {row["turn_id"]: row["fingerprint"] for row in rows}


def _make_room(outbox: Database) -> None:
    most = outbox.max_bytes
    if most is None or outbox.used_bytes() <= most or purge_bodies(outbox, ANY_TIME):
        return
    raise OverBudget(
        outbox.path,
        f"what is undelivered takes all of PALIADIN_MAX_OUTBOX={most}, so new answers wait",
    )


def find_or_add_turn(outbox: Database, key: TurnKey) -> Row:
    named = {"backend": key.backend, "persona": key.persona, "turn_id": key.turn_id}
    turn = sql.turn(outbox.connection, **named)
    if turn is None:
        turn = sql.add_turn(outbox.connection, **named, now=outbox.now())
    return cast("Row", turn)


def _why_not(outbox: Database, arrival: Arrival, turn: Row) -> str | None:
    answered_at = turn["answered_at"]
    if arrival.reason is None and not arrival.has_text:
        return "no_text"
    if answered_at is None:
        return None
    if arrival.reason is not None:
        return arrival.reason
    return "late" if outbox.now() - answered_at > LATE_S * 1000 else None


def _add_delivery(
    outbox: Database, turn: int, arrival: Arrival, *, revision: int, id_: str | None, state: str
) -> int:
    return cast(
        "int",
        sql.add_delivery(
            outbox.connection,
            turn=turn,
            revision=revision,
            webhook_id=id_,
            state=state,
            reason=arrival.reason,
            bytes=arrival.size,
            sha256=arrival.sha256,
            now=outbox.now(),
        ),
    )


def _body(outbox: Database, arrival: Arrival, turn: Row, revision: int) -> bytes:
    common = {
        "turn_id": arrival.key.turn_id,
        "submitted_turn_id": turn["submitted_turn_id"],
        "revision": revision,
        "backend": arrival.key.backend,
        "persona": arrival.key.persona,
        "host": outbox.host,
        "user_id": turn["user_id"],
        "bytes": arrival.size,
        "completed_at": arrival.completed_at,
    }
    if arrival.reason is not None:
        failure = Failure(**common, reason=arrival.reason)
        return encode(TurnFailed(arrival.completed_at, failure))
    data = arrival.data or b""
    text = data.decode(errors="replace")
    answer = Answer(
        **common,
        response=text,
        sha256=arrival.sha256 or "",
        lossy=text.encode() != data,
    )
    return encode(TurnCompleted(arrival.completed_at, answer))
