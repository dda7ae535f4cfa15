"""The page: nothing runs or is loaded but its own, and all of it can be read."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest
from markupsafe import Markup
from support.pages import Node, parsed

from paliadin_sidecar.operator import report
from paliadin_sidecar.operator.language import Language
from paliadin_sidecar.operator.report.page import render
from paliadin_sidecar.operator.report.view import (
    Cell,
    Column,
    Entry,
    Named,
    Page,
    Picture,
    Section,
    Table,
    Verdict,
)

STYLE = Path(report.__file__).with_name("page.css").read_text()
HOSTILE = "</td></style></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"
PICTURE = Picture("P", Markup("<svg></svg>"), Markup("<svg></svg>"), [Entry("root0", "r")])
TABLE = Table("T", [Column("a"), Column("b", numeric=True)], [[Cell("x"), Cell("1", sort=1)]])
SECTION = Section("late", ["Says."], pictures=[(PICTURE, TABLE)], tables=[TABLE])
PAGE = Page(
    title="Title",
    period="Period",
    host="host",
    zone="Zone",
    made="Made",
    verdict=Verdict("well", ["Well."]),
    cards=[Named("Turns", "note", "5")],
    sections=[SECTION],
    notes=["Note."],
)


def html(page: Page = PAGE) -> str:
    return render(page, Language("en"))


def test_only_its_own_style_and_script_have_an_effect() -> None:
    """By their hashes; and nothing may be loaded."""
    text = html()
    (policy,) = (
        meta.attributes["content"]
        for meta in parsed(text).all("meta")
        if meta.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_nothing_is_asked_for() -> None:
    """No address leads out of the page, and no attribute is a script or a style."""
    text = html()
    for node in parsed(text).all():
        assert not {"src", "style", "srcset", "action"} & node.attributes.keys()
        assert not [name for name in node.attributes if name.startswith("on")]
        assert node.attributes.get("href", "#").startswith("#")
    assert not re.findall(r"url\(|@import|https?:|fetch|XMLHttp", STYLE + text)


def test_headings_and_landmarks() -> None:
    """One first heading, no level left out, and each link leads to an id that is there once."""
    page = parsed(html())
    levels = [int(one.tag[1]) for one in page.all("h1", "h2", "h3")]
    assert levels == [1, 2, 2, 2]
    assert [one.tag for one in page.all("header", "nav", "main", "footer")] == [
        "header", "nav", "main", "footer",
    ]  # fmt: skip
    ids = [one.attributes["id"] for one in page.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link.attributes["href"].removeprefix("#") in ids
    for section in page.all("section"):
        assert section.attributes["aria-labelledby"] in ids
    assert page.all("html")[0].attributes["lang"] == "en"


def test_tables_are_tables() -> None:
    """With a caption, and heads of columns and of rows, also where they are shown as lists."""
    first, second = parsed(html()).all("table")
    assert first.all("caption")[0].text == second.all("caption")[0].text == "T"
    heads = [one.attributes["scope"] for one in second.all("th")]
    assert heads == ["col", "col", "row"]
    assert second.rows() == [["x", "1"]]
    for tag, role in (("table", "table"), ("tr", "row"), ("td", "cell"), ("thead", "rowgroup")):
        for node in [second, *second.all()]:
            assert node.tag != tag or node.attributes["role"] == role


def test_whatever_stands_in_a_value_is_text() -> None:
    """In each place of the page."""
    cell = Cell(HOSTILE, more=HOSTILE)
    table = Table(
        HOSTILE, [Column(HOSTILE)], [[cell], [replace(cell, code=True)]], left_out=HOSTILE
    )
    named = Named(HOSTILE, HOSTILE, HOSTILE)
    section = Section(
        "late", [HOSTILE], [named],
        [(replace(PICTURE, title=HOSTILE, legend=[Entry("root0", HOSTILE)]), table)],
        [table], HOSTILE, named,
    )  # fmt: skip
    page = Page(
        HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE,
        Verdict("well", [HOSTILE]), [named], [section], [HOSTILE],
    )  # fmt: skip
    text = html(page)
    tree = parsed(text)
    assert len(tree.all("script")) == 1
    assert not tree.all("img")
    shown = [one for one in [*tree.all()] if HOSTILE in one.text]
    assert len(shown) > 30
    assert "49" not in text


@pytest.mark.parametrize("text", ["a\u202eb", "a\x00b", "a\x1b[31mb", "a\u200bb", "a\nb", "\ud800"])
def test_what_cannot_be_seen_is_shown_by_its_number(text: str) -> None:
    """It turns no line around, and hides nothing."""
    found = html(replace(PAGE, host=text))
    for one in text:
        if not one.isprintable():
            assert f"\\u{ord(one):04x}" in found
    found.encode()


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", block))


def palettes() -> dict[str, dict[str, str]]:
    """The colours of each medium."""
    light, dark, paper = (colours(one) for one in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL))
    assert light.keys() == dark.keys() == paper.keys()
    return {"light": light, "dark": dark, "paper": paper}


def luminance(colour: str) -> float:
    """By WCAG 2.2, relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """By WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("medium", ["light", "dark", "paper"])
def test_text_can_be_read(medium: str) -> None:
    """By WCAG's higher level (7) for what is read, by its usual one (4.5) for what is beside it."""
    palette = palettes()[medium]
    for ground in ("page", "card"):
        assert contrast(palette["text"], palette[ground]) >= 7
        assert contrast(palette["quiet"], palette[ground]) >= 4.5
    assert contrast(palette["link"], palette["page"]) >= 4.5


@pytest.mark.parametrize("medium", ["light", "dark", "paper"])
def test_what_is_drawn_can_be_seen(medium: str) -> None:
    """By WCAG 3 to 1 against what is around it."""
    palette = palettes()[medium]
    for mark in palette:
        if mark in {"delivered", "pending", "dead", "failed", "vanished"} or "root" in mark:
            assert contrast(palette[mark], palette["page"]) >= 3, mark
    for mark in ("well", "attention"):
        assert contrast(palette[mark], palette["card"]) >= 3


def test_each_mark_has_a_colour() -> None:
    """Of each class that a picture uses, and no colour is unused."""
    used = set(re.findall(r"var\(--(\w+)\)", STYLE))
    assert used == set(palettes()["light"])


def test_the_tree_is_read_as_it_is() -> None:
    """What the tests above rely on."""
    tree = parsed("<p>a <b>c</b></p>")
    assert isinstance(tree.children[0], Node)
    assert tree.text == "a c"
    with pytest.raises(AssertionError):
        parsed("<p><b></p>")
