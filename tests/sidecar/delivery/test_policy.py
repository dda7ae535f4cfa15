from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paliadin_sidecar.delivery.evidence import CERTAIN
from paliadin_sidecar.delivery.policy import (
    Dead,
    Decision,
    Delivered,
    Retry,
    Verdict,
    classify,
    decide,
    is_reported,
    retry_after_s,
)
from paliadin_sidecar.outbox.records import AttemptHistory

#: 2026-11-22, 08:00 UTC.
NOW = 1_795_334_400.0
REFUSED_S = 900.0
DAY_S = 86_400.0

FIRST = AttemptHistory(attempts=1, first_attempt_at=NOW, refused_at=None, evidence=0.0)


def judged(
    verdict: Verdict, history: AttemptHistory = FIRST, *, jitter: float = 1.0, **floor: float
) -> Decision:
    return decide(verdict, history, NOW, refused_s=REFUSED_S, random=lambda: jitter, **floor)


# --- what a status says ---------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 226, 299])
def test_acknowledged(status: int) -> None:
    """Any 2xx acknowledges."""
    assert classify(status) is Verdict.ACKNOWLEDGED


@pytest.mark.parametrize("status", [408, 425, 429, 502, 503, 504])
def test_later(status: int) -> None:
    """What says "later" says nothing about the turn."""
    assert classify(status) is Verdict.RETRY


@pytest.mark.parametrize("status", [500, 501, 505, 529, 599])
def test_failed(status: int) -> None:
    """Any other 5xx may be the turn's fault, if it happens to no other."""
    assert classify(status) is Verdict.FAILED


@pytest.mark.parametrize("status", [None, 0, 1, 100, 101, 199, 600, 999])
def test_anything_not_listed(status: int | None) -> None:
    """No answer at all, and a status of no known class, are tried again."""
    assert classify(status) is Verdict.RETRY


@pytest.mark.parametrize("status", [300, 301, 302, 304, 307, 308, 399, 401, 403, 404, 410])
def test_ambiguous(status: int) -> None:
    """A redirect, a refused signature and a missing route may be the receiver's own fault."""
    assert classify(status) is Verdict.AMBIGUOUS


@pytest.mark.parametrize("status", [400, 402, 405, 406, 407, 409, 411, 413, 422, 424, 426, 499])
def test_refused(status: int) -> None:
    """Any other 4xx refuses the turn."""
    assert classify(status) is Verdict.REFUSED


# --- what becomes of a turn -----------------------------------------------------------------


def test_delivered() -> None:
    """What was acknowledged is delivered, however often it failed before."""
    old = replace(FIRST, attempts=99, first_attempt_at=0, refused_at=0.0, evidence=99.0)
    assert judged(Verdict.ACKNOWLEDGED, old) == Delivered()


@pytest.mark.parametrize(
    ("attempts", "ceiling_s"),
    [(1, 0.25), (2, 0.5), (3, 1), (4, 2), (8, 32), (9, 60), (10, 60), (1000, 60), (10**9, 60)],
)
def test_backoff(attempts: int, ceiling_s: float) -> None:
    """Retries come after 0.25 s doubling to 60 s, with full jitter and without end."""
    history = replace(FIRST, attempts=attempts)
    for jitter in (0.0, 0.5, 1.0):
        assert judged(Verdict.RETRY, history, jitter=jitter) == Retry(ceiling_s * jitter)


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.REFUSED, Verdict.RECEIVER])
def test_floor(verdict: Verdict) -> None:
    """What the receiver asked for is a floor, not a replacement."""
    assert judged(verdict, floor_s=7) == Retry(7)
    assert judged(verdict, floor_s=0.125) == Retry(0.25)
    assert judged(verdict, jitter=0) == Retry(0)


#: Refused over a quarter of an hour, while so many others passed that chance is no explanation.
REFUSED = AttemptHistory(
    attempts=30, first_attempt_at=NOW - REFUSED_S, refused_at=NOW - REFUSED_S, evidence=CERTAIN
)


def test_dead_of_refusals() -> None:
    """Refused often and long enough, while others pass, a turn is dead."""
    assert judged(Verdict.REFUSED, REFUSED) == Dead("refused")


@pytest.mark.parametrize(
    "history",
    [
        replace(REFUSED, evidence=CERTAIN - 0.001, attempts=10_000),
        replace(REFUSED, refused_at=NOW - REFUSED_S + 0.5),
        replace(REFUSED, refused_at=None),
    ],
    ids=["perhaps by chance", "too short", "never"],
)
def test_not_dead_of_refusals(history: AttemptHistory) -> None:
    """One of the conditions missing, a refused turn is tried again."""
    assert isinstance(judged(Verdict.REFUSED, history), Retry)


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.FAILED, Verdict.RECEIVER])
def test_only_a_refusal_buries_the_refused(verdict: Verdict) -> None:
    """A turn that was refused before does not die of an outage."""
    assert isinstance(judged(verdict, REFUSED), Retry)


