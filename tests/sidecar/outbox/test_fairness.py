from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliadin_sidecar.outbox.fairness import Budget, DueQueue, FairShare, Shares


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
    budget = Budget(2, 0.5)
    assert [budget.spend(9.0) for _ in range(3)] == [True, True, False]
    assert budget.wait_s(9.0) == 2.0
    assert budget.wait_s(10.0) == pytest.approx(1.0)
    assert not budget.spend(10.5)
    assert budget.spend(11.0)
    assert [budget.spend(1e6) for _ in range(3)] == [True, True, False]


# --- which root's turn it is to send --------------------------------------------------------


def sent(share: FairShare, queues: dict[str, list[str]], *, places: int = 1) -> list[str]:
    """All of these, each acknowledged before so many further ones go out."""
    left, order = {root: list(queue) for root, queue in queues.items()}, []
    while found := share.order(left, places):
        for item in found:
            root = next(root for root in left if item in left[root])
            left[root].remove(item)
            share.started(root)
            order.append(item)
        for item in found:
            share.finished(next(root for root in queues if item in queues[root]))
    return order


def many(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


@pytest.mark.parametrize("places", [1, 2, 8])
def test_roots_take_turns(places: int) -> None:
    """However much one root has, each of the others sends as often until it has nothing left."""
    order = sent(FairShare(), {"a": many("a", 50), "b": many("b", 3), "c": ["c0"]}, places=places)
    assert sorted(order[:3]) == ["a0", "b0", "c0"]
    assert set(many("b", 3)) <= set(order[:7])
    assert [one for one in order if one[0] == "a"] == many("a", 50)


def test_a_root_whose_attempts_take_long() -> None:
    """What is under way counts: a root that fills the places leaves free ones to the others."""
    share = FairShare()
    for _ in range(8):
        share.started("slow")
    queues = {"quick": many("q", 20), "slow": many("s", 20)}
    share.finished("slow")
    assert share.order(queues, 1) == ["q0"]
    for _ in range(3):  # until they have as many
        share.started("quick")
        share.finished("slow")
        assert share.order(queues, 1) == ["q0"]
    share.started("quick")
    for _ in range(20):  # and what is quick goes on in its half
        share.finished("quick")
        assert share.order(queues, 1) == ["q0"]
        share.started("quick")
    assert share.under_way == {"slow": 4, "quick": 4}


def test_nothing_is_saved_up() -> None:
    """A root that was silent for long sends one before the others, and then in turn with them."""
    share = FairShare()
    sent(share, {"a": many("a", 100)})
    assert sent(share, {"a": many("x", 3), "b": many("y", 3)})[:4] == ["y0", "x0", "y1", "x1"]


def test_an_order_is_no_start() -> None:
    """What was asked for and did not go out keeps its turn."""
    share = FairShare(both_ends=True)
    queues = {"a": many("a", 5), "b": many("b", 5)}
    assert share.order(queues, 3) == share.order(queues, 3) == ["a0", "b0", "a4"]
    assert share.order(queues, 0) == share.order({}, 3) == share.order({"a": []}, 3) == []


@given(st.integers(1, 40), st.integers(1, 8))
def test_both_ends(count: int, places: int) -> None:
    """Each goes once: the newest by the second start, one with n before it by start 2n + 1."""
    items = many("a", count)
    order = sent(FairShare(both_ends=True), {"a": items}, places=places)
    assert sorted(order) == sorted(items)
    assert items[-1] in order[:2]
    assert all(order.index(item) <= 2 * n for n, item in enumerate(items))


def test_kinds_of_attempts_are_apart() -> None:
    """A root whose retries fill their places is not behind with its first attempts."""
    shares = Shares()
    for _ in range(4):
        shares.of(3).started("a")
    before = shares.copy()
    shares.of(0).started("b")
    assert shares.of(0).order({"a": ["a0"], "b": ["b0"]}, 2) == ["a0", "b0"]
    assert shares.of(1).order({"a": ["a0"], "b": ["b0"]}, 2) == ["b0", "a0"]
    assert before.of(0).under_way == {}
