"""What intake found becomes turns and deliveries."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, cast

from paliadin_contract.callback import Answer, Failure, TurnCompleted, TurnFailed, encode
from paliadin_contract.ids import webhook_id
from paliadin_sidecar.errors import OverBudget
from paliadin_sidecar.outbox.bodies import pack
from paliadin_sidecar.outbox.database import LATE_S, Outbox, sql
from paliadin_sidecar.outbox.event_rows import record_event, turn_subject
from paliadin_sidecar.outbox.maintenance import drop_bodies, make_room
from paliadin_sidecar.outbox.records import Arrival, Delivery, TurnKey, to_ms

_Turn = Mapping[str, Any] | sqlite3.Row

#: A turn of which nothing was seen yet.
_NEW = {"revision": 0} | dict.fromkeys(
    (
        "id", "submitted_turn_id", "user_id", "answered_at", "seen_content_key", "sent_content_key",
        "erased_at",
    )
)  # fmt: skip


def accept(outbox: Outbox, arrival: Arrival) -> Delivery | None:
    """Take a file that is complete: freeze its body and id, or only its event.

    The same content as before is nothing new, and of a turn that was erased nothing is. A later
    revision supersedes what is still undelivered of the turn. Only audited are: a change that has
    no text, one that comes late, and a failure after an answer.

    Where the outbox takes more than it may, some of what the receiver has goes before its
    time; what is undelivered never goes.

    Returns:
        What is to be sent, if anything is.

    Raises:
        OverBudget: nothing is left that may go.
    """
    named = _named(arrival.key)
    turn: _Turn = outbox.one(sql.turn, named) or named | _NEW
    if turn["erased_at"] is not None:
        _update_seen(outbox, turn["id"], arrival.fingerprint, None)
        return None
    # Nothing new, or it came back to what the receiver has.
    if arrival.content_key in (turn["seen_content_key"], turn["sent_content_key"]):
        _update_seen(outbox, turn["id"], arrival.fingerprint, arrival.content_key)
        return None
    why_not = _why_not_sent(outbox, arrival, turn)
    if why_not is not None:
        turn = _find_or_add_turn(outbox, arrival.key)
        _update_seen(outbox, turn["id"], arrival.fingerprint, arrival.content_key)
        name = "turn.revised" if turn["answered_at"] is not None else "turn.vanished"
        about = {"bytes": arrival.size, "sha256": arrival.sha256, "pushed": False, "why": why_not}
        record_event(outbox, name, turn["id"], turn_subject(turn) | about)
        return None
    _make_room(outbox)
    return _add_revision(outbox, arrival, turn)


def record_hint(outbox: Outbox, key: TurnKey, submitted_turn_id: str, user_id: str) -> None:
    """Keep what a turn's token said; the first one counts."""
    hint = {"submitted_turn_id": submitted_turn_id, "user_id": user_id, "now": outbox.now()}
    outbox.execute(sql.record_hint, _named(key) | hint)


def mark_gone(outbox: Outbox, key: TurnKey) -> None:
    """Record that a turn's file is no longer there."""
    outbox.execute(sql.mark_gone, _named(key) | {"now": outbox.now()})


def mark_vanished(outbox: Outbox, key: TurnKey) -> None:
    """Record that a file went before it could be opened; no event if the turn was taken."""
    turn = _find_or_add_turn(outbox, key)
    if turn["seen_content_key"] is None and turn["erased_at"] is None:
        record_event(outbox, "turn.vanished", turn["id"], turn_subject(turn))
    mark_gone(outbox, key)


def record_turn_event(outbox: Outbox, name: str, key: TurnKey, **fields: Any) -> None:  # noqa: ANN401 - JSON values
    """Record an event of a turn that changes no state."""
    turn = _find_or_add_turn(outbox, key)
    record_event(outbox, name, turn["id"], turn_subject(turn) | fields)


def is_known_root(outbox: Outbox, root: dict[str, str]) -> bool:
    """Whether this root, by backend, persona and path, was ever watched, as far as is known.

    An outbox that follows a lost one takes each root for one that was.
    """
    if outbox.execute(sql.service).fetchone()["successor"]:
        return True
    return outbox.one(sql.root, root) is not None


def register_root(outbox: Outbox, root: dict[str, str], history: Sequence[Arrival]) -> None:
    """Record a root that was never watched, and the last of its old files as history."""
    if outbox.one(sql.root, root) is None:
        record_history(outbox, history)
        outbox.execute(sql.add_root, root | {"now": outbox.now()})


def record_history(outbox: Outbox, history: Sequence[Arrival]) -> None:
    """Record old files of a root that is to be registered.

    Those that were recorded before, by a start that was cut short, are recorded once.
    """
    for arrival in history:
        turn = _find_or_add_turn(outbox, arrival.key)
        if turn["erased_at"] is not None:
            continue
        if turn["revision"] and turn["sent_content_key"] != arrival.content_key:
            continue  # it was changed since it was read, and accepted
        _update_seen(outbox, turn["id"], arrival.fingerprint, arrival.content_key)
        about = {"bytes": arrival.size, "sha256": arrival.sha256}
        added = about | {"turn": turn["id"], "now": outbox.now()}
        if outbox.execute(sql.add_history, added).rowcount:
            record_event(outbox, "turn.history", turn["id"], turn_subject(turn) | about)


