from __future__ import annotations

import sqlite3
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.outbox_box import NOW, Box, answer, key, sha256, webhook_id

import paliadin_sidecar.outbox.database
from paliadin_sidecar.outbox import acceptance, queue, transitions
from paliadin_sidecar.outbox.queue import FairShare, Shares
from paliadin_sidecar.outbox.records import Delivery, Outcome, TurnKey

if TYPE_CHECKING:
    from paliadin_sidecar.outbox.database import Outbox


def test_due_in_order(box: Box) -> None:
    """What was tried before comes first, by its time; then the oldest and the newest in turn."""
    for name in "abcd":
        box(acceptance.accept, answer(key=key(name)))
    for due in box.due():
        if (name := due.webhook_id.split("_")[2]) in "ab":
            box.retry(due, {"a": 2, "b": 1}[name])
    box.now += 2
    for limit, max_retries, names in (
        (9, 9, "bacd"),
        (9, 1, "bcd"),
        (2, 1, "bc"),
        (2, 2, "ba"),
        (3, 0, "cd"),
        (0, 0, ""),
    ):
        found = box.due(limit=limit, max_retries=max_retries)
        assert "".join(due.webhook_id.split("_")[2] for due in found) == names


def test_roots_take_turns(box: Box) -> None:
    """What one root has waiting stands before nothing of another, of either kind of attempt."""
    for n in range(20):
        box(acceptance.accept, answer(key=key(f"a{n}")))
    other = TurnKey("legacy", "paliadin", "b0"), TurnKey("aichat", "other", "c0")
    for one in other:
        box(acceptance.accept, answer(key=one))
    found = box.due(limit=3)
    assert sorted(due.root for due in found) == [
        "aichat/other",
        "aichat/paliadin",
        "legacy/paliadin",
    ]
    for due in box.due(limit=99):
        box.retry(due, 0)
    again = box.due(limit=3, max_retries=3)
    assert sorted(due.id for due in again) == sorted(due.id for due in found)
    shares = Shares()
    for due in again:
        shares.retries.started(due.root)
    (after,) = box(
        queue.fetch_due, [due.turn for due in again], limit=1, max_retries=1, shares=shares
    )[0]
    assert after.root == "aichat/paliadin"
    assert shares.retries.starts == 3  # what is due is no start


def test_a_replayed_flood(box: Box) -> None:
    """What an operator sends again, however old, holds no new answer."""
    for n in range(20):
        box(acceptance.accept, answer(key=key(f"old{n}")))
    for due in box.due(limit=20):
        box.acknowledge(due)
    assert box(transitions.replay) == (20, [])
    box(acceptance.accept, answer(key=key("new")))
    assert "new" in [due.webhook_id.split("_")[2] for due in box.due(limit=2)]


@pytest.mark.parametrize("query", ["first_attempts", "retries", "next_attempts"])
def test_what_is_due_is_found_by_an_index(box: Box, query: str) -> None:
    """No row is read that is not pending, nor all that are."""
    statement = getattr(paliadin_sidecar.outbox.database.sql, query)
    values = {"busy": "[]", "max_size": None, "limit": 1, "now": 0}
    with closing(sqlite3.connect(box.path)) as db:
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert [step for step in plan if "USING INDEX delivery_" in step]
    # Roots, what is under way, and the few ids that were found.
    scanned = {step for step in plan if step.startswith("SCAN")}
    assert {step.split()[1] for step in scanned} <= {
        "r",
        "json_each",
        "(subquery-5)",
        "(subquery-8)",
    }


def test_not_due_yet(box: Box) -> None:
    """A retry is due when its delay is over, and it is known when that will be."""
    assert box.due_in() is None
    box(acceptance.accept, answer())
    assert box.due_in() is None
    box.retry(box.due()[0], 1.5)
    assert box.due() == []
    assert box.due_in() == 1.5
    box.now += 1.499
    assert box.due() == []
    assert box.due_in() == 0.001
    box.now += 0.001
    assert [due.attempts for due in box.due()] == [1]
    assert box.due_in() is None


def test_busy(box: Box) -> None:
    """A turn that is under way has nothing due, its newer revision neither."""
    for name in "ab":
        box(acceptance.accept, answer(key=key(name)))
    first, second = box.due()
    box(acceptance.accept, answer("No.", key("a")))
    assert [due.turn for due in box.due(first.turn)] == [second.turn]
    assert box.due(first.turn, second.turn) == []
    box.retry(second, 0)
    assert box.due(first.turn, second.turn) == []
    assert [due.webhook_id for due in box.due(second.turn)] == [webhook_id(2, sha256("No."), "a")]


@pytest.mark.parametrize("back_s", [1, 3600, 10 * 365 * 86_400])
def test_a_clock_that_was_set_back_meanwhile(box: Box, back_s: float) -> None:
    """Where no daemon ran, a retry is due at once, and not when it was to be."""
    box(acceptance.accept, answer())
    box.retry(box.due()[0], 60)
    box.outbox.close()
    box = Box(box.path)
    box.now -= back_s

    def cut_short(outbox: Outbox) -> None:
        queue.fetch_due(outbox, (), limit=9, max_retries=9)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        box(cut_short)
    assert len(box.due()) == 1  # what was not committed is done again
    box.outbox.close()


