"""`envfile.py`: what systemd makes of each text; tests/systemd asks it about the same ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.envfiles import READ

from paliadin_sidecar.envfile import assignments, is_name


@pytest.mark.parametrize(("text", "said"), READ)
def test_it_is_read_as_systemd_reads_it(text: str, said: dict[str, str]) -> None:
    """Comments, blanks, quotes, escapes, line ends, and what is still open at the end."""
    assert {name: value for name, value in assignments(text) if is_name(name)} == said


def test_what_systemd_ignores_is_found() -> None:
    """A shell's `export` is no part of a name, so that a program can say so."""
    assert assignments("export A=1\nB=2\n") == [("export A", "1"), ("B", "2")]
    assert not is_name("export A")
    assert not is_name("1A")
    assert not is_name("")


@given(st.text(alphabet="aB =#;'\"\\\n\r\t$`"))
def test_any_text_comes_to_an_end(text: str) -> None:
    """And no value holds what was never written."""
    for name, value in assignments(text):
        assert set(name + value) <= set(text)
