"""Renders an answer's Markdown for a terminal, with nothing that was written missing.

Patent lawyers write angle brackets, formulas and numbered claims, and Markdown has its own ideas of
them. So only what cannot hide text is rendered: no HTML, no links whose address goes, list items
with the numbers that were written. What a narrow table or an odd construction would still lose is
found by comparing, and then the answer is shown as it is.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from rich.markdown import BlockQuote, CodeBlock, ListItem, Markdown, TableElement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from paliadin_client.text import strip_controls

if TYPE_CHECKING:
    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions, RenderResult


#: Rules of Markdown that hide what was written: an HTML tag, an address behind its text, …
_HIDING = ("html_block", "html_inline", "link", "image", "autolink", "reference", "entity")
#: Characters of Markdown's own marks. Only these may be missing from what is shown.
_MARKS = frozenset("`*_#|~-:")
_EMPHASIS = ("em_open", "strong_open")
#: What may stand before and behind emphasis, as characters and as categories of Unicode. Between
#: others an asterisk is a formula's: `(a)*(b)*(c)` would become (a)(b)(c).
_BEFORE, _BEHIND = "\t\"'/", "\t\"'/.,;:!?…"
_BEGIN, _END, _QUOTE, _BLANK = "Ps", "Pe", ("Pi", "Pf"), "Zs"
#: So many characters may take seconds to render, and more of them minutes.
_MAX_RENDERED_CHARS = 128 * 1024


class Answer:
    """Renders `text`; the terminal obeys nothing in it."""

    def __init__(self, text: str) -> None:
        self._text = strip_controls(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if len(self._text) <= _MAX_RENDERED_CHARS:
            # What is rendered is cleaned too, so that nothing depends on the renderer.
            segments = [
                Segment(strip_controls(segment.text), segment.style)
                for segment in console.render(_Lossless(self._text), options)
            ]
            if _all_there(self._text, "".join(segment.text for segment in segments)):
                yield from segments
                return
        yield Segment(f"{self._text}\n")  # the terminal breaks its lines


def _all_there(written: str, shown: str) -> bool:
    missing = Counter(written) - Counter(shown)
    return all(character.isspace() or character in _MARKS for character in missing)


class _Item(ListItem):
    """A list item with the marker that was written: `3.` stays 3, and a minus sign is no dot."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self._marker = f" {marker} "

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _Item:
        del markdown
        return cls(f"{token.info}{token.markup}")

    def render_bullet(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(1, options.max_width - len(self._marker))
        lines = console.render_lines(self.elements, options.update(width=width), style=self.style)
        style = console.get_style("markdown.item.bullet", default="none")
        for number, line in enumerate(lines):
            yield Segment(" " * len(self._marker) if number else self._marker, style)
            yield from line
            yield Segment.line()

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        del number, last_number
        return self.render_bullet(console, options)


class _Quote(BlockQuote):
    """A quote with the marker that was written: it may have been meant as "greater than"."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(1, options.max_width - 2)
        lines = console.render_lines(self.elements, options.update(width=width), style=self.style)
        for line in lines:
            yield Segment("> ", self.style)
            yield from line
            yield Segment.line()


class _Code(CodeBlock):
    """A code block with what stood behind its fence, which may be text."""

    info = ""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _Code:
        made = cls(token.info.partition(" ")[0] or "text", markdown.code_theme)
        made.info = token.info.strip()
        return made

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.info:
            yield Text(self.info)
        yield from super().__rich_console__(console, options)


class _Table(TableElement):
    """A table whose cells break long words instead of cutting them."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            if isinstance(table, Table):
                for column in table.columns:
                    column.overflow = "fold"
            yield table


class _Lossless(Markdown):
    elements = Markdown.elements | {
        "list_item_open": _Item,
        "blockquote_open": _Quote,
        "fence": _Code,
        "code_block": _Code,
        "table_open": _Table,
    }

    def __init__(self, text: str) -> None:
        super().__init__("")
        # Struck-out text would look like any other where a terminal cannot strike it out.
        # A line of equal signs may be one of a formula.
        parser = MarkdownIt().enable("table").disable((*_HIDING, "lheading", "text_join"))
        self.parsed = parser.parse(text)
        for block in self.parsed:
            _keep_what_was_typed(block.children or [])


def _keep_what_was_typed(tokens: list[Token]) -> None:
    # An escaped character keeps its backslash. Emphasis inside a word or a formula is none: of
    # `2*3*4` it would leave 234.
    before, after = _beside(tokens, -1), _beside(tokens[::-1], 0)[::-1]
    opened: list[int] = []
    for place, token in enumerate(tokens):
        if token.type == "text_special":
            _type(token, token.markup)
        elif token.type in _EMPHASIS:
            opened.append(place)
        elif token.type in ("em_close", "strong_close"):
            start = opened.pop()
            if not (
                _is(before[start], _BEFORE, _BLANK, _BEGIN, *_QUOTE)
                and not _is(after[start], "", _END)
                and not _is(before[place], "", _BEGIN)
                and _is(after[place], _BEHIND, _BLANK, _END, *_QUOTE)
            ):
                _type(tokens[start], tokens[start].markup)
                _type(token, token.markup)


def _is(character: str, these: str, *categories: str) -> bool:
    return character in these or unicodedata.category(character) in categories


def _beside(tokens: list[Token], end: int) -> list[str]:
    # For each token the last character of the text before it, since marks may stand in a row.
    found, last = [], " "
    for token in tokens:
        found.append(last)
        if token.content or token.tag == "br":
            last = token.content[end] if token.content else " "
    return found


def _type(token: Token, text: str) -> None:
    token.type, token.tag, token.content, token.nesting = "text", "", text, 0
