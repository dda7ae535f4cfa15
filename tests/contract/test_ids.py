from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliadin_contract.errors import BadId
from paliadin_contract.ids import is_label, is_turn_id, turn_id_of, webhook_id

UUID = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11"
DIGEST = "80bf56a0ce6e09632151fddb91212c954a0607380588f9dc29ecaf7479670abf"

#: Each differs from a good id in one way.
BAD_IDS = [
    "",
    "a.b",
    "a/b",
    "..",
    "-a",
    "_a",
    "a b",
    "a\n",
    "\na",
    "a\x00",
    "ä",
    "a٣",
    "a\udcff",
    "x" * 65,
]


@pytest.mark.parametrize("text", ["a", "7", UUID, "Z9_-", "x" * 64])
def test_turn_id(text: str) -> None:
    """A letter or digit, then up to 63 more of them, or of `_` and `-`, name a turn."""
    assert is_turn_id(text)


@pytest.mark.parametrize("text", BAD_IDS, ids=ascii)
def test_no_turn_id(text: str) -> None:
    """A dot, a slash, a line end, a byte that is no ASCII, or a 65th character names no turn."""
    assert not is_turn_id(text)


@given(st.text(st.characters(codec=None)))
def test_turn_id_parser(name: str) -> None:
    """Whatever a file is called, it is one turn's or none's, and nothing is raised."""
    turn_id = turn_id_of(name)
    assert turn_id is None or (is_turn_id(turn_id) and name == f"{turn_id}.txt")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True))
def test_turn_id_round_trip(turn_id: str) -> None:
    """Every turn id is read back from both of its files' names."""
    assert turn_id_of(f"{turn_id}.txt") == turn_id
    assert turn_id_of(f"{turn_id}.jwt", suffix=".jwt") == turn_id


@pytest.mark.parametrize(
    "name", [UUID, f"{UUID}.jwt", f"{UUID}.txt.txt", f"{UUID}.txt.tmp.1", f".{UUID}.txt", ".txt"]
)
def test_other_files(name: str) -> None:
    """A file of another suffix, a temporary one or a hidden one is no turn's."""
    assert turn_id_of(name) is None


@pytest.mark.parametrize("text", ["paliadin", "nl-translator", "a", "9", "-", "x" * 32])
def test_label(text: str) -> None:
    """Small letters, digits and hyphens, 32 at most, name a backend or a persona."""
    assert is_label(text)


@pytest.mark.parametrize("text", ["", "A", "a_b", "a.b", "a\n", "ä", "x" * 33], ids=ascii)
def test_no_label(text: str) -> None:
    """What would make a webhook id ambiguous names no backend and no persona."""
    assert not is_label(text)


def test_webhook_id() -> None:
    """A webhook id names the place, the turn, the revision and 16 digits of the content's hash."""
    assert (
        webhook_id("aichat", "nl-translator", UUID, 12, DIGEST)
        == f"aichat_nl-translator_{UUID}_12_80bf56a0ce6e0963"
    )


def test_webhook_id_of_a_failure() -> None:
    """A failure's webhook id ends with its reason, whole."""
    assert webhook_id("a", "p", "t", 1, "untrusted") == "a_p_t_1_untrusted"


@pytest.mark.parametrize(
    ("backend", "persona", "turn_id", "what"),
    [
        ("AI", "paliadin", UUID, "'AI' is no backend"),
        ("aichat", "a_b", UUID, "'a_b' is no persona"),
        ("aichat", "paliadin", "a.b", "'a.b' is no turn id"),
    ],
)
def test_webhook_id_of_bad_parts(backend: str, persona: str, turn_id: str, what: str) -> None:
    """A part that is not what it must be never gets into a webhook id."""
    with pytest.raises(BadId, match=re.escape(what)):
        webhook_id(backend, persona, turn_id, 1, DIGEST)
