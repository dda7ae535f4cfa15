"""What the demo prints fits in a terminal of 80 columns, and is cut in none."""

from __future__ import annotations

from demo import __main__ as demo
from demo import round_trip
from demo.session import turn_line
from demo.stage import WIDTH
from demo.writers import MANNERS
from rich.cells import cell_len


def test_each_line_of_a_turn_fits() -> None:
    """With the longest question or manner the columns stand under their headings."""
    asked = [
        f"{name}: {question}" for name in round_trip._USERS for question in round_trip._QUESTIONS
    ]
    titles = [*asked, *(manner.title for manner in MANNERS.values())]
    lines = [turn_line("12345678", "aichat", title, "response", "1.00 s") for title in titles]
    assert {cell_len(line) for line in lines} == {cell_len(turn_line("", "", "", "", ""))}
    assert cell_len(lines[0]) <= WIDTH


def test_each_line_of_the_legend_fits() -> None:
    """None is broken in the middle of a word."""
    assert max(map(cell_len, demo._LEGEND)) <= WIDTH
