from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pages import Node, parsed

from paliadin_sidecar.operator.report.charts import Words, _ticks, bars, line

WORDS = Words("own", "A <title>", 'A "description" & more')


def drawn(markup: str) -> Node:
    (picture,) = parsed(markup).all("svg")
    return picture


def numbers(node: Node) -> list[float]:
    """All numbers of its attributes that place it."""
    text = " ".join(node.attributes.get(name, "") for name in ("d", "x", "y", "width", "height"))
    return [float(one) for one in re.findall(r"-?[\d.]+", text)]


@given(st.integers(0, 10**6))
def test_ticks_are_few_and_reach_the_highest(highest: int) -> None:
    """Whole numbers from 0, equally far from each other."""
    ticks = _ticks(highest)
    assert ticks[0] == 0
    assert ticks[-1] >= max(1, highest)
    assert 2 <= len(ticks) <= 6
    assert len({b - a for a, b in itertools.pairwise(ticks)}) == 1


def test_a_picture_is_described() -> None:
    """By title and description, whatever stands in them; each size has ids of its own."""
    ids = set()
    for markup in bars(WORDS, ["<b>"], [("delivered", [1])], ["<i>: 1"]):
        picture = drawn(markup)
        assert picture.attributes["role"] == "img"
        named = picture.attributes["aria-labelledby"].split()
        title, description = picture.all("title")[0], picture.all("desc")[0]
        assert named == [title.attributes["id"], description.attributes["id"]]
        assert (title.text, description.text) == (WORDS.title, WORDS.description)
        assert "<b>" in [text.text for text in picture.all("text")]
        ids |= set(named)
    assert len(ids) == 4


def test_a_bar_says_its_numbers_under_a_mouse() -> None:
    """Where there is one."""
    large, small = bars(WORDS, ["a"], [("delivered", [1])], ["<i>: 1"])
    assert drawn(large).all("rect")[0].all("title")[0].text == "<i>: 1"
    assert not drawn(small).all("rect")


@pytest.mark.parametrize("values", [[0], [1], [0, 5, 10_000], [3] * 500])
def test_all_is_within_the_picture(values: list[int]) -> None:
    """Bars and line, of few and of many."""
    parts = [("delivered", values), ("dead", [1] * len(values))]
    labels = [str(value) for value in range(len(values))]
    places = [(place / len(values), label) for place, label in enumerate(labels)]
    pictures = [
        *bars(WORDS, labels, parts, labels),
        *line(WORDS, values, places, [(0.0, 1.0), (0.5, 0.5)]),
    ]
    for markup in pictures:
        picture = drawn(markup)
        _, _, width, height = map(float, picture.attributes["viewbox"].split())
        for element in picture.all("path", "rect", "text"):
            assert max(numbers(element), default=0) <= max(width, height)
        for text in picture.all("text"):
            assert 0 <= float(text.attributes["x"]) <= width


def test_one_among_thousands_is_seen() -> None:
    """It is drawn higher than it is; the table has the number."""
    markup, _ = bars(WORDS, ["a"], [("delivered", [100_000]), ("dead", [1])], [""])
    (dead,) = (one for one in drawn(markup).all("path") if one.attributes["class"] == "dead")
    height = re.search(r"v (-?[\d.]+)", dead.attributes["d"])
    assert height
    assert float(height[1]) >= 0.7


def test_nothing_is_not_drawn() -> None:
    """A part without a value has no path."""
    markup, _ = bars(WORDS, ["a"], [("delivered", [1]), ("dead", [0])], [""])
    assert "dead" not in [one.attributes["class"] for one in drawn(markup).all("path")]


def test_labels_do_not_run_into_each_other() -> None:
    """Only as many are shown as have room; of many bars none has a hint of its own."""
    labels = [f"2026-11-{number}" for number in range(900)]
    for markup in bars(WORDS, labels, [("delivered", [1] * 900)], labels):
        shown = [one for one in drawn(markup).all("text") if one.text.startswith("2026")]
        places = [float(one.attributes["x"]) for one in shown]
        assert 2 <= len(shown) <= 12
        assert min(b - a for a, b in itertools.pairwise(places)) > 60
        assert "hover" not in markup
