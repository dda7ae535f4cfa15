"""An answer's Markdown for a terminal: nicer to read, and with nothing missing.

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

__all__ = ["Answer"]

#: These hide what was written: an HTML tag, an address behind its text, a definition.
_HIDING = ("html_block", "html_inline", "link", "image", "autolink", "reference", "entity")
#: What Markdown's own marks are made of: these may go, nothing else.
_MARKS = frozenset("`*_#|~-:")
_EMPHASIS = ("em_open", "strong_open")
#: Between other characters emphasis is a sign of a formula: `(a)*(b)*(c)` would become (a)(b)(c).
#: Before it and behind it may be a blank, or one of these or of these categories of Unicode.
_BEFORE, _BEHIND = "\t\"'/", "\t\"'/.,;:!?…"
_BEGIN, _END, _QUOTE, _BLANK = "Ps", "Pe", ("Pi", "Pf"), "Zs"
#: Characters. These may take seconds to render, and more of them minutes.
_MAX_RENDERED_CHARS = 128 * 1024


class Answer:
    """Renders `text`; the terminal obeys nothing in it."""

    def __init__(self, text: str) -> None:
        self._text = strip_controls(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if len(self._text) <= _MAX_RENDERED_CHARS:
            # What is rendered is cleaned too: no renderer's promise is needed then.
            segments = [
                Segment(strip_controls(segment.text), segment.style)
                for segment in console.render(_Lossless(self._text), options)
            ]
            if _all_there(self._text, "".join(segment.text for segment in segments)):
                yield from segments
                return
        yield Segment(f"{self._text}\n")  # the terminal breaks its lines


def _all_there(written: str, shown: str) -> bool:
    counts = Counter(shown)
    return all(
        counts[character] >= count
        for character, count in Counter(written).items()
        if not (character.isspace() or character in _MARKS)
    )


class _Item(ListItem):
    """With the mark that was written: `3.` stays 3, and a minus sign is no dot."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self._mark = f" {mark} "

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _Item:
        del markdown
        return cls(f"{token.info}{token.markup}")

    def render_bullet(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(1, options.max_width - len(self._mark))
        lines = console.render_lines(self.elements, options.update(width=width), style=self.style)
        style = console.get_style("markdown.item.bullet", default="none")
        for number, line in enumerate(lines):
            yield Segment(" " * len(self._mark) if number else self._mark, style)
            yield from line
            yield Segment.line()

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        del number, last_number
        return self.render_bullet(console, options)


class _Quote(BlockQuote):
    """With the mark that was written: the line may have begun with "greater than"."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(1, options.max_width - 2)
        lines = console.render_lines(self.elements, options.update(width=width), style=self.style)
        for line in lines:
            yield Segment("> ", self.style)
            yield from line
            yield Segment.line()


class _Code(CodeBlock):
    """With what stood behind its fence, which may be text."""

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
    """Whose cells break their words."""

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
    # For each the last character of the text before it: marks may stand in a row.
    found, last = [], " "
    for token in tokens:
        found.append(last)
        if token.content or token.tag == "br":
            last = token.content[end] if token.content else " "
    return found


def _type(token: Token, text: str) -> None:
    token.type, token.tag, token.content, token.nesting = "text", "", text, 0
