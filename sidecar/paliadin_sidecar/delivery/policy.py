"""What an attempt's outcome means for its turn, and for the receiver. Pure: no clock, no I/O.

The table that this module follows stands, for receivers, in `docs/protocol.md`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TYPE_CHECKING

from paliadin_sidecar.delivery.evidence import SURE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BACKOFF_MOST_S",
    "PARALLEL",
    "TOLD_IN_FULL",
    "Circuit",
    "Dead",
    "Decision",
    "Delivered",
    "Past",
    "Retry",
    "Verdict",
    "classify",
    "decide",
    "is_told",
    "retry_after_s",
]

#: Turns under way at once: enough to hide a slow receiver, few enough not to flood it.
PARALLEL = 8
#: A person waits, so the first tries come fast; an outage is met with patience, without end.
_BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.25, 60.0
#: A receiver may ask for more time, but not for a day: somebody waits.
_RETRY_AFTER_MOST_S = 3600.0
#: A turn that fails in another way than by being refused is given up after this many attempts
#: over this long.
_POISON_ATTEMPTS, _POISON_S = 20, 86_400.0
#: The first attempts of a turn are told in full. After that one line in so long tells of those
#: that failed again: an outage has no end, and the journal's disk has one.
TOLD_IN_FULL = 5
_TOLD_EVERY_S = 60.0
#: A receiver that comes back is not met by the whole backlog: two at first, one of them for a
#: turn that failed before, and one more with each acknowledgement.
_WINDOW_LEAST = 2
#: Connection failures in a row, over all turns, after which only a ping goes out.
_FAILURES_TO_PAUSE = 5
#: Turns in a row that were answered "later" and none acknowledged, after which a ping asks: so
#: many at once, or so many over so long. At a receiver that fails nine times in ten, and so still
#: lets turns through, fifty in a row are rare.
_LATER_TO_ASK = 50
_LATER_TO_ASK_SLOWLY, _LATER_S = 10, 30.0
#: Where the ping is well in spite of that, it is asked again after a while, and what failed
#: before goes out at most this often: the receiver takes pings and no turns.
_ASK_EVERY_S, _TRICKLE_S = 60.0, 1.0
_PING_FIRST_S, _PING_MOST_S = 1.0, 60.0


class Verdict(Enum):
    """What an attempt's outcome says."""

    ACKNOWLEDGED = "acknowledged"  #: the receiver has it
    RETRY = "retry"  #: it may well work the next time: this says nothing about the turn
    FAILED = "failed"  #: the receiver's fault, or the turn's where others pass
    REFUSED = "refused"  #: the receiver does not want this turn
    WHOSE_FAULT = "whose_fault"  #: the turn's or the receiver's: only a ping can tell
    RECEIVER = "receiver"  #: the receiver's, as a ping told


#: These say "later", not "no": request timeout, too early, too many requests, unavailable; and a
#: proxy's that nobody answered behind it.
_LATER = frozenset({408, 425, 429, 502, 503, 504})
#: A rotated secret, a moved or missing route, a redirect that a body must not follow: usually
#: the receiver is misconfigured, and then no turn is to blame.
_WHOSE_FAULT = frozenset({401, 403, 404, 410})


def classify(status: int | None) -> Verdict:
    """What an HTTP status says; None where there was no answer at all."""
    if status is None or status in _LATER:
        return Verdict.RETRY
    if 200 <= status < 300:  # noqa: PLR2004 - HTTP's own classes
        return Verdict.ACKNOWLEDGED
    if status in _WHOSE_FAULT or 300 <= status < 400:  # noqa: PLR2004
        return Verdict.WHOSE_FAULT
    if 400 <= status < 500:  # noqa: PLR2004
        return Verdict.REFUSED
    if 500 <= status < 600:  # noqa: PLR2004
        return Verdict.FAILED
    return Verdict.RETRY


@dataclass(frozen=True)
class Past:
    """What is known of a turn's attempts, the one just made included. Times: epoch seconds."""

    attempts: int
    first_attempt_at: float
    refused_at: float | None
    """When it was first refused; None if never."""
    evidence: float
    """How much its failures say against it, see `blame.SURE`."""


@dataclass(frozen=True)
class Delivered:
    """Nothing is left to do."""