@pytest.mark.parametrize("by_s", [-3600, 3600])
def test_who_asks_right_after_the_clock_was_set(box: Box, by_s: float) -> None:
    """The wait for the next retry is as long as it was, also in the transaction that follows."""
    box(acceptance.accept, answer())
    box.retry(box.due()[0], 60)
    assert box.due_in() == 60
    box.set_date(by_s)
    assert box.due_in() == 60


def test_a_clock_that_is_set_within_a_transaction(box: Box) -> None:
    """An attempt and its delay are dated alike, so that no turn waits for the hour between them."""
    box(acceptance.accept, answer())
    (due,) = box.due()
    tried = replace(due, attempts=1, first_attempt_at=box.now)

    def put_off(outbox: Outbox) -> None:
        box.set_date(3600)
        transitions.record_retry(outbox, tried, Outcome(status=503, ms=1.0), 1)

    box(put_off)
    box.set_date(-3600)
    box.now += 2
    assert len(box.due()) == 1


def test_a_clock_that_is_set_while_it_is_read(box: Box) -> None:
    """The times of a transaction and the clock that they are of come from one reading."""
    box(acceptance.accept, answer())
    (due,) = box.due()
    wall, readings = box.outbox.wall, [3600.0, 0.0]  # it is set forward after the first reading
    box.outbox.wall = lambda: wall() + (readings.pop() if readings else 3600.0)
    box.retry(due, 60)
    box.outbox.wall = wall  # and back before the next transaction
    assert box.due_in() == 60


def test_what_was_tried_is_kept(box: Box) -> None:
    """Attempts and refusals outlive a restart: the policy sees them all."""
    box(acceptance.accept, answer())
    (due,) = box.due()
    tried = replace(due, attempts=3, first_attempt_at=NOW + 0.25, refusals=2, refused_at=NOW + 0.5)
    box(transitions.record_retry, tried, Outcome(status=400, ms=1.0), 0, refused=True)
    with closing(Box(box.path).outbox) as outbox:
        outbox.wall = lambda: NOW + 1
        kept = replace(tried, reported_attempt=3, reported_at=NOW)
        assert queue.fetch_due(outbox, (), limit=9, max_retries=9) == ([kept], None)


def test_what_the_receiver_asked_for_outlives_a_restart(box: Box) -> None:
    """A pause that is longer than any of ours was its own wish, and holds all turns."""
    assert box(queue.retry_after_s, 60.0) == 0
    box(acceptance.accept, answer(key=key("a")))
    box.retry(box.due()[0], 60.0)
    assert box(queue.retry_after_s, 60.0) == 0
    box(acceptance.accept, answer(key=key("b")))
    box.retry(box.due()[0], 1800.0)
    assert box(queue.retry_after_s, 60.0) == 1800
    box.now += 1801
    assert box(queue.retry_after_s, 60.0) == 0


def test_what_is_in_memory_is_bounded_by_bytes(box: Box) -> None:
    """Large bodies go one after the other, and small ones behind them do not wait."""
    for n in range(3):
        box(acceptance.accept, answer(bytes(4 * 1024 * 1024) + b"%d" % n, key(f"large{n}")))
    for n in range(3):
        box(acceptance.accept, answer(f"{n}", key(f"small{n}")))
    found = box.due()
    large, *small = [due.webhook_id.split("_")[2] for due in found]
    assert (large, sorted(small)) == ("large0", ["small0", "small1", "small2"])
    busy = [due.turn for due in found]
    sizes = [len(due.body) for due in found]
    assert box(queue.fetch_due, busy, limit=9, max_retries=9, held=sizes)[0] == []
    (next_large,) = box(queue.fetch_due, busy, limit=1, max_retries=1, held=sizes[1:])[0]
    assert next_large.webhook_id.split("_")[2] == "large1"


@pytest.mark.parametrize("attempts", [0, 1])
def test_a_backlog_does_not_make_its_own_delivery_slow(box: Box, attempts: int) -> None:
    """What is due is found in the same number of the database's steps, however many wait."""

    def fail(fresh: Delivery) -> None:
        due = replace(fresh, attempts=attempts, first_attempt_at=box.now)
        transitions.record_retry(box.outbox, due, Outcome(status=503, ms=1.0), 0)

    def take(name: str, count: int) -> None:
        for n in range(count):
            box(acceptance.accept, answer(key=key(f"{name}{n}")))
        if attempts:
            fresh = [due for due in box.due(limit=2 * count) if due.attempts == 0]
            box.outbox.transaction([partial(fail, due) for due in fresh])

    def steps() -> int:
        taken = 0

        def step() -> None:
            nonlocal taken
            taken += 1

        box.outbox.connection.set_progress_handler(step, 10)
        assert len(box.due(limit=8, max_retries=8)) == 8
        box.outbox.connection.set_progress_handler(None, 0)
        return taken

    take("few", 20)
    few = steps()
    take("many", 500)
    assert steps() < 2 * few


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
def test_each_root_sends_as_often_as_another(places: int) -> None:
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
