"""What is on the page: sections with their pictures and tables, before they are HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup  # noqa: TC002 - loaded anyway


def visible(text: str) -> str:
    """The text, in which what cannot be seen, or turns a line around, is shown by its number."""
    return "".join(
        one if one.isprintable() or one == "\N{NO-BREAK SPACE}" else f"\\u{ord(one):04x}"
        for one in text
    )


@dataclass(frozen=True)
class Named:
    """A name and what is to be said of it: of a figure, also its value."""

    name: str
    note: str
    value: str = ""


@dataclass(frozen=True)
class Entry:
    """A legend's entry.

    Attributes:
        mark: the class of its colour.
        name: what that stands for.
    """

    mark: str
    name: str


@dataclass(frozen=True)
class Picture:
    """A drawing, for a wide page and for a narrow one."""

    title: str
    large: Markup
    small: Markup
    legend: Sequence[Entry] = ()


@dataclass(frozen=True)
class Column:
    """A table's column."""

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """A value as it is shown.

    Attributes:
        text: what is read.
        sort: what its column is sorted by, where that is not the text.
        at: a time, in epoch milliseconds, for programs.
        code: whether it is to be typed or copied.
        more: a second line.
        more_english: whether that is English whatever the page is.
    """

    text: str
    sort: int | None = None
    at: int | None = None
    code: bool = False
    more: str = ""
    more_english: bool = False


#: A table of more columns becomes a list on a narrow page.
_NARROW_COLUMNS = 3
#: One of at most so many rows is printed on one sheet.
_SHORT_ROWS = 8


@dataclass(frozen=True)
class Table:
    """A table, whose columns may sort it."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = False
    left_out: str = ""  #: says what is not shown

    @property
    def classes(self) -> str:
        """How the style sheet and the script know it."""
        has = {
            "sortable": self.sortable,
            "wide": len(self.columns) > _NARROW_COLUMNS,
            "short": len(self.rows) <= _SHORT_ROWS,
        }
        return " ".join(name for name, is_so in has.items() if is_so)


@dataclass(frozen=True)
class Section:
    """A part of the page, under a heading of its own."""

    id: str  #: its heading is the text of this name, behind `section_`
    says: Sequence[str] = ()
    meanings: Sequence[Named] = ()
    pictures: Sequence[tuple[Picture, Table | None]] = ()
    tables: Sequence[Table] = ()
    empty: str = ""  #: what is said where there is nothing to list
    command: Named | None = None


@dataclass(frozen=True)
class Verdict:
    """The first sentences: is all well?"""

    kind: str  #: `well`, `attention` or `quiet`
    sentences: Sequence[str]


@dataclass(frozen=True)
class Page:
    """The whole."""

    title: str
    period: str
    host: str
    zone: str
    made: str
    verdict: Verdict
    cards: Sequence[Named]
    sections: Sequence[Section]
    notes: Sequence[str]
