"""What the outbox takes and gives. Times are epoch seconds, which the database keeps in ms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from paliadin_contract.callback import Reason

__all__ = [
    "ANY_TIME",
    "Arrival",
    "Delivery",
    "Event",
    "TurnKey",
    "rounded",
    "to_ms",
    "to_ms_or_none",
    "to_seconds",
]

#: Later than every stored time, in milliseconds.
ANY_TIME = 2**62


@dataclass(frozen=True)
class TurnKey:
    """A turn as its file names it."""

    backend: str
    persona: str
    turn_id: str


@dataclass(frozen=True)
class Arrival:
    """A file that settled: an answer, or the reason why it is none."""

    key: TurnKey
    fingerprint: str  #: of the file, as it was read; empty where it must be read again
    completed_at: datetime
    size: int
    data: bytes | None = field(default=None, repr=False)
    sha256: str | None = None
    has_text: bool = True
    reason: Reason | None = None
    why: str = ""  #: what an operator is told beyond the reason

    @property
    def content_key(self) -> str:
        """What tells this content from others of the same name."""
        return self.sha256 or self.reason or ""


@dataclass(frozen=True)
class Delivery:
    """A delivery whose time has come. Times are epoch seconds."""

    id: int
    turn: int
    webhook_id: str
    body: bytes = field(repr=False)
    accepted_at: float
    attempts: int
    first_attempt_at: float | None
    refusals: int
    refused_at: float | None
    evidence: float = 0.0
    reported_at: float | None = None
    reported_attempt: int = 0
    root: str = ""  #: backend and persona


@dataclass(frozen=True)
class Event:
    """A row of the audit."""

    id: int
    at: float
    name: str
    fields: dict[str, Any]


def to_ms(seconds: float) -> int:
    """A time as the database keeps it."""
    return round(seconds * 1000)


def to_ms_or_none(seconds: float | None) -> int | None:
    """The same for one that may be missing."""
    return None if seconds is None else to_ms(seconds)


def to_seconds(ms: int | None) -> float | None:
    """A time that the database keeps."""
    return None if ms is None else ms / 1000


def rounded(ms: float) -> float:
    """Milliseconds as events show them."""
    return round(ms, 1)
