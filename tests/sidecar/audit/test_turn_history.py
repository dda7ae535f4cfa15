"""What happened to turns, from the events of a real outbox whose clock is the test's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.outbox_box import KEY, NOW, ROOT, USER, Box, answer, failure, key

from paliadin_sidecar.audit import turn_history
from paliadin_sidecar.audit.turn_history import Outcome, TurnHistory, read_history
from paliadin_sidecar.outbox import acceptance, event_rows, transitions
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.records import Delivery, to_ms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY_S = 86_400.0


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path / FILENAME, create=True)
    yield box
    box.outbox.close()


def history(box: Box, since: float = NOW, until: float = NOW + DAY_S) -> TurnHistory:
    return read_history(box.outbox, since=since, until=until)


def outcomes(found: TurnHistory) -> dict[str, str]:
    """Of the turns that are counted."""
    return {turn.turn_id: turn.outcome.value for turn in found.turns.values() if turn.counted}


def accept(box: Box, name: str, content: str = "Yes.") -> Delivery:
    """A turn's answer, complete a second ago."""
    found = box(acceptance.accept, answer(content, key(name), at=box.now - 1))
    assert found is not None
    return found


def test_nothing_happened(box: Box) -> None:
    """An outbox without an event has no turn, no pause and no backlog."""
    found = history(box)
    assert (found.turns, found.deliveries, found.pauses) == ({}, {}, [])
    assert (found.backlog_before, found.changes) == (0, [])


def test_each_outcome(box: Box) -> None:
    """A turn is what became of its newest revision."""
    for name in ("delivered", "dead", "pending"):
        accept(box, name)
    box(acceptance.accept, failure("empty", key("failed")))
    box(acceptance.mark_vanished, key("vanished"))
    due = {each.subject["turn_id"]: each for each in box.due()}
    box.acknowledge(due["delivered"])
    box.acknowledge(due["failed"])
    box.give_up(due["dead"], "refused")
    found = history(box)
    assert outcomes(found) == {name: name for name in Outcome}
    (dead,) = (one for one in found.deliveries.values() if one.turn.turn_id == "dead")
    assert (dead.reason, dead.status, dead.requests) == ("refused", 400, 1)
    (failed,) = (one for one in found.deliveries.values() if one.turn.turn_id == "failed")
    assert (failed.reason, failed.is_answer) == ("empty", False)


def test_a_file_that_was_taken_away_and_came_again(box: Box) -> None:
    """It is one turn, and no longer one that was taken away."""
    box(acceptance.mark_vanished, key("a"))
    accept(box, "a")
    assert outcomes(history(box)) == {"a": "pending"}


def test_a_turn_counts_where_it_first_came(box: Box) -> None:
    """Not where it changed later; what became of it is shown until now."""
    accept(box, "early")
    box.deliver()
    box.now += 60
    since = box.now
    accept(box, "early", "No.")
    accept(box, "within")
    box.now += 60
    until = box.now
    accept(box, "later")
    box.now += 60
    for due in box.due():
        box.acknowledge(due)
    found = history(box, since, until)
    assert outcomes(found) == {"within": "delivered"}
    counted = [(one.turn.turn_id, one.revision) for one in found.deliveries.values() if one.counted]
    assert counted == [("early", 2), ("within", 1)]


def test_the_bounds_of_a_period(box: Box) -> None:
    """The first moment is in it, the one after the last is not."""
    accept(box, "first")
    box.now += 10
    accept(box, "after")
    assert outcomes(history(box, NOW, NOW + 10)) == {"first": "pending"}
    assert outcomes(history(box, NOW + 0.001, NOW + 10.001)) == {"after": "pending"}


def test_from_completion_to_acknowledgement(box: Box) -> None:
    """What the file took to be accepted is in it; an operator's replay counts no second time."""
    accept(box, "a")
    box.now += 2
    box.retry(box.due()[0])
    box.now += 3
    box.deliver()
    (found,) = history(box).deliveries.values()
    assert found.delivered_ms == 6000  # one before it was accepted, five until it was acknowledged
    box.now += 100
    box(transitions.replay, turn_id="a")
    (found,) = history(box).deliveries.values()
    assert (found.turn.outcome, found.replays, found.requests) == ("pending", 1, 2)
    box.deliver()
    (found,) = history(box).deliveries.values()
    assert (found.delivered_ms, found.acknowledgements, found.requests) == (6000, 2, 3)
    assert found.turn.outcome == "delivered"


def test_what_a_replay_delivers_first_has_no_duration(box: Box) -> None:
    """It says when an operator came, not how fast the sidecar is."""
    box.give_up(accept(box, "a"), "refused")
    box(transitions.replay, turn_id="a")
    box.deliver()
    (found,) = history(box).deliveries.values()
    assert (found.acknowledgements, found.delivered_ms) == (1, None)


def test_how_long_the_agent_took(box: Box) -> None:
    """From the token to the complete file."""
    box(acceptance.record_hint, KEY, "s", USER)
    box.now += 30
    accept(box, "t")
    (turn,) = history(box).turns.values()
    assert (turn.took_ms, turn.user, turn.answered) == (29_000, "5f3c0000", True)


def test_a_later_revision_changes_no_duration(box: Box) -> None:
    """The agent's first answer is what somebody waited for."""
    box(acceptance.record_hint, KEY, "s", USER)
    box.now += 30
    accept(box, "t")
    box.now += 60
    accept(box, "t", "No.")
    (turn,) = history(box).turns.values()
    assert turn.took_ms == 29_000


