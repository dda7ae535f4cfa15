"""How the daemon and its turns are at one moment."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support.outbox_box import KEY, ROOT, USER, Box, answer, key

from paliadin_sidecar.errors import Replaced
from paliadin_sidecar.operator.glance import Watched
from paliadin_sidecar.outbox import acceptance, transitions
from paliadin_sidecar.outbox.database import FILENAME, Outbox, sql

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Whoever looks does so now, so what is looked at is of now too.
NOW = time.time()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path / FILENAME, create=True)
    made.now = NOW
    with made.outbox:
        yield made


@pytest.fixture
def watched(box: Box) -> Iterator[Watched]:
    with Outbox(box.path, read_only=True) as outbox:
        yield Watched(box.path.parent, outbox)


def test_nothing(watched: Watched) -> None:
    """An outbox in which nothing happened yet."""
    glance = watched.look()
    assert (glance.alive, glance.pending, glance.oldest_at) == (False, 0, None)
    assert not glance.has_ages


def test_what_is_under_way(box: Box, watched: Watched) -> None:
    """Questions without an answer, the newest first; answers without an acknowledgement."""
    for n, turn_id in enumerate(("old", "asked", "answered")):
        box.now = NOW - 4000 + 1500 * n
        box(acceptance.record_hint, key(turn_id), f"of-{turn_id}", USER)
    box.now = NOW
    box(acceptance.accept, answer(key=key("answered"), at=NOW - 1))
    box(acceptance.register_root, ROOT, [answer("x", key("history"))])
    glance = watched.look()
    assert [one["turn_id"] for one in glance.asked] == ["asked"]  # nobody waits for an old one
    assert [one["turn_id"] for one in glance.undelivered] == ["answered"]
    assert glance.pending == 1
    assert glance.oldest_at == pytest.approx(NOW, abs=0.001)
    assert glance.settled == []
    assert glance.has_ages
    box.deliver()
    glance = watched.look()
    assert (glance.pending, glance.undelivered) == (0, [])
    (last,) = glance.settled
    assert (last["turn_id"], last["state"], last["user"]) == ("answered", "delivered", "5f3c0000")
    assert (last["agent_ms"], last["settle_ms"]) == (999_000, 1000)


def test_the_last_ones_come_first(box: Box, watched: Watched) -> None:
    """By when they were accepted."""
    for turn_id in "abc":
        box.now += 1
        box(acceptance.accept, answer(key=key(turn_id), at=box.now))
        box.deliver()
    assert [one["turn_id"] for one in watched.look().settled] == ["c", "b", "a"]


def test_a_pause(box: Box, watched: Watched) -> None:
    """Since when, and why."""
    box(transitions.pause, "status_503")
    glance = watched.look()
    assert glance.paused_at == pytest.approx(NOW, abs=0.001)
    assert glance.paused_for == "status_503"
    assert glance.has_ages


def test_its_version_is_another_once_something_happened(box: Box, watched: Watched) -> None:
    """And the same while nothing does."""
    first = watched.version()
    assert watched.version() == first
    box(acceptance.accept, answer(key=KEY))
    second = watched.version()
    assert second != first
    assert watched.version() == second


def test_an_outbox_that_was_moved_aside(box: Box, watched: Watched) -> None:
    """It is not shown any longer, as if it were the one in use."""
    box.path.rename(box.path.with_name("aside"))
    with pytest.raises(Replaced):
        watched.version()


@pytest.mark.parametrize("statement", ["backlog", "asked", "undelivered", "settled"])
def test_no_statement_reads_all_that_is_kept(box: Box, statement: str) -> None:
    """Each follows an index in its order: nothing is sorted, and no table is read as a whole."""
    text = getattr(sql, statement)
    values = {"since": 0, "limit": 1}
    plan = box.outbox.connection.execute(f"EXPLAIN QUERY PLAN {text}", values).fetchall()
    steps = [row["detail"] for row in plan]
    assert not [step for step in steps if "USE TEMP B-TREE" in step]
    assert not [step for step in steps if step.startswith("SCAN") and "INDEX" not in step]
