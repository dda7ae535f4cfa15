"""`envfile.py`: what systemd makes of each text; tests/systemd asks it about the same ones."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.envfiles import READ

from paliadin_sidecar.envfile import assignments

#: What systemd takes as a variable's name.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@pytest.mark.parametrize(("text", "said"), READ)
def test_it_is_read_as_systemd_reads_it(text: str, said: dict[str, str]) -> None:
    """Comments, blanks, quotes, escapes, line ends, and what is still open at the end."""
    found = dict(assignments(text))
    assert {name: value for name, value in found.items() if NAME.fullmatch(name)} == said


def test_what_systemd_ignores_is_found() -> None:
    """A shell's `export`, and a line without `=`, of which nothing but the first word is kept."""
    assert assignments("export A=1\nB=2\n") == [("export A", "1"), ("B", "2")]
    assert assignments("A: 1\nB\n \n# C\n") == [("A: without =", ""), ("B without =", "")]


@given(st.text(alphabet="aB =#;'\"\\\n\r\t$`"))
def test_any_text_comes_to_an_end(text: str) -> None:
    """And no value holds what was never written."""
    for name, value in assignments(text):
        assert set(name.removesuffix(" without =") + value) <= set(text)
