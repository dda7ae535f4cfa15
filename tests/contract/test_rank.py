from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import pytest
from support.ranks import RANKS, Push, RankCase

from paliadin_contract.callback import Answer, Failure, TurnCompleted, TurnFailed
from paliadin_contract.rank import Rank, outranks, rank_of

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)


def rank(push: Push) -> Rank:
    return Rank(push.file, push.response is not None, push.revision)


@pytest.mark.parametrize("case", RANKS, ids=lambda case: case.name)
def test_table(case: RankCase) -> None:
    """What outranks what is there takes its place; the end is as the table says."""
    standing, end = None, None
    for push in case.pushes:
        if outranks(rank(push), standing):
            standing, end = rank(push), push.response
    assert end == case.end


def test_an_answer_stays_one() -> None:
    """No push whatever takes an answer away, or lets another file rewrite it."""
    ranks = [Rank(*each) for each in product(("a", "b"), (False, True), (1, 2))]
    for old, new in product(ranks, ranks):
        if old.answered and outranks(new, old):
            assert new.answered
            assert new.file == old.file
            assert new.revision >= old.revision


def test_rank_of() -> None:
    """The file is its backend, persona and turn together; a failure is no answer."""
    turn = {
        "turn_id": "t-1",
        "submitted_turn_id": "asked-1",
        "revision": 3,
        "backend": "aichat",
        "persona": "hugo",
        "host": "mriver",
        "user_id": None,
        "bytes": 0,
        "completed_at": NOW,
    }
    answer = Answer(**turn, response="", sha256="0" * 64, lossy=False)  # type: ignore[arg-type]  # as one dictionary
    failure = Failure(**turn, reason="empty")  # type: ignore[arg-type]  # the same
    assert rank_of(TurnCompleted(NOW, answer)) == ("aichat_hugo_t-1", True, 3)
    assert rank_of(TurnFailed(NOW, failure)) == ("aichat_hugo_t-1", False, 3)
