from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import pytest

from paliadin_sidecar.delivery.rate_limiter import RateLimiter

if TYPE_CHECKING:
    from collections.abc import Callable

#: Of one attempt.
RTT_S = 0.005


def counts_all(limit: int, window_s: float) -> Callable[[float], bool]:
    """A limiter that counts what it refuses as well."""
    came: deque[float] = deque()

    def passes(now: float) -> bool:
        while came and came[0] <= now - window_s:
            came.popleft()
        came.append(now)
        return len(came) <= limit

    return passes


def counts_in_windows(limit: int, window_s: float) -> Callable[[float], bool]:
    """A limiter that begins anew with each window."""
    count = {-1: 0}

    def passes(now: float) -> bool:
        window = int(now // window_s)
        count[window] = count.get(window, 0) + 1
        return count[window] <= limit

    return passes


def leaks(per_s: float, burst: int) -> Callable[[float], bool]:
    """A leaky bucket, which does not count what it refuses."""
    level, at = 0.0, 0.0

    def passes(now: float) -> bool:
        nonlocal level, at
        level, at = max(0.0, level - (now - at) * per_s), now
        if level + 1 > burst:
            return False
        level += 1
        return True

    return passes


def play(
    passes: Callable[[float], bool],
    *,
    turns: int,
    retry_after_s: float,
    limiter: RateLimiter | None = None,
) -> tuple[float, list[float]]:
    """Send so many turns, eight at a time; returns when all had passed, and each refusal."""
    limiter, now = limiter or RateLimiter(), 0.0
    under_way: list[tuple[float, bool]] = []
    delivered, refused = 0, []
    while delivered < turns:
        left = turns - delivered - len(under_way)
        can_send = left > 0 and len(under_way) < 8
        if can_send and limiter.wait_s(now) <= 0:
            limiter.record_started(now)
            heappush(under_way, (now + RTT_S, passes(now)))
            continue
        moments = [under_way[0][0]] if under_way else []
        now = min([*moments, now + limiter.wait_s(now)] if can_send else moments)
        while under_way and under_way[0][0] <= now:
            _, passed = heappop(under_way)
            if passed:
                delivered += 1
                limiter.record_acknowledged(now)
            else:
                refused.append(now)
                limiter.record_throttled(now, started_at=now - RTT_S, retry_after_s=retry_after_s)
        assert now < 100_000
    return now, refused


@pytest.mark.parametrize(
    ("limiter", "best_s", "retry_after_s"),
    [
        (counts_all(20, 10), 200, 10),
        (counts_all(20, 10), 200, 1),
        (counts_all(20, 10), 200, 0),
        (counts_in_windows(20, 10), 200, 10),
        (counts_in_windows(20, 10), 200, 0),
        (counts_all(100, 1), 4, 1),
        (counts_all(100, 60), 240, 60),
        (leaks(2, 20), 200, 0),
        (leaks(50, 20), 8, 1),
    ],
)
def test_it_finds_the_rate_that_passes(
    limiter: Callable[[float], bool], best_s: float, retry_after_s: float
) -> None:
    """Four hundred turns pass a limiter in at most twice the best time, and few are refused."""
    took_s, refused = play(limiter, turns=400, retry_after_s=retry_after_s)
    assert took_s < 2 * best_s + 15
    assert len(refused) < 60


def test_a_limit_below_the_least_rate_is_found_by_resting() -> None:
    """Five a minute, refused ones counted and none named: it still gets through."""
    took_s, _ = play(counts_all(5, 60), turns=50, retry_after_s=0)
    assert took_s < 1800


def test_nothing_is_held_where_nobody_says_later() -> None:
    """A receiver that takes all gets all at once."""
    took_s, refused = play(lambda _: True, turns=400, retry_after_s=0)
    assert took_s == pytest.approx(400 / 8 * RTT_S)
    assert refused == []


def test_the_whole_sender_rests() -> None:
    """What is asked for holds whatever is sent next, and no later word makes it shorter."""
    limiter = RateLimiter()
    limiter.record_throttled(10.0, started_at=9.0, retry_after_s=30.0)
    limiter.record_throttled(11.0, started_at=9.5, retry_after_s=1.0)
    assert limiter.wait_s(12.0) == 28
    limiter.record_throttled(13.0, started_at=9.5, retry_after_s=60.0)
    assert limiter.wait_s(13.0) == 60
    assert RateLimiter(resting_until=100.0).wait_s(40.0) == 60


def test_those_that_were_under_way_count_once() -> None:
    """Eight turns that meet one limit slow the sender down once."""
    limiter = RateLimiter()
    for _ in range(8):
        limiter.record_throttled(10.0, started_at=9.9, retry_after_s=0.0)
    assert limiter.resting_until == 10.25
    assert limiter.rate == 1


def test_a_row_of_later_doubles_the_rest() -> None:
    """As long as nothing passes, each rest is longer, up to a minute."""
    limiter, now, rests = RateLimiter(), 0.0, []
    for _ in range(10):
        limiter.record_throttled(now, started_at=now, retry_after_s=0.0)
        rests.append(limiter.wait_s(now))
        now = limiter.resting_until
    assert rests == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    limiter.record_acknowledged(now)
    limiter.record_throttled(now, started_at=now, retry_after_s=0.0)
    assert limiter.wait_s(now) == 0.25


@pytest.mark.parametrize(
    ("row", "passed_s_ago", "rate"), [(29, 10, math.inf), (30, 10, 1.6), (30, 70, math.inf)]
)
def test_a_limit_that_nobody_names(row: int, passed_s_ago: int, rate: float) -> None:
    """A long row that ends is one where turns passed a short while ago; else it was an outage."""
    limiter = RateLimiter()
    for _ in range(20):
        limiter.record_acknowledged(100.0 - passed_s_ago)
    for _ in range(row):
        limiter.record_postponed()
    assert limiter.wait_s(100.0) == 0
    limiter.record_acknowledged(100.0)
    assert limiter.rate == pytest.approx(rate, rel=0.05)
    assert limiter.wait_s(100.0) == 0


def test_a_turn_that_comes_alone_is_not_held_by_the_rate() -> None:
    """Only the next one waits."""
    limiter = RateLimiter()
    limiter.record_throttled(0.0, started_at=0.0, retry_after_s=1.0)
    assert limiter.wait_s(5.0) == 0
    limiter.record_started(5.0)
    assert limiter.wait_s(5.0) == 1


def test_a_limit_is_forgotten() -> None:
    """After ten minutes without it, or when far more passes."""
    limiter = RateLimiter()
    limiter.record_throttled(0.0, started_at=0.0, retry_after_s=1.0)
    assert limiter.wait_s(602.0) == 0
    assert limiter.rate == math.inf
    limiter.record_throttled(700.0, started_at=700.0, retry_after_s=0.0)
    for n in range(200):
        limiter.record_acknowledged(701.0 + n)
    assert limiter.rate == math.inf


def test_a_limit_is_forgotten_while_the_machine_sleeps() -> None:
    """Whoever opens the lid in the morning does not wait for the limit of the evening."""
    limiter = RateLimiter()
    limiter.record_throttled(0.0, started_at=0.0, retry_after_s=60.0)
    limiter.record_slept(8 * 3600.0)
    assert limiter.wait_s(1.0) == 0
    assert not limiter.is_limited