def present_files(outbox: Outbox, backend: str, persona: str) -> dict[str, str]:
    """Fingerprints by turn id of the files that were there when last looked at."""
    root = {"backend": backend, "persona": persona}
    return dict(map(tuple, outbox.execute(sql.present_files, root)))


def _named(key: TurnKey) -> dict[str, Any]:
    return {"backend": key.backend, "persona": key.persona, "turn_id": key.turn_id}


def _find_or_add_turn(outbox: Outbox, key: TurnKey) -> sqlite3.Row:
    named = _named(key)
    turn = outbox.one(sql.turn, named) or outbox.one(sql.add_turn, named | {"now": outbox.now()})
    return cast("sqlite3.Row", turn)


def _update_seen(outbox: Outbox, turn: int, fingerprint: str, content_key: str | None) -> None:
    seen = {"fingerprint": fingerprint, "content_key": content_key}
    outbox.execute(sql.update_seen, seen | {"turn": turn})


def _why_not_sent(outbox: Outbox, arrival: Arrival, turn: _Turn) -> str | None:
    if arrival.reason is None and not arrival.has_text:
        return "no_text"
    if turn["answered_at"] is None:
        return None
    if arrival.reason is not None:
        return arrival.reason
    return "late" if outbox.now() - turn["answered_at"] > LATE_S * 1000 else None


def _make_room(outbox: Outbox) -> None:
    if not outbox.is_over_budget() or make_room(outbox):
        return
    # The same words as long as the reason is the same one: it is printed when it is new.
    kept = "the audit of turns whose files are still there, or did ten minutes ago, takes"
    if outbox.value(sql.has_undelivered):
        kept = f"what is undelivered and {kept.removesuffix('s')}"
    budget = f"PALIADIN_MAX_OUTBOX={outbox.max_bytes}"
    raise OverBudget(outbox.path, f"{kept} all of {budget}, so new answers wait")


def _add_revision(outbox: Outbox, arrival: Arrival, turn: _Turn) -> Delivery:
    now, key, revision = outbox.now(), arrival.key, turn["revision"] + 1
    id_ = webhook_id(key.backend, key.persona, key.turn_id, revision, arrival.content_key)
    about = {
        "revision": revision,
        "webhook_id": id_,
        "bytes": arrival.size,
        "sha256": arrival.sha256,
    }
    row, superseded = _advance(outbox, arrival, turn)
    root = f"{key.backend}/{key.persona}"
    added = about | {"turn": row, "reason": arrival.reason, "now": now, "root": root}
    delivery = Delivery(
        id=outbox.insert(sql.add_delivery, added),
        turn=row,
        webhook_id=id_,
        body=_body(outbox, arrival, turn, revision),
        accepted_at=now / 1000,
        root=root,
        subject=turn_subject(turn) | about,
    )
    data, deflated = pack(delivery.body)
    kept = {"size": len(delivery.body), "deflated": deflated, "bytes": data}
    outbox.insert(sql.add_body, kept | {"delivery": delivery.id})
    fields = delivery.subject.copy()
    if arrival.reason:
        name, fields["reason"] = "turn.failed", arrival.reason
        if arrival.why:
            fields["why"] = arrival.why
    else:
        name, fields["pushed"] = "turn.accepted" if revision == 1 else "turn.revised", True
    if superseded:
        fields["superseded"] = superseded
    completed_at = to_ms(arrival.completed_at.timestamp())
    if (asked_at := _asked_at(turn)) is not None and asked_at <= completed_at:
        fields["agent_ms"] = completed_at - asked_at
    fields["settle_ms"] = max(0, now - completed_at)
    record_event(outbox, name, row, fields)
    return delivery


def _asked_at(turn: _Turn) -> int | None:
    # When its token was found, which comes with the question, if that was before its file. One that
    # a scan finds together with its answer is found later than the answer was complete.
    is_first_met_by_token = turn["user_id"] is not None and turn["seen_content_key"] is None
    return turn["seen_at"] if is_first_met_by_token else None


def _advance(outbox: Outbox, arrival: Arrival, turn: _Turn) -> tuple[int, list[str]]:
    # The turn's row gets its next revision; returns its id, and which deliveries that ended.
    now, answered_at = outbox.now(), turn["answered_at"]
    if answered_at is None and arrival.reason is None:
        answered_at = now
    values = {
        "answered_at": answered_at,
        "content_key": arrival.content_key,
        "fingerprint": arrival.fingerprint,
    }
    row: int | None = turn["id"]
    if row is None:
        values |= _named(arrival.key) | {"now": now}
        return outbox.insert(sql.add_turn_with_revision, values), []
    outbox.execute(sql.update_revision, values | {"turn": row, "revision": turn["revision"] + 1})
    if turn["revision"] == 0:
        return row, []
    found = outbox.execute(sql.supersede, {"turn": row, "now": now}).fetchall()
    if not outbox.retention.answers_s:
        drop_bodies(outbox, [one["id"] for one in found])
    return row, [one["webhook_id"] for one in found]


def _body(outbox: Outbox, arrival: Arrival, turn: _Turn, revision: int) -> bytes:
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
        **common, response=text, sha256=arrival.sha256 or "", lossy=text.encode() != data
    )
    return encode(TurnCompleted(arrival.completed_at, answer))
