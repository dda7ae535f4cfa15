"""Erasing: nothing is left in any file, and nothing comes back."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.outbox_box import ABOUT_KEY, KEY, LATE_S, ROOT, USER, Box, answer, counted, key

from paliadin_sidecar.outbox import (
    acceptance,
    erasure,
    event_rows,
    maintenance,
    queries,
    transitions,
)
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.erasure import Erasable
from paliadin_sidecar.outbox.records import Outcome, Retention

if TYPE_CHECKING:
    from pathlib import Path

ERASED = ("turn.erased", ABOUT_KEY | {"by": "root", "undelivered": 0})


def take(box: Box, turn_id: str = "t", text: str = "Yes.", *, user: str = USER) -> None:
    """An answer that a token announced."""
    box(acceptance.record_hint, key(turn_id), f"asked-{turn_id}", user)
    box(acceptance.accept, answer(text, key(turn_id)))


def erase(box: Box, turn_id: str = "t", *, undelivered: bool = False) -> int:
    """Erase a turn; how many were."""
    found = box(erasure.turns_named, turn_id)
    done = [box(erasure.erase, turn.id, "root", undelivered=undelivered) for turn in found]
    return len([turn for turn in done if turn])


def columns(box: Box, table: str) -> list[dict[str, object]]:
    with closing(sqlite3.connect(box.path)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(f"SELECT * FROM {table}")]


def test_what_stays_is_that_it_was_erased(box: Box) -> None:
    """When, and by whom; and what its file looks like."""
    take(box)
    box.deliver()
    box.events()
    assert erase(box) == 1
    assert box.events() == [ERASED]
    assert len(columns(box, "event")) == 1
    assert columns(box, "delivery") == columns(box, "body") == []
    (turn,) = columns(box, "turn")
    empty = ("submitted_turn_id", "user_id", "answered_at", "seen_content_key", "sent_content_key")
    assert [turn[name] for name in empty] == [None] * 5
    assert turn["fingerprint"] == "1:4:0"
    (shown,) = box(queries.timelines, "t")
    assert (shown["user"], shown["deliveries"]) == (None, [])
    assert box(queries.timelines, "asked-t") == []
    assert erase(box) == 0


@pytest.mark.parametrize("state", ["pending", "dead", "announced"])
def test_what_is_undelivered_is_refused(box: Box, state: str) -> None:
    """Unless that is what is wanted."""
    if state == "announced":
        box(acceptance.record_hint, KEY, "asked", USER)
    else:
        take(box)
    if state == "dead":
        box.give_up(box.due()[0], "refused")
    before = columns(box, "turn")
    box.events()
    assert erase(box) == 0
    assert box.events() == []
    assert columns(box, "turn") == before
    assert erase(box, undelivered=True) == 1
    undelivered = 0 if state == "announced" else 1
    assert box.events() == [(ERASED[0], ERASED[1] | {"undelivered": undelivered})]
    assert box.due() == []
    assert box(transitions.replay, turn_id="t") == (0, [])


def test_it_is_judged_when_it_is_erased(box: Box) -> None:
    """A turn that became undelivered since it was found is kept."""
    take(box)
    box.deliver()
    (found,) = box(erasure.turns_named, "t")
    assert not found.is_undelivered
    box(transitions.replay, turn_id="t")
    assert box(erasure.erase, found.id, "root", undelivered=False) is None
    assert len(box.due()) == 1


def test_a_file_that_still_lies_there_is_not_sent_again(box: Box) -> None:
    """Not the same, not a changed one, not as history, and its token says nothing again."""
    take(box)
    box.deliver()
    erase(box)
    box.events()
    for text, fingerprint in (("Yes.", "2:4:0"), ("No.", "3:4:0"), ("Yes.", "4:4:0")):
        assert box(acceptance.accept, answer(text, fingerprint=fingerprint)) is None
        assert box(acceptance.present_files, "aichat", "paliadin") == {"t": fingerprint}
    box(acceptance.record_hint, KEY, "asked-t", USER)
    box(acceptance.register_root, ROOT, [replace(answer(), data=None)])
    box(acceptance.mark_vanished, KEY)
    assert box.events() == []
    assert columns(box, "turn")[0]["user_id"] is None
    assert columns(box, "delivery") == []


def test_what_was_under_way_leaves_nothing_behind(box: Box) -> None:
    """Whatever its attempt comes to; and no other delivery has its id."""
    for n, end in enumerate(("delivered", "retry", "dead")):
        turn_id = f"t{n}"
        take(box, turn_id)
        (due,) = box.due()
        erase(box, turn_id, undelivered=True)
        box(acceptance.accept, answer(key=key(f"next{n}")))
        box.events()
        due = counted(due, box.now)
        if end == "delivered":
            box(transitions.record_delivered, due, Outcome(status=204))
        elif end == "retry":
            box(transitions.record_retry, due, Outcome(status=400), 1.0, refused=True)
        else:
            box(transitions.record_dead, due, Outcome(status=400), "refused")
        assert box.events() == []
        assert box.states(f"next{n}") == [(1, "pending")]
        box.deliver()


def test_it_goes_like_any_other_turn(box: Box) -> None:
    """Once its file has gone, and that it was erased is known for as long as the rest."""
    take(box)
    box.deliver()
    erase(box)
    box(event_rows.set_printed, box(event_rows.newest_id))
    box.now += Retention().turns_s + 1
    while box(maintenance.prune):
        pass
    assert box(queries.timelines, "t")
    box(acceptance.mark_gone, KEY)
    box.now += Retention().turns_s + 1
    while box(maintenance.prune):
        pass
    assert box(queries.timelines, "t") == []


def test_a_user_s_turns(box: Box) -> None:
    """By the whole id, which its beginning finds."""
    for turn_id, user in (("a", "user-1"), ("b", "user-10"), ("c", "user-1")):
        take(box, turn_id, user=user)
    assert box(erasure.users_beginning, "user-1", 9) == ["user-1", "user-10"]
    assert box(erasure.users_beginning, "user-1", 1) == ["user-1"]
    assert box(erasure.users_beginning, "user-2", 9) == []
    assert box(erasure.users_beginning, "%", 9) == []
    assert [turn.turn_id for turn in box(erasure.turns_of, "user-1")] == ["a", "c"]


def test_portions() -> None:
    """So many turns, or so many bytes, and one at least."""

    def turn(size: int) -> Erasable:
        return Erasable(
            1, "t", "aichat", "paliadin", 0, is_awaited=False, has_file=False, size=size
        )

    sizes = [5, 5, 1, 20, 1, 1, 1, 1]
    found = erasure.portions([turn(size) for size in sizes], 3, 10)
    assert [[one.size for one in portion] for portion in found] == [
        [5, 5],
        [1],
        [20],
        [1, 1, 1],
        [1],
    ]
    assert erasure.portions([], 3, 10) == []


def test_nothing_is_left_in_any_file(tmp_path: Path) -> None:
    """Also not in pages that pruning freed before, or from which rows were moved."""
    chance = random.Random(16)
    box = Box(tmp_path / FILENAME, create=True)
    marks: list[str] = []
    for n in range(400):
        turn_id, user = f"{chance.getrandbits(64):016x}", f"user-{n % 20:02}-planted"
        text = f"answer-{n:03}-planted {chance.randbytes(chance.choice([9, 400, 3000])).hex()}"
        take(box, turn_id, text, user=user)
        box.deliver()
        box(acceptance.mark_gone, key(turn_id))
        if n % 2:
            marks += [f"asked-{turn_id}", f"answer-{n:03}-planted", user]
        if n % 50 == 49:
            box(event_rows.set_printed, box(event_rows.newest_id))
            box.now += Retention().answers_s / 2
            while box(maintenance.prune):
                pass
    assert any(marks[0].encode() in path.read_bytes() for path in tmp_path.iterdir())
    users = [f"user-{n:02}-planted" for n in range(1, 20, 2)]
    chance.shuffle(users)
    for user in users:
        for turn in box(erasure.turns_of, user):
            assert box(erasure.erase, turn.id, "root", undelivered=False)
    assert erasure.empty_log(box.outbox, 0)
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert [mark for mark in marks if mark.encode() in data] == []
    assert b"user-00-planted" in data
    box.outbox.close()


def test_the_log_is_emptied_when_nobody_reads(box: Box) -> None:
    """Until then it says that it could not; and nothing else is disturbed."""
    take(box)
    with closing(sqlite3.connect(box.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM turn").fetchone()
        box(acceptance.mark_gone, KEY)
        box.outbox.do_not_wait_for_locks()
        assert not erasure.empty_log(box.outbox, 0)
        reader.execute("COMMIT")
        assert erasure.empty_log(box.outbox, 0)
    assert box.path.with_name(f"{FILENAME}-wal").stat().st_size == 0
    box.deliver()
    box(Outbox.used_bytes)


def test_a_change_within_ten_minutes_of_the_answer_is_not_sent_either(box: Box) -> None:
    """The window for revisions ends with the turn."""
    take(box)
    box.deliver()
    erase(box)
    box.now += LATE_S / 2
    assert box(acceptance.accept, answer("changed", fingerprint="5:7:0")) is None
    assert box.due() == []
