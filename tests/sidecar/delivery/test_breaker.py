from __future__ import annotations

import math

import pytest

from paliadin_sidecar.delivery.breaker import MAX_CONCURRENCY, CircuitBreaker


def test_five_failures_call_for_a_pause() -> None:
    """The fifth connection failure in a row asks for a pause, and so does each after it."""
    breaker = CircuitBreaker()
    assert [breaker.record_failure() for _ in range(6)] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("acknowledged", [True, False])
def test_an_answer_ends_the_row(*, acknowledged: bool) -> None:
    """Any answer, a refusal too, proves that the receiver can be reached."""
    breaker = CircuitBreaker()
    for _ in range(3):
        assert [breaker.record_failure() for _ in range(4)] == [False] * 4
        breaker.record_response(acknowledged=acknowledged)


def test_paused() -> None:
    """While paused no turn may go out, and no failure asks for another pause."""
    breaker = CircuitBreaker()
    assert (breaker.paused, breaker.concurrency_limit) == (False, MAX_CONCURRENCY)
    breaker.pause()
    assert (breaker.paused, breaker.concurrency_limit) == (True, 0)
    assert not any(breaker.record_failure() for _ in range(9))
    assert CircuitBreaker(paused=True).concurrency_limit == 0


def test_pings() -> None:
    """Pings go out after 1 s doubling to 60 s, in each pause anew."""
    breaker = CircuitBreaker()
    for _ in range(2):
        breaker.pause()
        waits = [breaker.next_ping_s(0.0) for _ in range(9)]
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
        breaker.resume()


@pytest.mark.parametrize(
    "breaker", [CircuitBreaker(), CircuitBreaker(paused=True)], ids=["now", "at start"]
)
def test_slow_start(breaker: CircuitBreaker) -> None:
    """After a pause two turns at once, and one more with each acknowledgement, up to the most."""
    breaker.pause()
    breaker.resume()
    limits = []
    for _ in range(MAX_CONCURRENCY):
        limits.append(breaker.concurrency_limit)
        breaker.record_response(acknowledged=True)
    assert limits == [2, 3, 4, 5, 6, 7, 8, 8]


def test_a_slow_start_waits_for_acknowledgements() -> None:
    """A refusal opens no more slots."""
    breaker = CircuitBreaker(paused=True)
    breaker.resume()
    breaker.record_response(acknowledged=False)
    assert breaker.concurrency_limit == 2


def test_a_pause_forgets_the_failures() -> None:
    """After a pause five failures are needed again for the next one."""
    breaker = CircuitBreaker()
    while not breaker.record_failure():
        pass
    breaker.pause()
    breaker.resume()
    assert [breaker.record_failure() for _ in range(5)] == [False] * 4 + [True]


def test_fifty_in_a_row_are_asked_about() -> None:
    """Put off fifty times with nothing acknowledged, a ping asks; and again after a minute."""
    breaker = CircuitBreaker()
    assert [breaker.record_postponed(0.1) for _ in range(51)] == [False] * 49 + [True, False]
    assert not breaker.record_postponed(60.0)
    assert breaker.record_postponed(60.1)


def test_ten_over_half_a_minute_are_asked_about() -> None:
    """Where few turns wait, time counts."""
    breaker = CircuitBreaker()
    assert [breaker.record_postponed(3.0 * n) for n in range(12)] == [False] * 10 + [True, False]


def test_an_acknowledgement_ends_the_row_of_later() -> None:
    """A receiver that lets one turn of forty through is not asked whether it is well."""
    breaker = CircuitBreaker()
    for _ in range(9):
        assert not any(breaker.record_postponed(9.0) for _ in range(40))
        breaker.record_response(acknowledged=True)


def test_what_failed_trickles_where_only_pings_are_well() -> None:
    """A receiver that takes pings and no turns gets one of those a second, until one passes."""
    breaker = CircuitBreaker()
    assert not breaker.retries_are_throttled
    assert breaker.retry_in_s(7.0) == 0
    while not breaker.record_postponed(7.0):
        pass
    assert breaker.retries_are_throttled
    breaker.record_retry(8.0)
    assert breaker.retry_in_s(8.25) == 0.75
    breaker.record_response(acknowledged=True)
    assert not breaker.retries_are_throttled
    assert breaker.retry_in_s(8.25) == 0


def test_nobody_is_asked_in_a_pause() -> None:
    """The pause asks by itself."""
    breaker = CircuitBreaker(paused=True)
    assert not any(breaker.record_postponed(float(n)) for n in range(99))
    breaker.resume()
    assert not breaker.record_postponed(100.0)


def test_hurry() -> None:
    """After an interruption pings come every second for half a minute, then as before."""
    breaker = CircuitBreaker()
    assert breaker.max_delay_s(0.0) == math.inf
    breaker.pause()
    for _ in range(9):
        breaker.next_ping_s(0.0)
    breaker.interrupted(100.0)
    assert [breaker.next_ping_s(100.0 + n) for n in range(30)] == [1.0] * 30
    assert breaker.max_delay_s(129.9) == 1.0
    assert breaker.max_delay_s(130.0) == math.inf
    assert breaker.next_ping_s(130.0) == 60.0
