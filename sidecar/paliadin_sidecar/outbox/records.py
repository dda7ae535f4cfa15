"""What the outbox takes and gives. Times are epoch seconds, which the database keeps in ms."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from msgspec import Struct

from paliadin_contract.callback import Reason

#: How a root is: watched, not there, not to be trusted, or the system answers with an error, such
#: as that of a disk or of a mount whose server died.
RootState = Literal["armed", "missing", "untrusted", "unreadable"]

#: Later than every stored time, in milliseconds.
ANY_TIME = 2**62
#: Earlier than every stored time, in milliseconds.
NOT_KNOWN = 0


class State(StrEnum):
    """What became of a delivery."""

    PENDING = "pending"  #: accepted, and neither acknowledged nor given up yet
    DELIVERED = "delivered"  #: an answer that the receiver acknowledged
    DEAD = "dead"  #: given up; an operator may send it again
    FAILED = "failed"  #: a failure, not an answer, that the receiver acknowledged
    SUPERSEDED = "superseded"  #: never acknowledged, since a later revision took its place
    HISTORY = "history"  #: was in the root before it was first watched; never sent


@dataclass(frozen=True)
class Retention:
    """How long what is settled is kept, in seconds.

    Attributes:
        answers_s: a body, after its acknowledgement, for a replay; 0: it goes with that.
        turns_s: a turn with its deliveries and events, after its file has gone and nothing touched
            it any more; and an event of the service.
    """

    answers_s: float = 72 * 3600.0
    turns_s: float = 90 * 86_400.0


@dataclass(frozen=True)
class TurnKey:
    """A turn as its file names it."""

    backend: str
    persona: str
    turn_id: str


@dataclass(frozen=True)
class Arrival:
    """A file that is complete: an answer, or the reason why it is none."""

    key: TurnKey
    fingerprint: str  #: of the file, as it was read; empty where it must be read again
    completed_at: datetime
    size: int
    data: bytes | None = field(default=None, repr=False)
    sha256: str | None = None
    has_text: bool = True
    reason: Reason | None = None
    why: str = ""  #: what an operator reads beyond the reason

    @property
    def content_key(self) -> str:
        """What distinguishes this content from others of the same name."""
        return self.sha256 or self.reason or ""


@dataclass(kw_only=True, slots=True)
class AttemptHistory:
    """What the attempts of a delivery came to. Times are epoch seconds."""

    attempts: int = 0
    first_attempt_at: float | None = None
    refusals: int = 0
    refused_at: float | None = None  #: when it was first refused
    evidence: float = 0.0  #: how much its failures say against it, see `delivery.evidence.CERTAIN`
    reported_at: float | None = None  #: when one of them last got an event
    reported_attempt: int = 0  #: which one that was


@dataclass(kw_only=True, slots=True)
class Delivery(AttemptHistory):
    """A body to be sent. While it is under way its history is kept up to date here."""

    id: int
    turn: int
    webhook_id: str
    body: bytes = field(repr=False)
    accepted_at: float
    root: str = ""  #: backend and persona
    #: What each of its events shows: its turn, revision and id, the answer's size and digest.
    subject: dict[str, Any] = field(default_factory=dict)


class Outcome(Struct, frozen=True, kw_only=True):
    """How one attempt ended.

    Attributes:
        status: the HTTP status, None where no answer came.
        error: what came instead: `connect`, `dns`, `tls`, `timeout`, `reset`, `early` (a 2xx
            before the receiver had the whole request), or another error's name.
        detail: why TLS failed: `expired`, `not_yet_valid`, `wrong_name`, `unknown_authority`,
            `no_tls`, or OpenSSL's own word; None where there is no more to say.
        ms: how long the attempt took.
        retry_after, date, location: headers of the answer, as they came.
        said: what the receiver said when it refused (4xx), which comes within a second or so; None
            where it said nothing.
    """

    status: int | None = None
    error: str | None = None
    detail: str | None = None
    ms: float = 0.0
    retry_after: str | None = None
    date: str | None = None
    location: str | None = None
    said: Awaitable[str | None] | None = None


class Event(Struct, frozen=True):
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
