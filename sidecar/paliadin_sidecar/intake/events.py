"""What intake has the outbox record: one value for each thing that happened to a turn."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from paliadin_sidecar.outbox import acceptance, event_rows
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.records import Arrival, Delivery, TurnKey
from paliadin_sidecar.settings import RootSpec


class Hint(Struct, frozen=True):
    """A turn's token says who waits."""

    key: TurnKey
    submitted_turn_id: str
    user_id: str


class Stalled(Struct, frozen=True):
    """A file is held open, or cannot be opened, for long."""

    key: TurnKey
    why: Literal["open_for_writing", "unreadable"]
    detail: str


class Vanished(Struct, frozen=True):
    """A file went before it could be opened."""

    key: TurnKey


class Gone(Struct, frozen=True):
    """A file that had been accepted is no longer there."""

    key: TurnKey


class Flooded(Struct, frozen=True):
    """A root has so many files that are no answers that most get no event of their own.

    Attributes:
        spec: the root.
        kinds: how many wait for an event, by what is wrong with them as they are.
        untold: how many came and went, or stalled, without an event of their own.
        names: how many names there were at the last listing.
    """

    spec: RootSpec
    kinds: dict[str, int]
    untold: int
    names: int


IntakeEvent = Arrival | Hint | Stalled | Vanished | Gone | Flooded


def record_events(outbox: Outbox, events: list[IntakeEvent]) -> list[Delivery]:
    """Write all of these down, in their order. Returns what is to be sent."""
    return [delivery for event in events if (delivery := _record(outbox, event)) is not None]


def _record(outbox: Outbox, event: IntakeEvent) -> Delivery | None:
    match event:
        case Arrival():
            return acceptance.accept(outbox, event)
        case Hint(key, submitted_turn_id, user_id):
            acceptance.record_hint(outbox, key, submitted_turn_id, user_id)
        case Stalled(key, why, detail):
            acceptance.record_turn_event(outbox, "turn.stalled", key, why=why, detail=detail)
        case Flooded(spec, kinds, untold, names):
            about = spec.about | {"waiting": kinds, "untold": untold, "names": names}
            event_rows.record_service_event(outbox, "root.flooded", about)
        case Vanished(key):
            acceptance.mark_vanished(outbox, key)
        case Gone(key):
            acceptance.mark_gone(outbox, key)
    return None
