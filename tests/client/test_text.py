"""What may be typed into a pane or printed on a terminal."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from paliadin_client.text import excerpt, one_line, strip_controls

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@given(st.text() | st.from_regex(r"\[PALI[\x00-\x1f]?ADIN:.*", fullmatch=True))
def test_one_line(text: str) -> None:
    """One line of UTF-8, without control characters or an envelope; twice is no more."""
    line = one_line(text)
    assert not CONTROL.search(line)
    assert "[paliadin:" not in line.lower()
    assert line == line.strip() + " " * line.strip().endswith("\\")
    assert one_line(line) == line
    line.encode()


def test_one_line_keeps_words_apart() -> None:
    """A line break between two words stays a blank."""
    assert one_line("a\r\nb\u2028c\td\x0be") == "a b c d e"


@given(st.text())
def test_strip_controls(text: str) -> None:
    """Lines and tabs stay, and nothing that a terminal obeys."""
    shown = strip_controls(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert shown.count("\n") == text.count("\n")


@given(st.text())
def test_excerpt(text: str) -> None:
    """An excerpt is short and one line."""
    assert len(excerpt(text, 10)) <= 10
    assert not CONTROL.search(excerpt(text))


def test_a_backslash_at_the_end() -> None:
    """It is followed by a blank: an agent's prompt takes Enter after it for a line break."""
    assert one_line("C:\\") == "C:\\ "
    assert one_line("C:\\ \n") == "C:\\ "
