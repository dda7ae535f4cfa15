"""Rows as CSV that a spreadsheet shows and does not run."""

from __future__ import annotations

import csv
import io

import pytest

from paliadin_sidecar.operator.spreadsheet import cell, csv_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+49 30", "'+49 30"),
        ("-2", "'-2"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("  =1", "  '=1"),
        ("\t=1", "?=1"),
        ("\r\n=1", "??=1"),
        ('"=1"', '"\'=1"'),
        ("'=1", "''=1"),
        ("＝1", "'＝1"),  # noqa: RUF001 - full width
        ("a;=1", "a;'=1"),
        ('a,"=1', "a,\"'=1"),
        ("a| @x", "a| '@x"),
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("a=b", "a=b"),
        ("a-b+c@d", "a-b+c@d"),
        ("", ""),
        ("Straße", "Straße"),
    ],
)
def test_no_formula(text: str, shown: str) -> None:
    """Neither at the beginning nor where another country's spreadsheet begins a cell."""
    assert cell(text) == shown


def test_values() -> None:
    """Numbers are numbers, also below zero; lists and objects are JSON; nothing is nothing."""
    assert cell(-1) == -1
    assert cell(0.5) == 0.5
    assert cell(value=True) == "true"
    assert cell(["a", "=b"]) == '["a","\'=b"]'
    assert csv_lines(["a", "b", "c"], [{"a": 0, "c": False}]) == "0,,false\n"


def test_a_value_without_a_column() -> None:
    """It is not left out: an object is no formula."""
    assert csv_lines(["a", "more"], [{"a": 0, "=b": "=c"}, {"a": 1}], "more") == (
        '0,"{""=b"":""=c""}"\n1,\n'
    )


def test_one_row_on_each_line() -> None:
    """Whatever a value holds, and a reader of CSV finds each value as it was shown."""
    value = 'a,"b"\n\x00\x1b[31m;\u2028ü'
    text = csv_lines(["x", "y"], [{"x": value, "y": "z"}] * 2)
    assert text.count("\n") == 2
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [['a,"b"???[31m;\u2028ü', "z"]] * 2