@dataclass(frozen=True)
class Retry:
    """Again after `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Dead:
    """Given up, for an operator to look at and replay."""

    cause: str


Decision = Delivered | Retry | Dead


def decide(
    verdict: Verdict,
    past: Past,
    now: float,
    *,
    refused_s: float,
    random: Callable[[], float],
    floor_s: float = 0.0,
) -> Decision:
    """What becomes of a turn.

    Args:
        verdict: what its last attempt's outcome said.
        past: its attempts.
        now: epoch seconds.
        refused_s: how long a turn must have been refused before it is given up.
        random: a number from 0 to 1, for the jitter.
        floor_s: what the receiver asked for with `Retry-After`.
    """
    if verdict is Verdict.ACKNOWLEDGED:
        return Delivered()
    if verdict in {Verdict.REFUSED, Verdict.FAILED} and past.evidence >= SURE:
        if (
            verdict is Verdict.REFUSED
            and past.refused_at is not None
            and now - past.refused_at >= refused_s
        ):
            return Dead("refused")
        if past.attempts >= _POISON_ATTEMPTS and now - past.first_attempt_at >= _POISON_S:
            return Dead("poison")
    # Full jitter: many turns that failed together must not come back together.
    ceiling = min(BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2.0 ** min(past.attempts - 1, 16))
    return Retry(max(floor_s, ceiling * random()))


def is_told(told_at: float | None, now: float) -> bool:
    """Whether one more failed attempt gets an event, and so a line.

    Args:
        told_at: when one of the turn's attempts was last told, in epoch seconds.
        now: epoch seconds.
    """
    # A clock that was set back holds nothing.
    return told_at is None or not 0 <= now - told_at < _TOLD_EVERY_S


def retry_after_s(header: str | None, now: float) -> float:
    """The seconds that a `Retry-After` asks for, at most an hour; 0 for none or garbage."""
    text = (header or "").strip()
    if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        return min(float(text), _RETRY_AFTER_MOST_S)
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:  # "-0000": the time is UTC, the place unknown (RFC 5322, 3.3)
            date = date.replace(tzinfo=UTC)
        seconds = (date - datetime.fromtimestamp(now, UTC)).total_seconds()
    except (ValueError, OverflowError, TypeError, IndexError):
        return 0.0
    return min(max(seconds, 0.0), _RETRY_AFTER_MOST_S)


class Circuit:
    """Whether turns may go out, judged by how the receiver does over all of them.

    Times are monotonic seconds.
    """

    def __init__(self, *, paused: bool = False) -> None:
        self.paused = paused
        self._failures = 0
        self._ping_s = _PING_FIRST_S
        self._window = _WINDOW_LEAST if paused else PARALLEL
        self._later = 0
        self._later_since = 0.0
        self._asked_at: float | None = None  # by a ping, since the last acknowledgement
        self._tried_again_at = 0.0

    @property
    def window(self) -> int:
        """How many turns may be under way at once: few after a pause, more as they pass."""
        return 0 if self.paused else self._window

    def answered(self, *, acknowledged: bool) -> None:
        """Note that the receiver answered a turn, well or not: it can be reached."""
        self._failures = 0
        if acknowledged:
            self._window = min(self._window + 1, PARALLEL)
            self._later = 0
            self._asked_at = None

    def later(self, now: float) -> bool:
        """Note that the receiver put a turn off. True if a ping should ask whether it is well."""
        self._later_since = self._later_since if self._later else now
        self._later += 1
        slowly = self._later >= _LATER_TO_ASK_SLOWLY and now - self._later_since >= _LATER_S
        if self.paused or not (slowly or self._later >= _LATER_TO_ASK):
            return False
        if self._asked_at is not None and now - self._asked_at < _ASK_EVERY_S:
            return False
        self._asked_at = now
        return True

    @property
    def trickles(self) -> bool:
        """Whether turns that failed before go out one by one, since only pings are well."""
        return self._asked_at is not None

    def retry_in_s(self, now: float) -> float:
        """Seconds until one of those may go out."""
        return max(0.0, self._tried_again_at + _TRICKLE_S - now) if self.trickles else 0.0

    def tried_again(self, now: float) -> None:
        """Note that a turn that failed before goes out."""
        self._tried_again_at = now

    def unanswered(self) -> bool:
        """Note a connection failure. True if it is the one that calls for a pause."""
        self._failures += 1
        return not self.paused and self._failures >= _FAILURES_TO_PAUSE

    def pause(self) -> None:
        """Send nothing but pings from here on."""
        self.paused = True
        self._ping_s = _PING_FIRST_S

    def next_ping_s(self) -> float:
        """How long to wait before the next ping."""
        seconds, self._ping_s = self._ping_s, min(2 * self._ping_s, _PING_MOST_S)
        return seconds

    def resume(self) -> None:
        """A ping was acknowledged: the backlog may go, slowly at first."""
        self.paused = False
        self._failures = 0
        self._later = 0
        self._asked_at = None
        self._window = _WINDOW_LEAST