def test_a_token_that_came_with_or_after_the_answer_tells_no_beginning(box: Box) -> None:
    """How long it had lain there is not known."""
    accept(box, "without")
    box.outbox.transaction(
        [
            lambda: acceptance.record_hint(box.outbox, key("with"), "s1", USER),
            lambda: acceptance.accept(box.outbox, answer(key=key("with"))),
        ]
    )
    box(acceptance.record_hint, key("late"), "s3", USER)
    box(acceptance.accept, answer("Early.", key("late"), at=box.now - 5))
    assert [turn.took_ms for turn in history(box).turns.values()] == [None] * 3


def test_attempts_without_an_answer(box: Box) -> None:
    """Where nothing was sent the receiver cannot have it."""
    accept(box, "a")
    for error in ("connect", "dns", "tls", "timeout", "reset"):
        box.retry(box.due()[0], status=None, error=error)
    box.retry(box.due()[0], status=503)
    box.deliver()
    (found,) = history(box).deliveries.values()
    assert (found.requests, found.unanswered, found.acknowledgements) == (7, 2, 1)


def test_attempts_without_an_event_are_counted(box: Box) -> None:
    """An outage reports few of them, and all have a number."""
    accept(box, "a")
    box.retry(box.due()[0])
    for _ in range(5):
        box.retry(box.due()[0], reported=False, keep=5)
    box.deliver()
    (found,) = history(box).deliveries.values()
    assert found.requests == 7


def test_pauses(box: Box) -> None:
    """Also one that began before the first event that is read, and one that lasts."""
    box(transitions.pause, "connect")
    box.now += 50
    since = box.now
    box.now += 50
    box(transitions.resume, 100.0)
    box.now += 10
    box(transitions.pause, "status_503")
    start, end, again = to_ms(NOW), to_ms(NOW + 100), to_ms(NOW + 110)
    first, second = history(box).pauses
    assert (first.start, first.end, first.why) == (start, end, "connect")
    assert (second.start, second.end, second.why) == (again, None, "status_503")
    first, second = history(box, since).pauses
    assert (first.start, first.end) == (start, end)


def test_the_backlog_is_right_wherever_the_period_begins(box: Box) -> None:
    """What waited before, and left within, is known from what waits now."""
    marks = []
    accept(box, "a")
    accept(box, "b")
    for step in range(4):
        box.now += 10
        marks.append(box.now)
        box.now += 10
        if step == 0:
            box.acknowledge(box.due()[0])
        elif step == 1:
            accept(box, "c")
        elif step == 2:
            accept(box, "c", "Changed.")  # supersedes what waited
        else:
            box.give_up(box.due()[0], "refused")
    before = [history(box, mark).backlog_before for mark in marks]
    assert before == [2, 1, 2, 2]
    whole = history(box)
    assert whole.backlog_before == 0
    assert sum(step for _, step in whole.changes) == 1


def test_a_superseded_one_that_was_acknowledged_all_the_same_leaves_once(box: Box) -> None:
    """It was under way when the later revision came."""
    under_way = accept(box, "a")
    accept(box, "a", "Changed.")
    box.acknowledge(under_way)
    found = history(box)
    assert sum(step for _, step in found.changes) == 1
    assert outcomes(found) == {"a": "pending"}
    assert history(box, box.now + 1, box.now + 2).backlog_before == 1


def test_old_files_and_changes_that_are_not_sent_are_no_turns(box: Box) -> None:
    """They are counted apart."""
    box(acceptance.register_root, ROOT, [answer(key=key("old"))])
    accept(box, "a")
    box(acceptance.accept, answer("\n", key("a"), has_text=False))
    found = history(box)
    assert (found.old_files, found.unsent_changes) == (1, 1)
    assert outcomes(found) == {"a": "pending"}


def test_where_events_of_a_time_begin(box: Box) -> None:
    """By halving, whatever the ids are."""
    assert box(event_rows.last_event_before, NOW) == 0
    assert box(event_rows.oldest_event_at) is None
    ids = []
    for number in range(40):
        accept(box, f"t{number}")
        ids.append(event_rows.newest_id(box.outbox))
        box.now += 1
    box.outbox.execute("DELETE FROM event WHERE id % 3 = 0")
    for number, found in enumerate(ids):
        expected = max((one for one in ids[:number] if one % 3), default=0)
        assert box(event_rows.last_event_before, NOW + number) in range(expected, found)
    assert box(event_rows.last_event_before, NOW + 1000) == max(i for i in ids if i % 3)
    assert box(event_rows.oldest_event_at) == NOW


def test_no_page_holds_the_log(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two of them all of it can be written back, and what comes meanwhile is counted."""
    for number in range(10):
        accept(box, f"t{number}")
    monkeypatch.setattr(turn_history, "_PAGE", 3)
    real, pages, left = event_rows.event_rows, 0, []

    def page(outbox: Outbox, after: int, limit: int) -> list[event_rows.EventRow]:
        nonlocal pages
        found = real(outbox, after, limit)
        pages += 1
        accept(box, f"during-{pages}") if pages < 5 else None
        _, log, written = box.outbox.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        left.append(log - written)
        return found

    monkeypatch.setattr(event_rows, "event_rows", page)
    with Outbox(box.path, read_only=True) as reader:
        found = read_history(reader, since=NOW, until=NOW + DAY_S)
    assert pages >= 5
    assert set(left) == {0}
    assert len(outcomes(found)) == 14
    assert found.backlog_before == 0
