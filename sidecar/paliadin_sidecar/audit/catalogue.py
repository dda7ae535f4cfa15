"""Each event that the audit knows: how much it matters, and the fields that it may have.

docs/audit.md explains them, and a test holds that page, this table and what is recorded together.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["debug", "info", "warning", "error"]


class EventKind(NamedTuple):
    """What all events of one name have in common.

    Attributes:
        level: `warning` and `error` are for an operator to look at.
        fields: which there may be, in the order of an export's columns. The journal has `content`
            where the outbox has `sha256`, see `lines.redacted`.
    """

    level: Level
    fields: tuple[str, ...]


_TURN = ("turn_id", "backend", "persona", "submitted_turn_id", "user")
_DELIVERY = (*_TURN, "revision", "webhook_id", "bytes", "sha256")
_ROOT = ("backend", "persona", "path")

EVENTS: dict[str, EventKind] = {
    "turn.accepted": EventKind("info", (*_DELIVERY, "pushed", "agent_ms", "settle_ms")),
    "turn.revised": EventKind("info", (*_DELIVERY, "pushed", "why", "superseded", "settle_ms")),
    "turn.failed": EventKind(
        "warning", (*_DELIVERY, "reason", "why", "superseded", "agent_ms", "settle_ms")
    ),
    "turn.vanished": EventKind("info", (*_TURN, "bytes", "sha256", "pushed", "why")),
    "turn.stalled": EventKind("warning", (*_TURN, "why", "detail")),
    "turn.history": EventKind("info", (*_TURN, "bytes", "sha256")),
    "turn.erased": EventKind("info", (*_TURN[:3], "by", "undelivered")),
    "delivery.attempted": EventKind(
        "info", (*_DELIVERY, "attempt", "status", "error", "detail", "untold", "duration_ms")
    ),
    "delivery.delivered": EventKind("info", (*_DELIVERY, "attempts", "since_accepted_ms")),
    "delivery.refused": EventKind("warning", (*_DELIVERY, "status", "refusals")),
    "delivery.retry_scheduled": EventKind("info", (*_DELIVERY, "attempt", "delay_ms")),
    "delivery.dead": EventKind("error", (*_DELIVERY, "cause", "attempts")),
    "delivery.replayed": EventKind("info", _DELIVERY),
    "receiver.paused": EventKind("warning", ("why",)),
    "receiver.resumed": EventKind("info", ("paused_ms",)),
    "root.armed": EventKind("info", _ROOT),
    "root.replaced": EventKind("info", _ROOT),
    "root.missing": EventKind("warning", (*_ROOT, "why")),
    "root.untrusted": EventKind("warning", (*_ROOT, "why")),
    "root.unreadable": EventKind("warning", (*_ROOT, "why")),
    "root.flooded": EventKind("warning", (*_ROOT, "waiting", "untold", "names")),
    "watch.failed": EventKind("warning", ("path", "error")),
    "service.started": EventKind("info", ("version", "pid", "host", "roots")),
    "service.unknown_variable": EventKind("warning", ("variable", "nearest")),
    "service.stopping": EventKind("info", ()),
    "service.stopped": EventKind("info", ()),
    "service.crashed": EventKind("error", ("trace",)),
    "outbox.blocked": EventKind("error", ("path", "why")),
    "metrics.failed": EventKind("warning", ("why",)),
}
#: Every field, each once.
FIELDS = tuple(dict.fromkeys(name for kind in EVENTS.values() for name in kind.fields))


def level_of(name: str) -> Level:
    """How much an event of this name matters; one that is not known is information."""
    kind = EVENTS.get(name)
    return kind.level if kind else "info"
