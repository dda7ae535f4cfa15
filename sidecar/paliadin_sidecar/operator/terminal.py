"""What the commands print, for a person or a program: tables, times and JSON."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from unicodedata import combining, east_asian_width

import click
import msgspec

from paliadin_sidecar.host import streams


def print_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns, one line a row.

    A value is never cut or folded, so that it can be copied: a terminal that is narrower wraps the
    line itself.
    """
    lines = [[printable(str(cell)) for cell in row] for row in (heads, *rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def _width(text: str) -> int:
    # In a terminal's cells: a Chinese character takes two, an accent that is a character none.
    wide = sum(east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(map(bool, map(combining, text)))


def printable(text: str) -> str:
    """The text without what could steer a terminal, or could not be printed at all."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "?", text)


def print_json(value: object) -> None:
    """Print a value as JSON, for a program."""
    streams.as_utf8(sys.stdout)
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def utc_time(at: float) -> str:
    """Epoch seconds as RFC 3339, in UTC, with milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def with_utc_times(row: Mapping[str, Any], *also: str) -> dict[str, Any]:
    """A row for a program: without our own `id`, and its times as RFC 3339.

    Args:
        row: its times are epoch seconds, and their names end with `_at`.
        also: the names of its other times.
    """
    return {
        name: utc_time(value) if name.endswith(("_at", *also)) and value is not None else value
        for name, value in row.items()
        if name != "id"
    }


def local_time(at: float) -> str:
    """Epoch seconds as the host's own time, with its offset from UTC."""
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="seconds")
