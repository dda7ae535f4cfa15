"""What an attempt's outcome means for its turn, and for the receiver. Pure: no clock, no I/O.

The table that this module follows stands, for receivers, in `docs/protocol.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum

from paliadin_sidecar.delivery.evidence import CERTAIN
from paliadin_sidecar.outbox.records import AttemptHistory

#: A person waits, so the first retries come fast; no outage is too long for the others. A longer
#: delay is one that the receiver asked for: that is how it is known after a restart.
_MIN_BACKOFF_S, MAX_BACKOFF_S = 0.25, 60.0
#: A receiver may ask for more time, but not for a day: somebody waits.
_MAX_RETRY_AFTER_S = 3600.0
#: A turn that fails in another way than by being refused is given up after this many attempts
#: over this long.
_POISON_ATTEMPTS, _POISON_S = 20, 86_400.0
#: The first attempts of a turn are reported in full. After that one line in so long reports those
#: that failed again: an outage has no end, and the journal's disk has one.
REPORTED_IN_FULL = 5
_REPORTED_EVERY_S = 60.0


class Verdict(Enum):
    """What an attempt's outcome says."""

    ACKNOWLEDGED = "acknowledged"  #: the receiver has it
    RETRY = "retry"  #: it may well work the next time: this says nothing about the turn
    FAILED = "failed"  #: the receiver's fault, or the turn's where others pass
    REFUSED = "refused"  #: the receiver does not want this turn
    AMBIGUOUS = "ambiguous"  #: the turn's or the receiver's: only a ping can decide
    RECEIVER = "receiver"  #: the receiver's, as a ping showed


#: These say "later", not "no": request timeout, too early, too many requests, unavailable; and a
#: proxy's that nobody answered behind it.
_LATER = frozenset({408, 425, 429, 502, 503, 504})
#: A rotated secret, a moved or missing route, a redirect that a body must not follow: usually
#: the receiver is misconfigured, and then no turn is to blame.
_AMBIGUOUS = frozenset({401, 403, 404, 410})
#: What the others say, by the first digit.
_BY_CLASS = {2: Verdict.ACKNOWLEDGED, 3: Verdict.AMBIGUOUS, 4: Verdict.REFUSED, 5: Verdict.FAILED}


def classify(status: int | None) -> Verdict:
    """What an HTTP status says; None where there was no answer at all."""
    if status is None or status in _LATER:
        return Verdict.RETRY
    if status in _AMBIGUOUS:
        return Verdict.AMBIGUOUS
    return _BY_CLASS.get(status // 100, Verdict.RETRY)


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
    history: AttemptHistory,
    now: float,
    *,
    refused_s: float,
    random: Callable[[], float],
    floor_s: float = 0.0,
    ceiling_s: float = MAX_BACKOFF_S,
) -> Decision:
    """What becomes of a turn.

    Args:
        verdict: what its last attempt's outcome said.
        history: its attempts, the one just made included.
        now: epoch seconds.
        refused_s: how long a turn must have been refused before it is given up.
        random: a number from 0 to 1, for the jitter.
        floor_s: what the receiver asked for with `Retry-After`.
        ceiling_s: what it did not ask for is no longer than this.
    """
    if verdict is Verdict.ACKNOWLEDGED:
        return Delivered()
    if verdict in {Verdict.REFUSED, Verdict.FAILED} and history.evidence >= CERTAIN:
        if (
            verdict is Verdict.REFUSED
            and history.refused_at is not None
            and now - history.refused_at >= refused_s
        ):
            return Dead("refused")
        began_at = now if history.first_attempt_at is None else history.first_attempt_at
        if history.attempts >= _POISON_ATTEMPTS and now - began_at >= _POISON_S:
            return Dead("poison")
    # Full jitter: many turns that failed together must not come back together.
    ceiling = min(MAX_BACKOFF_S, ceiling_s, _MIN_BACKOFF_S * 2.0 ** min(history.attempts - 1, 16))
    return Retry(max(floor_s, ceiling * random()))


def is_reported(reported_at: float | None, now: float) -> bool:
    """Whether one more failed attempt gets an event, and so a line.

    Args:
        reported_at: when one of the turn's attempts last got one, in epoch seconds.
        now: epoch seconds.
    """
    # A clock that was set back holds nothing.
    return reported_at is None or not 0 <= now - reported_at < _REPORTED_EVERY_S


def retry_after_s(header: str | None, now: float) -> float:
    """The seconds that a `Retry-After` asks for, at most an hour; 0 for none or garbage."""
    if header is None:
        return 0.0
    text = header.strip()
    if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        return min(float(text), _MAX_RETRY_AFTER_S)
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:  # "-0000": the time is UTC, the place unknown (RFC 5322, 3.3)
            date = date.replace(tzinfo=UTC)
        seconds = (date - datetime.fromtimestamp(now, UTC)).total_seconds()
    except (ValueError, OverflowError, TypeError, IndexError):
        return 0.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)
