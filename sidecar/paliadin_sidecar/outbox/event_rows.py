"""The audit's rows: each event is written in the transaction of the change that it records."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from paliadin_sidecar.outbox.database import Outbox, sql
from paliadin_sidecar.outbox.records import Event, to_ms, to_seconds

#: An event as it is kept: its id, its time in epoch milliseconds, its name, the row of its turn, or
#: None for one of the service, and its fields as JSON.
EventRow = tuple[int, int, str, int | None, str]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def record_event(outbox: Outbox, name: str, turn: int | None, fields: dict[str, Any]) -> None:
    """Write an event of this turn, or of the service where that is None."""
    values = {"now": outbox.now(), "name": name, "turn": turn, "fields": _encode(fields).decode()}
    outbox.last_event = outbox.insert(sql.add_event, values)


def record_service_event(outbox: Outbox, name: str, fields: dict[str, Any]) -> None:
    """Record an event of the service itself."""
    record_event(outbox, name, None, fields)


def turn_subject(turn: Mapping[str, Any] | sqlite3.Row) -> dict[str, Any]:
    """What each event of a turn shows of it; from its row."""
    shown = {name: turn[name] for name in ("turn_id", "backend", "persona")}
    if turn["submitted_turn_id"] not in (None, turn["turn_id"]):
        shown["submitted_turn_id"] = turn["submitted_turn_id"]
    if turn["user_id"] is not None:
        shown["user"] = user8(turn["user_id"])
    return shown


def delivery_subject(row: sqlite3.Row) -> dict[str, Any]:
    """What each event of a delivery shows of it; from its row, joined with its turn's."""
    return turn_subject(row) | {
        name: row[name] for name in ("revision", "webhook_id", "bytes", "sha256")
    }


def events(outbox: Outbox, after: int, limit: int = 500) -> list[Event]:
    """The events that came after one, in order."""
    return [event_of(row) for row in outbox.execute(sql.events, {"after": after, "limit": limit})]


def event_rows(outbox: Outbox, after: int, limit: int) -> list[EventRow]:
    """The same as they are kept, for who counts a hundred thousand of them."""
    return outbox.execute(sql.event_rows, {"after": after, "limit": limit}).fetchall()


def last_event_before(outbox: Outbox, at: float) -> int:
    """The id of the event after which those of a time begin; 0 where they are the first ones.

    Events are in the order in which they were written. Where the clock was set back meanwhile, it
    is one of those before which the clock showed less.

    Args:
        outbox: whose they are.
        at: epoch seconds.
    """
    low, high = 0, newest_id(outbox)
    while low < high:  # all up to `low` are before it, and the first one after `high` is not
        middle = (low + high) // 2
        row = outbox.one(sql.next_event, {"after": middle})
        if row is not None and row["at"] < to_ms(at):
            low = row["id"]
        else:
            high = middle
    return low


def oldest_event_at(outbox: Outbox) -> float | None:
    """When the oldest event was written, in epoch seconds; None where there is none."""
    row = outbox.one(sql.next_event, {"after": 0})
    return None if row is None else to_seconds(row["at"])


def newest_id(outbox: Outbox) -> int:
    """The id that was given last, also where that event was pruned since; 0 where none was."""
    return cast("int", outbox.value(sql.last_event_id))


def event_page(outbox: Outbox, after: int, up_to: int, since: float, until: float) -> list[Event]:
    """The events with ids after one, up to another, recorded since a time and before another."""
    wanted = {"after": after, "up_to": up_to, "since": to_ms(since), "until": to_ms(until)}
    return [event_of(row) for row in outbox.execute(sql.event_page, wanted)]


def end_to_end_s(outbox: Outbox, event: int) -> float | None:
    """From a file's completion to its acknowledgement, which this event records.

    None where that was a replay: it says when an operator came, not how fast we are.
    """
    row = outbox.one(sql.end_to_end_ms, {"event": event})
    return None if row is None else to_seconds(row[0])


def printed(outbox: Outbox) -> int:
    """The last event whose line is known to have been printed."""
    return cast("int", outbox.execute(sql.service).fetchone()["printed"])


def set_printed(outbox: Outbox, event: int) -> None:
    """Remember that the lines up to this event are out."""
    outbox.execute(sql.set_printed, {"printed": event})


def event_of(row: sqlite3.Row) -> Event:
    """An event from its row."""
    return Event(row["id"], row["at"] / 1000, row["name"], _decode(row["fields"]))


def user8(user_id: str | None) -> str | None:
    """The part of a user's id that is shown."""
    return user_id[:8] if user_id is not None else None
