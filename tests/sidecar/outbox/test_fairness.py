from __future__ import annotations

from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliadin_sidecar.outbox.fairness import FairShare, Shares

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
    before = deepcopy(shares)
    shares.of(0).started("b")
    assert shares.of(0).order({"a": ["a0"], "b": ["b0"]}, 2) == ["a0", "b0"]
    assert shares.of(1).order({"a": ["a0"], "b": ["b0"]}, 2) == ["b0", "a0"]
    assert before.of(0).under_way == {}
