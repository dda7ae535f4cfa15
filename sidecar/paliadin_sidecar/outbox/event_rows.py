"""The audit's rows: each event is written in the transaction of what it tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec

from paliadin_sidecar.outbox.records import Event, to_seconds
from paliadin_sidecar.outbox.statements import Row, sql

if TYPE_CHECKING:
    from paliadin_sidecar.outbox.database import Database

__all__ = [
    "end_to_end_s",
    "event_of",
    "events",
    "newest_event",
    "printed",
    "record_delivery_event",
    "record_event",
    "record_service_event",
    "set_printed",
    "user8",
]


def record_service_event(outbox: Database, name: str, fields: dict[str, Any]) -> None:
    """Record an event of the service itself."""
    record_event(outbox, name, None, **fields)


def events(outbox: Database, after: int, limit: int = 500) -> list[Event]:
    """The events that came after one, in order."""
    return [event_of(row) for row in sql.events(outbox.connection, after=after, limit=limit)]


def newest_event(outbox: Database) -> int:
    """The id of the newest event, 0 where there is none."""
    return cast("int", sql.last_event(outbox.connection) or 0)


def end_to_end_s(outbox: Database, event: int) -> float | None:
    """From a file's completion to its acknowledgement, which this event tells of.

    None where that was a replay: it says when an operator came, not how fast we are.
    """
    return to_seconds(sql.end_to_end_ms(outbox.connection, event=event))


def printed(outbox: Database) -> int:
    """The last event whose line is known to have been printed."""
    return cast("int", sql.service(outbox.connection)["printed"])


def set_printed(outbox: Database, event: int) -> None:
    """Remember that the lines up to this event are out."""
    sql.set_printed(outbox.connection, printed=event)


def record_delivery_event(outbox: Database, name: str, delivery: int, **fields: Any) -> None:  # noqa: ANN401 - JSON values
    """Write an event of a delivery, with what it is about."""
    subject = sql.subject(outbox.connection, delivery=delivery)
    record_event(
        outbox,
        name,
        subject,
        turn=subject["turn"],
        revision=subject["revision"],
        webhook_id=subject["webhook_id"],
        bytes=subject["bytes"],
        sha256=subject["sha256"],
        **fields,
    )


def record_event(
    outbox: Database,
    name: str,
    about: Row | None,
    *,
    turn: int | None = None,
    **fields: Any,  # noqa: ANN401 - JSON values
) -> None:
    """Write an event: of a turn, or of the service where it is about none."""
    shown: dict[str, Any] = {}
    if about is not None:
        turn = turn if turn is not None else about["id"]
        shown = {key: about[key] for key in ("turn_id", "backend", "persona")}
        if about["submitted_turn_id"] not in (None, about["turn_id"]):
            shown["submitted_turn_id"] = about["submitted_turn_id"]
        if about["user_id"] is not None:
            shown["user"] = user8(about["user_id"])
    outbox.last_event = sql.add_event(
        outbox.connection,
        now=outbox.now(),
        name=name,
        turn=turn,
        fields=msgspec.json.encode(shown | fields).decode(),
    )


def event_of(row: Row) -> Event:
    """An event from its row."""
    return Event(row["id"], row["at"] / 1000, row["name"], msgspec.json.decode(row["fields"]))


def user8(user_id: str | None) -> str | None:
    """The part of a user's id that is shown."""
    return user_id[:8] if user_id is not None else None
