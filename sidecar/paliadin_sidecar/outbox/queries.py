"""What commands, the audit and the metrics read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec

from paliadin_sidecar.outbox.event_rows import event_of, user8
from paliadin_sidecar.outbox.records import to_ms, to_seconds
from paliadin_sidecar.outbox.statements import Row, sql

if TYPE_CHECKING:
    from paliadin_sidecar.outbox.database import Database

__all__ = [
    "count_deliveries",
    "counts",
    "dead_since",
    "deliveries",
    "failing",
    "find_ids",
    "oldest_pending_s",
    "service",
    "set_roots",
    "timelines",
]


def set_roots(outbox: Database, roots: list[dict[str, Any]]) -> None:
    """Keep what a scan found, for who asks; no write where nothing changed."""
    sql.set_roots(outbox.connection, roots=msgspec.json.encode(roots).decode())


def service(outbox: Database) -> dict[str, Any]:
    """The daemon's own row: `paused_at`, `paused_for`, `roots`."""
    row: Row = sql.service(outbox.connection)
    row["roots"] = msgspec.json.decode(row["roots"])
    row["paused_at"] = to_seconds(row["paused_at"])
    return row


def counts(outbox: Database) -> dict[str, int]:
    """Deliveries by state."""
    return {row["state"]: row["n"] for row in sql.counts(outbox.connection)}


def oldest_pending_s(outbox: Database) -> float | None:
    """How long the oldest undelivered has waited, in seconds; None where none is."""
    oldest_at = to_seconds(sql.oldest_pending(outbox.connection))
    return None if oldest_at is None else max(0.0, outbox.wall() - oldest_at)


def dead_since(outbox: Database, since: float) -> int:
    """How many were given up since then, in epoch seconds."""
    return cast("int", sql.dead_since(outbox.connection, since=to_ms(since)))


def failing(outbox: Database, *, attempts: int, dead_since: float) -> list[dict[str, Any]]:
    """What the receiver last said to those that do not get through, the most frequent first.

    Each row has `state`, `status`, `error`, `detail` and the number `n` of deliveries. At most
    1,000 of each state are looked at, the newest of them.

    Args:
        attempts: a pending one counts from so many attempts on.
        dead_since: one that was given up counts since then, in epoch seconds.
    """
    since = to_ms(dead_since)
    return list(sql.failing(outbox.connection, attempts=attempts, since=since, limit=1000))


def deliveries(
    outbox: Database, state: str | None, since: float, limit: int
) -> list[dict[str, Any]]:
    """Deliveries accepted since then, the newest first."""
    rows = sql.deliveries(outbox.connection, state=state, since=to_ms(since), limit=limit)
    return [_delivery(row) for row in rows]


def count_deliveries(outbox: Database, state: str | None, since: float) -> int:
    """How many `deliveries` would list without a limit."""
    return cast("int", sql.count_deliveries(outbox.connection, state=state, since=to_ms(since)))


def find_ids(outbox: Database, beginning: str, limit: int) -> list[str]:
    """The ids of turns that begin so, one for each turn; one that is all of an id is that."""
    if list(sql.turns_named(outbox.connection, id=beginning)):
        return [beginning]
    span = {"first": beginning, "end": f"{beginning}\x7f"}  # ids are ASCII
    rows = sql.ids_beginning(outbox.connection, **span, limit=2 * limit)
    return sorted(set({row["turn"]: row["id"] for row in rows}.values()))[:limit]


def timelines(outbox: Database, id_: str) -> list[dict[str, Any]]:
    """Each turn of this id, or submitted under it: its deliveries and events."""
    return [
        {
            "turn_id": turn["turn_id"],
            "backend": turn["backend"],
            "persona": turn["persona"],
            "submitted_turn_id": turn["submitted_turn_id"],
            "user": user8(turn["user_id"]),
            "deliveries": [
                _delivery(row) for row in sql.deliveries_of_turn(outbox.connection, turn=turn["id"])
            ],
            "events": [
                {"id": e.id, "at": e.at, "event": e.name, **e.fields}
                for e in map(event_of, sql.events_of_turn(outbox.connection, turn=turn["id"]))
            ],
        }
        for turn in list(sql.turns_named(outbox.connection, id=id_))
    ]


def _delivery(row: Row) -> dict[str, Any]:
    found = row.copy()
    for name in ("accepted_at", "next_attempt_at", "settled_at"):
        found[name] = to_seconds(found[name])
    if found["state"] != "pending":
        found["next_attempt_at"] = None
    return found