#: Failed twenty times over a day, while so many others passed that chance is no explanation.
POISON = AttemptHistory(
    attempts=20, first_attempt_at=NOW - DAY_S, refused_at=None, evidence=CERTAIN
)


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.REFUSED])
def test_poison(verdict: Verdict) -> None:
    """What failed twenty times over a day while others passed is dead."""
    assert judged(verdict, POISON) == Dead("poison")


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.RECEIVER])
def test_later_is_no_poison(verdict: Verdict) -> None:
    """Too many requests, unavailable or no answer at all say nothing about a turn."""
    assert isinstance(judged(verdict, POISON), Retry)


@pytest.mark.parametrize(
    "history",
    [
        replace(POISON, attempts=19),
        replace(POISON, first_attempt_at=NOW - DAY_S + 0.5),
        replace(POISON, evidence=CERTAIN - 0.001),
    ],
    ids=["too seldom", "too short", "perhaps by chance"],
)
def test_not_poison(history: AttemptHistory) -> None:
    """One of the three conditions missing, it is tried again."""
    assert isinstance(judged(Verdict.FAILED, history), Retry)


@pytest.mark.parametrize(
    ("told_at", "is_due"),
    [(None, True), (NOW, False), (NOW - 59, False), (NOW - 60, True), (NOW + 3600, True)],
)
def test_a_turn_that_fails_again_has_a_line_a_minute(
    told_at: float | None, *, is_due: bool
) -> None:
    """However often it is tried; a clock that was set back holds no line."""
    assert is_reported(told_at, NOW) is is_due


times = st.floats(0, 2 * NOW)
histories = st.builds(
    AttemptHistory,
    attempts=st.integers(1, 10**9),
    first_attempt_at=times,
    refused_at=st.none() | times,
    evidence=st.floats(0, 1e6),
)


@given(st.sampled_from(Verdict), histories, st.floats(0, 1), st.floats(0, 3600))
def test_whatever_is_past(
    verdict: Verdict, history: AttemptHistory, jitter: float, floor_s: float
) -> None:
    """A delay is never below the floor, nor above it and a minute; nothing dies in an outage."""
    decision = judged(verdict, history, jitter=jitter, floor_s=floor_s)
    assert (verdict is Verdict.ACKNOWLEDGED) == isinstance(decision, Delivered)
    if isinstance(decision, Retry):
        assert floor_s <= decision.seconds <= max(floor_s, 60)
    if isinstance(decision, Dead):
        assert history.evidence >= CERTAIN


# --- Retry-After ----------------------------------------------------------------------------


def date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("0", 0),
        ("120", 120),
        (" 120 ", 120),
        ("3600", 3600),
        ("3601", 3600),
        ("31536000", 3600),
        ("9" * 18, 3600),
        ("9" * 19, 0),
        ("-5", 0),
        ("1.5", 0),
        ("1e3", 0),
        ("٣", 0),
        ("soon", 0),
        ("120, 120", 0),
        (date(120), 120),
        (date(0), 0),
        (date(-120), 0),
        (date(366 * DAY_S), 3600),
        (date(120).replace("GMT", "-0000"), 120),
        (date(120).replace("GMT", "+0100"), 0),
        (date(120).replace("GMT", "-0100"), 3600),
        ("Sun, 22 Nov 20260 08:00:00 GMT", 0),
        ("Sun, 99 Nov 2026 08:00:00 GMT", 0),
        ("Sun, 22 Nov 2026 08:00:00 +9999", 0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 3600),
    ],
)
def test_retry_after(header: str | None, seconds: float) -> None:
    """Seconds and dates are taken, at most an hour of them; garbage and the history are none."""
    assert retry_after_s(header, NOW) == seconds


headers = st.one_of(
    st.none(),
    st.text(),
    st.integers().map(str),
    st.datetimes().map(lambda d: format_datetime(d.replace(tzinfo=UTC), usegmt=True)),
    st.lists(
        st.sampled_from(
            ["Sun,", "22", "Feb", "Nov", "2026", "0", "08:00:00", "99", "-1", "-0000", "+9999"]
        )
    ).map(" ".join),
)


@given(headers)
@example("0 Feb 0 99:99:99 -9999")
@example("\ud800")
def test_retry_after_whatever_comes(header: str | None) -> None:
    """Whatever the header says, it asks for no less than nothing and no more than an hour."""
    assert 0 <= retry_after_s(header, NOW) <= 3600
