"""What commands, the audit and the metrics read."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from paliadin_sidecar.outbox.database import Outbox, sql
from paliadin_sidecar.outbox.event_rows import event_of, user8
from paliadin_sidecar.outbox.records import State, to_ms, to_seconds


def set_roots(outbox: Outbox, roots: list[dict[str, Any]]) -> None:
    """Keep what a scan found, for commands; no write where nothing changed."""
    outbox.execute(sql.set_roots, {"roots": msgspec.json.encode(roots).decode()})


def service(outbox: Outbox) -> dict[str, Any]:
    """The daemon's own row: `paused_at`, `paused_for`, `roots`."""
    row = _with_seconds(dict(outbox.execute(sql.service).fetchone()))
    row["roots"] = msgspec.json.decode(row["roots"])
    return row


def counts(outbox: Outbox) -> dict[str, int]:
    """Deliveries by state."""
    return dict(map(tuple, outbox.execute(sql.counts)))


def pending_as_of(outbox: Outbox) -> tuple[int, int]:
    """How many deliveries are undelivered, and the newest event of which that is the outcome."""
    pending, event = outbox.execute(sql.pending_as_of).fetchone()
    return pending, event


def oldest_pending_s(outbox: Outbox) -> float | None:
    """How long the oldest undelivered has waited, in seconds; None where none is."""
    _, oldest_at = backlog(outbox)
    return None if oldest_at is None else max(0.0, outbox.wall() - oldest_at)


def dead_since(outbox: Outbox, since: float) -> int:
    """How many were given up since then, in epoch seconds."""
    return cast("int", outbox.value(sql.dead_since, {"since": to_ms(since)}))


def failing(outbox: Outbox, *, attempts: int, dead_since: float) -> list[dict[str, Any]]:
    """What the receiver last said to those that do not get through, the most frequent first.

    Each row has `state`, `status`, `error`, `detail` and the number `n` of deliveries. At most
    1,000 of each state are looked at, the newest of them.

    Args:
        attempts: a pending one counts from so many attempts on.
        dead_since: one that was given up counts since then, in epoch seconds.
    """
    wanted = {"attempts": attempts, "since": to_ms(dead_since), "limit": 1000}
    return [dict(row) for row in outbox.execute(sql.failing, wanted)]


def deliveries(outbox: Outbox, state: str | None, since: float, limit: int) -> list[dict[str, Any]]:
    """Deliveries accepted since then, the newest first."""
    wanted = {"state": state, "since": to_ms(since), "limit": limit}
    return [_delivery(row) for row in outbox.execute(sql.deliveries, wanted)]


def count_deliveries(outbox: Outbox, state: str | None, since: float) -> int:
    """How many `deliveries` would list without a limit."""
    wanted = {"state": state, "since": to_ms(since)}
    return cast("int", outbox.value(sql.count_deliveries, wanted))


def backlog(outbox: Outbox) -> tuple[int, float | None]:
    """How many are undelivered, and when the oldest of them was accepted, in epoch seconds."""
    row = outbox.execute(sql.backlog).fetchone()
    return row["pending"], to_seconds(row["oldest_at"])


def asked(outbox: Outbox, since: float, limit: int) -> list[dict[str, Any]]:
    """Turns that a token announced since then and no file came yet, the newest first."""
    return _rows(outbox, sql.asked, {"since": to_ms(since), "limit": limit})


def undelivered(outbox: Outbox, limit: int) -> list[dict[str, Any]]:
    """What waits to be acknowledged, the oldest first."""
    return _rows(outbox, sql.undelivered, {"limit": limit})


def settled(outbox: Outbox, limit: int) -> list[dict[str, Any]]:
    """What was acknowledged or given up, the newest first, with the times that it took."""
    return _rows(outbox, sql.settled, {"limit": limit})


def last_turn(outbox: Outbox) -> int:
    """The greatest row id of a turn, 0 where there is none."""
    return cast("int", outbox.value(sql.last_turn))


def turn_page(
    outbox: Outbox, after: int, up_to: int, since: float, until: float
) -> list[dict[str, Any]]:
    """What is known of the turns with row ids after one, up to another: a row for each delivery.

    A turn without a delivery has one row, in which the delivery's columns are None.

    Args:
        outbox: where they are.
        after: the row id before the first.
        up_to: the last one.
        since: accepted since then, in epoch seconds; a turn without a delivery counts by when it
            was first met.
        until: and before then.
    """
    wanted = {"after": after, "up_to": up_to, "since": to_ms(since), "until": to_ms(until)}
    return _rows(outbox, sql.turn_page, wanted)


def find_ids(outbox: Outbox, beginning: str, limit: int) -> list[str]:
    """The ids of turns that begin so, one for each turn; one that is all of an id is that."""
    if outbox.one(sql.turns_named, {"id": beginning}):
        return [beginning]
    span = {"first": beginning, "end": f"{beginning}\x7f"}  # ids are ASCII
    rows = outbox.execute(sql.ids_beginning, span | {"limit": 2 * limit})
    return sorted(set({row["turn"]: row["id"] for row in rows}.values()))[:limit]


def said_of_dead(outbox: Outbox) -> dict[str, str]:
    """What the receiver said when it refused those that were given up, by their webhook ids."""
    return dict(map(tuple, outbox.execute(sql.said_of_dead)))


def timelines(outbox: Outbox, id_: str) -> list[dict[str, Any]]:
    """Each turn of this id, or submitted under it: its deliveries and events."""
    return [_timeline(outbox, turn) for turn in outbox.execute(sql.turns_named, {"id": id_})]


def _timeline(outbox: Outbox, turn: sqlite3.Row) -> dict[str, Any]:
    of_turn = {"turn": turn["id"]}
    return {
        "turn_id": turn["turn_id"],
        "backend": turn["backend"],
        "persona": turn["persona"],
        "submitted_turn_id": turn["submitted_turn_id"],
        "user": user8(turn["user_id"]),
        "deliveries": [_delivery(row) for row in outbox.execute(sql.deliveries_of_turn, of_turn)],
        "events": list(map(event_of, outbox.execute(sql.events_of_turn, of_turn))),
    }


def _delivery(row: sqlite3.Row) -> dict[str, Any]:
    found = _with_seconds(dict(row))
    if found["state"] != State.PENDING:
        found["next_attempt_at"] = None
    return found


def _rows(outbox: Outbox, statement: str, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_with_seconds(dict(row)) for row in outbox.execute(statement, wanted)]


def _with_seconds(row: dict[str, Any]) -> dict[str, Any]:
    for name, value in row.items():
        if name.endswith("_at"):
            row[name] = to_seconds(value)
    return row
