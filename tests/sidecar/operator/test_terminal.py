"""What the commands print, for a person or a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paliadin_sidecar.operator.terminal import (
    print_json,
    print_table,
    printable,
    utc_time,
    with_utc_times,
)

if TYPE_CHECKING:
    import pytest


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns stand below each other, two blanks apart, and no line ends with blanks."""
    print_table(("turn", "state"), [("t1", "delivered"), ("a-long-one", ""), (3, "dead")])
    assert capsys.readouterr().out == (
        "turn        state\nt1          delivered\na-long-one\n3           dead\n"
    )


def test_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Its heads say what there is none of."""
    print_table(("turn", "state"), [])
    assert capsys.readouterr().out == "turn  state\n"


def test_table_of_any_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing steers a terminal or is markup, and what is wide, or has no width, counts so."""
    print_table(("x", "y"), [("a\x1b[31m", "[b]"), ("報告", "|"), ("e\u0301", "|")])
    assert capsys.readouterr().out == ("x       y\na?[31m  [b]\n報告    |\ne\u0301       |\n")


def test_a_value_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """It can be copied, however long it is."""
    print_table(("x",), [("y" * 5000,)])
    assert "y" * 5000 in capsys.readouterr().out


def test_printable() -> None:
    """Controls and halves of a character become a question mark each."""
    assert printable("a\n\x85\ud800ü") == "a???ü"


def test_json_is_utf_8(capsys: pytest.CaptureFixture[str]) -> None:
    """It is for a program, and whole."""
    print_json({"a": ["ü"]})
    assert capsys.readouterr().out == '{\n  "a": [\n    "ü"\n  ]\n}\n'


def test_times_for_a_program() -> None:
    """RFC 3339 in UTC; our own number of a row is nobody's business."""
    assert utc_time(0.5) == "1970-01-01T00:00:00.500Z"
    row = {"id": 1, "accepted_at": 1.0, "settled_at": None, "since": 2.0, "tries": 3}
    assert with_utc_times(row, "since") == {
        "accepted_at": "1970-01-01T00:00:01.000Z",
        "settled_at": None,
        "since": "1970-01-01T00:00:02.000Z",
        "tries": 3,
    }
