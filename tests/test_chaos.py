"""The judge of `make chaos`: each way to break the promise is seen, and none is made up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from chaos.verdict import Arrived, Fault, Written, append, in_effect, judge, read

if TYPE_CHECKING:
    from pathlib import Path

A, B = "a" * 64, "b" * 64


def written(at: float, content_key: str = A, *, owed: bool = True) -> Written:
    return Written(at, "aichat/t1", content_key, owed)


def arrived(at: float, content_key: str = A, **fields: object) -> Arrived:
    as_it_should = {
        "id": f"t1_{content_key[:16]}", "turn": "aichat/t1", "revision": 1,
        "body": f"body of {content_key}", "stored": True, "fault": False,
    }  # fmt: skip
    return msgspec.convert(
        {"at": at, "content_key": content_key, **as_it_should, **fields}, Arrived
    )


def test_a_turn_that_came_once_is_well() -> None:
    """Nothing is wrong, and it waited as long as it did."""
    verdict = judge([written(1.0)], [arrived(1.5)], [])
    assert verdict.holds
    assert (verdict.turns, verdict.faults, verdict.duplicates_sent) == (1, 0, 0)
    assert verdict.longest_recovery_s == 0.5


@pytest.mark.parametrize(
    ("came", "what"),
    [
        ([], "lost"),
        ([arrived(2.0, stored=False, fault=True)], "lost"),
        ([arrived(2.0), arrived(3.0, "c" * 64, revision=2)], "cut"),
        ([arrived(2.0), arrived(3.0, id="another")], "duplicates_after_dedupe"),
        ([arrived(2.0), arrived(3.0, body="another")], "duplicates_after_dedupe"),
    ],
)
def test_each_breach_is_seen(came: list[Arrived], what: str) -> None:
    """Never stored, never written, in effect twice, one id with two bodies."""
    verdict = judge([written(1.0)], came, [])
    assert getattr(verdict, what)
    assert not verdict.holds


def test_the_last_content_is_owed() -> None:
    """An earlier one in its place is a loss, also when it comes last under its old revision."""
    lines = [written(1.0), written(2.0, B)]
    assert judge(lines, [arrived(1.5)], []).lost == ["aichat/t1"]
    second = arrived(2.5, B, revision=2)
    assert judge(lines, [second, arrived(3.0)], []).holds
    assert judge(lines, [second], []).holds


def test_what_is_not_owed_may_come_or_not() -> None:
    """A content that a poller took is no loss, and none is cut for it."""
    may = [written(1.0, owed=False)]
    assert judge(may, [], []).holds
    assert judge(may, [arrived(2.0)], []).holds


def test_the_same_id_again_is_a_duplicate_that_the_dedupe_takes() -> None:
    """It is counted as sent, and in effect once."""
    verdict = judge([written(1.0)], [arrived(2.0), arrived(3.0)], [])
    assert verdict.holds
    assert verdict.duplicates_sent == 1


def test_a_content_may_be_in_effect_as_often_as_it_was_written() -> None:
    """A, B, A is three revisions."""
    lines = [written(1.0), written(2.0, B), written(3.0)]
    came = [arrived(1.1), arrived(2.1, B, revision=2), arrived(3.1, id="third", revision=3)]
    assert judge(lines, came, []).holds


def test_recovery_is_counted_from_when_all_was_well() -> None:
    """From the end of the last fault that the turn met, its own refusals and pings among them."""
    fault = Fault("down", 0.5, 4.0)
    bad = arrived(5.0, stored=False, fault=True)
    others = arrived(7.0, turn="aichat/t2", stored=False, fault=True)
    ping = arrived(5.5, turn="", stored=False, fault=True)
    assert judge([written(1.0)], [arrived(6.0)], [fault]).longest_recovery_s == 2.0
    assert judge([written(1.0)], [bad, arrived(6.0)], [fault]).longest_recovery_s == 1.0
    assert judge([written(1.0)], [bad, ping, arrived(6.0)], [fault]).longest_recovery_s == 0.5
    assert judge([written(1.0)], [bad, others, arrived(8.0)], [fault]).longest_recovery_s == 3.0


def test_an_answer_outranks_a_failure() -> None:
    """As `docs/protocol.md` asks of a receiver, whatever the revisions."""
    assert in_effect([arrived(1.0), arrived(2.0, "untrusted", revision=2)]) == {"aichat/t1": A}
    assert in_effect([arrived(1.0, "empty", revision=2), arrived(2.0)]) == {"aichat/t1": A}


def test_a_cut_last_line_of_a_log_is_left_out(tmp_path: Path) -> None:
    """Whoever wrote it was killed; a log that is not there is empty."""
    log = tmp_path / "log"
    assert read(log, Written) == []
    append(log, written(1.0))
    with log.open("ab") as file:
        file.write(b'{"at": 2.0, "tu')
    assert read(log, Written) == [written(1.0)]
