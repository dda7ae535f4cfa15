from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliadin_sidecar.intake.queues import DueQueue, TokenBucket


def taken(queue: DueQueue[str]) -> list[str]:
    found = []
    while queue.next_at() is not None:
        found.append(queue.pop())
    return found


def test_in_the_order_of_their_times() -> None:
    """The first one due comes first; of those due at once, the one that was put first."""
    queue: DueQueue[str] = DueQueue()
    for item, at in (("b", 2.0), ("a", 1.0), ("c", 2.0)):
        queue.put(item, at)
    assert queue.next_at() == 1.0
    assert taken(queue) == ["a", "b", "c"]
    assert (len(queue), queue.next_at()) == (0, None)


def test_the_last_time_counts() -> None:
    """An item that is put again is there once, at its new time, earlier or later."""
    queue: DueQueue[str] = DueQueue()
    queue.put("a", 1.0)
    queue.put("b", 2.0)
    queue.put("a", 3.0)
    assert len(queue) == 2
    assert taken(queue) == ["b", "a"]
    queue.put("a", 9.0)
    queue.put("a", 4.0)
    queue.put("b", 5.0)
    queue.remove("b")
    queue.remove("never there")
    assert (queue.next_at(), taken(queue)) == (4.0, ["a"])


def test_memory_is_bounded() -> None:
    """Whatever is put again and again leaves no trace of the times before."""
    queue: DueQueue[str] = DueQueue()
    for n in range(10_000):
        queue.put(f"{n % 10}", 600.0 + n)
    assert len(queue) == 10
    assert len(queue._heap) < 100


@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 9))))
def test_like_a_sorted_dictionary(steps: list[tuple[str, int | None]]) -> None:
    """After any changes the items come as their last times say."""
    queue: DueQueue[str] = DueQueue()
    expected: dict[str, int] = {}
    for item, at in steps:
        expected.pop(item, None)
        if at is None:
            queue.remove(item)
        else:
            queue.put(item, at)
            expected[item] = at
    assert taken(queue) == sorted(expected, key=lambda item: expected[item])


def test_a_budget() -> None:
    """So many at once, so many a second later, and never more than the first number."""
    budget = TokenBucket(2, 0.5)
    assert [budget.spend(9.0) for _ in range(3)] == [True, True, False]
    assert budget.wait_s(9.0) == 2.0
    assert budget.wait_s(10.0) == pytest.approx(1.0)
    assert not budget.spend(10.5)
    assert budget.spend(11.0)
    assert [budget.spend(1e6) for _ in range(3)] == [True, True, False]
