"""Rows as CSV (RFC 4180) that a spreadsheet shows and does not run. Pure."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from paliadin_sidecar.operator.terminal import printable

#: What most texts are: nothing to look at more closely, which takes far longer.
_is_plain = re.compile(r"[A-Za-z0-9/][A-Za-z0-9_.:/-]*").fullmatch
#: Where a spreadsheet may take what follows for a formula: at the beginning of a cell, and behind
#: each character that the spreadsheets of some countries take for the end of one. The forms of
#: full width mean the same to some.
_FORMULA = re.compile(r"(\A|[,;|])([\s\"']*)(?=[=+\-@＝＋－＠])")  # noqa: RUF001 - those forms


def csv_lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], other: str = "") -> str:
    """Rows as lines of CSV, each with its end; a value that a row has not is an empty cell.

    Args:
        columns: the names of the values, in their order.
        rows: values of JSON.
        other: the column of what has none of its own, as JSON; empty where each value has one.
    """
    known = frozenset(columns)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells = {name: cell(value) for name, value in row.items() if value is not None}
        if not known.issuperset(row):
            cells[other] = cell({name: row[name] for name in row if name not in known})
        writer.writerow(map(cells.get, columns))
    return text.getvalue()


def cell(value: object) -> str | int | float:
    """What stands in a cell: numbers as they are, texts on one line and with no formula in them.

    A text in which a spreadsheet would find a formula gets an apostrophe before that, and each
    control character is a question mark. What is no text and no number is JSON.
    """
    if isinstance(value, str):
        return value if _is_plain(value) else _FORMULA.sub(r"\1\2'", printable(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return cell(msgspec.json.encode(value).decode())
