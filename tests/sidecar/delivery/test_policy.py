from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paliadin_sidecar.delivery.evidence import SURE
from paliadin_sidecar.delivery.policy import (
    PARALLEL,
    Circuit,
    Dead,
    Decision,
    Delivered,
    Past,
    Retry,
    Verdict,
    classify,
    decide,
    is_told,
    retry_after_s,
)

#: 2026-11-22, 08:00 UTC.
NOW = 1_795_334_400.0
REFUSED_S = 900.0
DAY_S = 86_400.0

FIRST = Past(attempts=1, first_attempt_at=NOW, refused_at=None, evidence=0.0)


def judged(
    verdict: Verdict, past: Past = FIRST, *, jitter: float = 1.0, **floor: float
) -> Decision:
    return decide(verdict, past, NOW, refused_s=REFUSED_S, random=lambda: jitter, **floor)


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
def test_whose_fault(status: int) -> None:
    """A redirect, a refused signature and a missing route may be the receiver's own fault."""
    assert classify(status) is Verdict.WHOSE_FAULT


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
    past = replace(FIRST, attempts=attempts)
    for jitter in (0.0, 0.5, 1.0):
        assert judged(Verdict.RETRY, past, jitter=jitter) == Retry(ceiling_s * jitter)


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.REFUSED, Verdict.RECEIVER])
def test_floor(verdict: Verdict) -> None:
    """What the receiver asked for is a floor, not a replacement."""
    assert judged(verdict, floor_s=7) == Retry(7)
    assert judged(verdict, floor_s=0.125) == Retry(0.25)
    assert judged(verdict, jitter=0) == Retry(0)


#: Refused over a quarter of an hour, while so many others passed that chance is no explanation.
REFUSED = Past(
    attempts=30, first_attempt_at=NOW - REFUSED_S, refused_at=NOW - REFUSED_S, evidence=SURE
)


def test_dead_of_refusals() -> None:
    """Refused often and long enough, while others pass, a turn is dead."""
    assert judged(Verdict.REFUSED, REFUSED) == Dead("refused")


@pytest.mark.parametrize(
    "past",
    [
        replace(REFUSED, evidence=SURE - 0.001, attempts=10_000),
        replace(REFUSED, refused_at=NOW - REFUSED_S + 0.5),
        replace(REFUSED, refused_at=None),
    ],
    ids=["perhaps by chance", "too short", "never"],
)
def test_not_dead_of_refusals(past: Past) -> None:
    """One of the conditions missing, a refused turn is tried again."""
    assert isinstance(judged(Verdict.REFUSED, past), Retry)


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.FAILED, Verdict.RECEIVER])
def test_only_a_refusal_buries_the_refused(verdict: Verdict) -> None:
    """A turn that was refused before does not die of an outage."""
    assert isinstance(judged(verdict, REFUSED), Retry)


#: Failed twenty times over a day, while so many others passed that chance is no explanation.
POISON = Past(attempts=20, first_attempt_at=NOW - DAY_S, refused_at=None, evidence=SURE)


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.REFUSED])
def test_poison(verdict: Verdict) -> None:
    """What failed twenty times over a day while others passed is dead."""
    assert judged(verdict, POISON) == Dead("poison")


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.RECEIVER])
def test_later_is_no_poison(verdict: Verdict) -> None:
    """Too many requests, unavailable or no answer at all say nothing about a turn."""
    assert isinstance(judged(verdict, POISON), Retry)


@pytest.mark.parametrize(
    "past",
    [
        replace(POISON, attempts=19),
        replace(POISON, first_attempt_at=NOW - DAY_S + 0.5),
        replace(POISON, evidence=SURE - 0.001),
    ],
    ids=["too seldom", "too short", "perhaps by chance"],
)
def test_not_poison(past: Past) -> None:
    """One of the three conditions missing, it is tried again."""
    assert isinstance(judged(Verdict.FAILED, past), Retry)


@pytest.mark.parametrize(
    ("told_at", "is_due"),
    [(None, True), (NOW, False), (NOW - 59, False), (NOW - 60, True), (NOW + 3600, True)],
)
def test_a_turn_that_fails_again_has_a_line_a_minute(
    told_at: float | None, *, is_due: bool
) -> None:
    """However often it is tried; a clock that was set back holds no line."""
    assert is_told(told_at, NOW) is is_due


times = st.floats(0, 2 * NOW)
pasts = st.builds(
    Past,
    attempts=st.integers(1, 10**9),
    first_attempt_at=times,
    refused_at=st.none() | times,
    evidence=st.floats(0, 1e6),
)


