from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from paliadin_sidecar.delivery import slots as slots_module
from paliadin_sidecar.delivery.breaker import MAX_CONCURRENCY, CircuitBreaker
from paliadin_sidecar.delivery.rate_limiter import RateLimiter
from paliadin_sidecar.delivery.slots import Slots
from paliadin_sidecar.outbox.records import Delivery

if TYPE_CHECKING:
    import pytest

_ids = itertools.count(1)


def delivery(*, attempts: int = 0, root: str = "aichat/paliadin", size: int = 1) -> Delivery:
    id_ = next(_ids)
    return Delivery(
        id=id_,
        turn=id_,
        webhook_id=f"w{id_}",
        body=b"x" * size,
        accepted_at=0.0,
        root=root,
        attempts=attempts,
    )


def test_retries_get_half_of_them() -> None:
    """However many wait; and what ends gives its slot back."""
    slots = Slots(CircuitBreaker(), RateLimiter())
    assert slots.free(0.0, 0) == (MAX_CONCURRENCY, MAX_CONCURRENCY // 2, 0.0)
    retries = [delivery(attempts=1) for _ in range(MAX_CONCURRENCY // 2)]
    for one in retries:
        slots.take(one, 0.0)
    assert slots.last_was_retry
    assert slots.free(0.0, 0) == (MAX_CONCURRENCY // 2, 0, 0.0)
    for _ in range(MAX_CONCURRENCY // 2):
        slots.take(delivery(), 0.0)
    assert not slots.last_was_retry
    assert slots.free(0.0, 0) == (0, 0, 0.0)
    slots.give_back(retries[0])
    assert slots.free(0.0, 0) == (1, 1, 0.0)


def test_a_pause_leaves_none() -> None:
    """No time is known at which there will be one: a ping ends it."""
    breaker = CircuitBreaker()
    breaker.pause()
    assert Slots(breaker, RateLimiter()).free(0.0, 0) == (0, 0, 0.0)


def test_a_receiver_that_limits() -> None:
    """None before its time, and then one of each kind."""
    limiter = RateLimiter()
    limiter.record_throttled(10.0, started_at=10.0, retry_after_s=5.0)
    slots = Slots(CircuitBreaker(), limiter)
    free, retries, wait_s = slots.free(10.0, 0)
    assert (free, retries) == (0, 0)
    assert wait_s >= 5.0
    free, retries, _ = slots.free(10.0 + wait_s, 0)
    assert free <= 2
    assert retries == 1


def test_what_is_not_written_down_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash would send it again."""
    monkeypatch.setattr(slots_module, "_MAX_UNRECORDED", 3)
    slots = Slots(CircuitBreaker(), RateLimiter())
    assert [slots.free(0.0, unrecorded)[0] for unrecorded in (0, 2, 3, 9)] == [3, 1, 0, 0]


def test_roots_by_turns_and_bodies_that_fit() -> None:
    """A root with many keeps none of another waiting, nor a large body beside a large one."""
    slots = Slots(CircuitBreaker(), RateLimiter())
    many = [delivery(root="a") for _ in range(9)]
    other = delivery(root="b")
    chosen = slots.choose([*many, other], 2, [])
    assert {one.root for one in chosen} == {"a", "b"}
    large = [delivery(size=20 * 1024 * 1024, root=root) for root in "ab"]
    assert len(slots.choose(large, 2, [])) == 1
    assert slots.choose([], 2, []) == []
