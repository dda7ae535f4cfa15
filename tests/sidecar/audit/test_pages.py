"""All that the audit knows, a page at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support.outbox_box import KEY, NOW, ROOT, USER, Box, answer, failure, key

from paliadin_sidecar.audit import pages
from paliadin_sidecar.audit.pages import TURN_COLUMNS, event_pages, turn_pages
from paliadin_sidecar.outbox import acceptance, event_rows, maintenance, transitions
from paliadin_sidecar.outbox.database import Outbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path / "outbox.db", create=True)
    with made.outbox:
        yield made


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_PAGE", 3)


def event_ids(box: Box, **wanted: Any) -> list[int]:  # noqa: ANN401 - handed on
    return [event.id for page in event_pages(box.outbox, **wanted) for event in page]


def turns(box: Box, **wanted: float) -> list[dict[str, Any]]:
    return [row for page in turn_pages(box.outbox, **wanted) for row in page]


def happen(box: Box, count: int) -> None:
    for n in range(count):
        box(event_rows.record_service_event, "service.started", {"n": n})


def test_events_in_their_order(box: Box) -> None:
    """Each once, however many pages they fill, also where several have one time."""
    happen(box, 8)
    assert event_ids(box) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert event_ids(box, after=5) == [6, 7, 8]
    assert event_ids(box, after=8) == []


def test_no_event_is_missed_when_the_clock_is_set_back(box: Box) -> None:
    """What follows the last one is what was recorded later, whatever the times say."""
    happen(box, 2)
    box.set_date(-3600.0)
    happen(box, 2)
    assert event_ids(box, after=2) == [3, 4]
    assert event_ids(box, since=NOW) == [1, 2]
    assert event_ids(box, until=NOW) == [3, 4]


def test_events_of_a_time(box: Box) -> None:
    """Its beginning belongs to it, and its end does not: two times that meet have each once."""
    for _ in range(6):
        happen(box, 1)
        box.now += 1.0
    assert event_ids(box, since=NOW + 2, until=NOW + 4) == [3, 4]
    assert event_ids(box, until=NOW + 2) == [1, 2]
    assert event_ids(box, since=NOW + 4) == [5, 6]


def test_an_event_that_is_recorded_meanwhile_comes_with_the_next_export(box: Box) -> None:
    """So an export ends, however much is recorded while it runs."""
    happen(box, 4)
    found = event_pages(box.outbox)
    first = next(found)
    happen(box, 2)
    assert [event.id for page in (first, *found) for event in page] == [1, 2, 3, 4]
    assert event_ids(box, after=4) == [5, 6]


def test_pruned_events_are_not_given_again(box: Box) -> None:
    """A number that was given is given to no other event, also where all were pruned."""
    happen(box, 4)
    box(event_rows.set_printed, 4)
    box.now += 91 * 86_400
    while box(maintenance.prune):
        pass
    assert event_rows.newest_id(box.outbox) == 4
    happen(box, 1)
    assert event_ids(box, after=4) == [5]
    assert event_ids(box) == [5]


def test_no_transaction_is_left_open(box: Box) -> None:
    """Between two pages nothing holds what the daemon writes: its log can be emptied."""
    happen(box, 7)
    with Outbox(box.path, read_only=True) as reader:
        for _ in event_pages(reader):
            busy, *_ = box.outbox.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert busy == 0
            happen(box, 1)


def test_a_turn_that_was_delivered(box: Box) -> None:
    """All that is known of it."""
    box(acceptance.record_hint, KEY, "submitted", USER)
    box.now += 5.0
    box(acceptance.accept, answer("one", at=box.now - 1))
    (due,) = box.due()
    box.now += 0.25
    box.retry(due, 0.5)
    box.now += 0.5
    box.deliver()
    (row,) = turns(box)
    assert row.keys() == set(TURN_COLUMNS)
    assert row.pop("sha256")
    assert row.pop("webhook_id").startswith("aichat_paliadin_t_1_")
    assert row == {
        "turn_id": "t", "submitted_turn_id": "submitted", "backend": "aichat",
        "persona": "paliadin", "user": "5f3c0000", "revision": 1, "state": "delivered",
        "reason": None, "bytes": 3, "first_seen_at": NOW, "accepted_at": NOW + 5,
        "first_attempt_at": NOW + 5.25, "settled_at": NOW + 5.75, "next_attempt_at": None,
        "body_purged_at": None, "gone_at": None, "attempts": 2, "last_status": 204,
        "last_error": None, "last_detail": None, "replays": 0, "agent_ms": 4000,
        "settle_ms": 1000, "end_to_end_ms": 1750,
    }  # fmt: skip


def test_each_revision_has_a_row(box: Box) -> None:
    """In the order in which the turns were first met, and of each its revisions."""
    box(acceptance.accept, answer("one", key("b")))
    box(acceptance.accept, answer("one", key("a")))
    box(acceptance.accept, answer("two", key("b")))
    box(acceptance.accept, failure("empty", key("c")))
    found = [(row["turn_id"], row["revision"], row["state"], row["reason"]) for row in turns(box)]
    assert found == [
        ("b", 1, "superseded", None), ("b", 2, "pending", None), ("a", 1, "pending", None),
        ("c", 1, "pending", "empty"),
    ]  # fmt: skip


def test_a_turn_without_a_delivery_has_a_row(box: Box) -> None:
    """A question that was never answered is something that an auditor asks for."""
    box(acceptance.record_hint, KEY, "submitted", USER)
    (row,) = turns(box)
    assert (row["turn_id"], row["state"], row["revision"]) == ("t", None, None)
    assert turns(box, since=NOW + 1) == []
    assert len(turns(box, since=NOW, until=NOW + 1)) == 1


def test_turns_of_a_time(box: Box) -> None:
    """By when they were accepted."""
    for turn_id in ("a", "b", "c", "d", "e"):
        box(acceptance.accept, answer("one", key(turn_id), at=box.now))
        box.now += 1.0
    assert [row["turn_id"] for row in turns(box, since=NOW + 1, until=NOW + 4)] == ["b", "c", "d"]


def test_what_was_replayed_has_no_time_of_ours(box: Box) -> None:
    """It says when an operator came."""
    box(acceptance.accept, answer("one"))
    box.deliver()
    box.now += 3600
    box(transitions.replay, turn_id="t")
    box.deliver()
    (row,) = turns(box)
    assert (row["replays"], row["end_to_end_ms"]) == (1, None)


def test_history(box: Box) -> None:
    """It was never sent, so nothing of a way is known of it."""
    old = replace(answer("old", key("h")))
    box(acceptance.register_root, ROOT, [old])
    (row,) = turns(box)
    assert (row["state"], row["revision"], row["webhook_id"]) == ("history", 0, None)
    assert (row["replays"], row["settle_ms"], row["end_to_end_ms"]) == (0, None, None)