@given(st.sampled_from(Verdict), pasts, st.floats(0, 1), st.floats(0, 3600))
def test_whatever_is_past(verdict: Verdict, past: Past, jitter: float, floor_s: float) -> None:
    """A delay is never below the floor, nor above it and a minute; nothing dies in an outage."""
    decision = judged(verdict, past, jitter=jitter, floor_s=floor_s)
    assert (verdict is Verdict.ACKNOWLEDGED) == isinstance(decision, Delivered)
    if isinstance(decision, Retry):
        assert floor_s <= decision.seconds <= max(floor_s, 60)
    if isinstance(decision, Dead):
        assert past.evidence >= SURE


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
    """Seconds and dates are taken, at most an hour of them; garbage and the past are none."""
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


# --- the circuit ----------------------------------------------------------------------------


def test_five_failures_call_for_a_pause() -> None:
    """The fifth connection failure in a row asks for a pause, and so does each after it."""
    circuit = Circuit()
    assert [circuit.unanswered() for _ in range(6)] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("acknowledged", [True, False])
def test_an_answer_ends_the_row(*, acknowledged: bool) -> None:
    """Any answer, a refusal too, proves that the receiver can be reached."""
    circuit = Circuit()
    for _ in range(3):
        assert [circuit.unanswered() for _ in range(4)] == [False] * 4
        circuit.answered(acknowledged=acknowledged)


def test_paused() -> None:
    """While paused no turn may go out, and no failure asks for another pause."""
    circuit = Circuit()
    assert (circuit.paused, circuit.window) == (False, PARALLEL)
    circuit.pause()
    assert (circuit.paused, circuit.window) == (True, 0)
    assert not any(circuit.unanswered() for _ in range(9))
    assert Circuit(paused=True).window == 0


def test_pings() -> None:
    """Pings go out after 1 s doubling to 60 s, in each pause anew."""
    circuit = Circuit()
    for _ in range(2):
        circuit.pause()
        waits = [circuit.next_ping_s() for _ in range(9)]
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
        circuit.resume()


@pytest.mark.parametrize("circuit", [Circuit(), Circuit(paused=True)], ids=["now", "at start"])
def test_slow_start(circuit: Circuit) -> None:
    """After a pause two turns at once, and one more with each acknowledgement, up to the most."""
    circuit.pause()
    circuit.resume()
    windows = []
    for _ in range(PARALLEL):
        windows.append(circuit.window)
        circuit.answered(acknowledged=True)
    assert windows == [2, 3, 4, 5, 6, 7, 8, 8]


def test_a_slow_start_waits_for_acknowledgements() -> None:
    """A refusal opens the window no further."""
    circuit = Circuit(paused=True)
    circuit.resume()
    circuit.answered(acknowledged=False)
    assert circuit.window == 2


def test_a_pause_forgets_the_failures() -> None:
    """After a pause five failures are needed again for the next one."""
    circuit = Circuit()
    while not circuit.unanswered():
        pass
    circuit.pause()
    circuit.resume()
    assert [circuit.unanswered() for _ in range(5)] == [False] * 4 + [True]


def test_fifty_in_a_row_are_asked_about() -> None:
    """Put off fifty times with nothing acknowledged, a ping asks; and again after a minute."""
    circuit = Circuit()
    assert [circuit.later(0.1) for _ in range(51)] == [False] * 49 + [True, False]
    assert not circuit.later(60.0)
    assert circuit.later(60.1)


def test_ten_over_half_a_minute_are_asked_about() -> None:
    """Where few turns wait, time counts."""
    circuit = Circuit()
    assert [circuit.later(3.0 * n) for n in range(12)] == [False] * 10 + [True, False]


def test_an_acknowledgement_ends_the_row_of_later() -> None:
    """A receiver that lets one turn of forty through is not asked whether it is well."""
    circuit = Circuit()
    for _ in range(9):
        assert not any(circuit.later(9.0) for _ in range(40))
        circuit.answered(acknowledged=True)


def test_what_failed_trickles_where_only_pings_are_well() -> None:
    """A receiver that takes pings and no turns gets one of those a second, until one passes."""
    circuit = Circuit()
    assert not circuit.trickles
    assert circuit.retry_in_s(7.0) == 0
    while not circuit.later(7.0):
        pass
    assert circuit.trickles
    circuit.tried_again(8.0)
    assert circuit.retry_in_s(8.25) == 0.75
    circuit.answered(acknowledged=True)
    assert not circuit.trickles
    assert circuit.retry_in_s(8.25) == 0


def test_nobody_is_asked_in_a_pause() -> None:
    """The pause asks by itself."""
    circuit = Circuit(paused=True)
    assert not any(circuit.later(float(n)) for n in range(99))
    circuit.resume()
    assert not circuit.later(100.0)
