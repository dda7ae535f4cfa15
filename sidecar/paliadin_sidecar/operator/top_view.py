"""What `top` shows: a glance as a screen, or as a line. Pure, in German and in English."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from paliadin_sidecar.operator.glance import Glance
from paliadin_sidecar.operator.language import Language
from paliadin_sidecar.operator.terminal import local_time, printable

#: From so many columns on each table has all of its columns.
_WIDE = 120
_STYLES = {
    "dead": "red", "failed": "yellow", "missing": "yellow", "stopped": "bold red",
    "untrusted": "red", "unreadable": "red",
}  # fmt: skip
#: Columns that stand on the right.
_NUMBERS = {"files", "others", "age", "tries", "agent", "delivery", "bytes"}
_MINUTE_S = 60.0
#: That of the longest word for one, with what is between two columns.
_STATE_WIDTH = 18


def screen(glance: Glance, language: Language, width: int, height: int) -> Group:
    """A glance as large as the terminal, so that nothing scrolls: all that there is room for.

    Args:
        glance: what is shown.
        language: in which.
        width: of the terminal, in cells.
        height: of the terminal, in lines.
    """
    view = _View(glance, language, width)
    head = view.head()
    # Between them there are an empty line, two titles, and two lines with the columns' names.
    left = max(2, height - len(head) - (1 + len(glance.roots)) - 6)
    under_way = view.under_way()
    shown = under_way[: max(1, left // 2)]
    settled = glance.settled[: max(1, left - max(1, len(shown)))]
    parts: list[RenderableType] = [
        *head, view.roots(), Text(),
        view.title("under_way", glance.under_way), view.table_of_under_way(shown),
        view.title("last"), view.table_of_settled(settled),
    ]  # fmt: skip
    return Group(*parts)


class _View:
    """The parts of a screen, of which each line takes one of the terminal's."""

    def __init__(self, glance: Glance, language: Language, width: int) -> None:
        self._glance = glance
        self._language = language
        self._width = width
        self._is_wide = width >= _WIDE

    def head(self) -> list[Text]:
        glance = self._glance
        state = "running" if glance.alive else "stopped"
        undelivered, under_way, receiver = _facts(glance, self._language)
        first = _one_line("paliadin-sidecar  ")
        first.append(self._word(state), _STYLES.get(state, "bold green"))
        first.append(f"   {undelivered}   {under_way}")
        second = _one_line(receiver, "" if glance.paused_at is None else "yellow")
        second.append(f"   {self._word('quit')}", "dim")
        return [first, second, *(_one_line(printable(one), "red") for one in glance.problems)]

    def title(self, name: str, number: int | None = None) -> Text:
        shown = self._word(name) if number is None else f"{self._word(name)}: {number}"
        return Text(shown, "bold", no_wrap=True)

    def roots(self) -> Table:
        rows = [
            (root["path"], self._state(root["state"]), root["turn_files"], root["foreign_files"])
            for root in self._glance.roots
        ]
        columns = ("directory", "state", "files", "others")
        return self._table(columns, 2, rows, first_width=max(1, self._width - _STATE_WIDTH))

    def under_way(self) -> list[dict[str, Any]]:
        asked = [one | {"state": "asked", "since": one["seen_at"]} for one in self._glance.asked]
        return asked + [
            one | {"state": "pending", "since": one["accepted_at"]}
            for one in self._glance.undelivered
        ]

    def table_of_under_way(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        cells = []
        for row in rows:
            tries = row.get("attempts", "")
            due = _clock(row["next_attempt_at"]) if tries else ""
            age = _age(self._glance.at - row["since"])
            state = self._state(row["state"])
            cells.append((*self._turn(row), state, age, tries, row["user"] or "", due))
        columns = ("turn", "backend", "state", "age", "tries", "user", "next")
        # An id by its form, and its revision. Below, an id's beginning is enough for `show`.
        return self._table(columns, 5, cells, first_width=40)

    def table_of_settled(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        cells = []
        for row in rows:
            took_s = None
            if row["settle_ms"] is not None and row["state"] != "dead":
                took_s = row["settle_ms"] / 1000 + row["settled_at"] - row["accepted_at"]
            agent_s = None if row["agent_ms"] is None else row["agent_ms"] / 1000
            times = (_clock(row["settled_at"]), _took(agent_s), _took(took_s))
            rest = (row["attempts"], row["bytes"], row["user"] or "")
            cells.append((*self._turn(row), self._state(row["state"]), *times, *rest))
        columns = (
            "turn", "backend", "state", "when", "agent", "delivery", "tries", "bytes", "user",
        )  # fmt: skip
        return self._table(columns, 6, cells, first_width=18)

    def _table(
        self,
        columns: Sequence[str],
        where_narrow: int,
        rows: Iterable[Sequence[object]],
        first_width: int,
    ) -> Table:
        # Where it is narrow, only so many columns, and of the first one only so many cells.
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        shown = len(columns) if self._is_wide else where_narrow
        for name in columns[:shown]:
            table.add_column(
                self._word(name),
                justify="right" if name in _NUMBERS else "left",
                no_wrap=True,
                overflow="ellipsis",
                max_width=first_width if name == columns[0] and not self._is_wide else None,
            )
        for row in rows:
            # Not a plain string, in which rich would read markup.
            cells = row[:shown]
            texts = (one if isinstance(one, Text) else Text(printable(str(one))) for one in cells)
            table.add_row(*texts)
        return table

    def _turn(self, row: Mapping[str, Any]) -> tuple[str, str]:
        revision = row.get("revision", 1)
        name = row["turn_id"] if revision == 1 else f"{row['turn_id']} ({revision})"
        backend = row["backend"]
        return name, f"{backend}/{row['persona']}" if self._is_wide else backend

    def _state(self, state: str) -> Text:
        return Text(self._word(state), _STYLES.get(state, ""))

    def _word(self, name: str) -> str:
        return self._language.text(f"top_{name}")


def line(glance: Glance, language: Language) -> str:
    """A glance on one line, without its end: for a pipe."""
    state = language.text("top_running" if glance.alive else "top_stopped")
    problems = map(printable, glance.problems)
    return "  ".join([local_time(glance.at), state, *_facts(glance, language), *problems])


def _facts(glance: Glance, language: Language) -> Iterable[str]:
    say = language.text
    undelivered = f"{say('top_undelivered')} {glance.pending}"
    if glance.oldest_at is not None:
        age = _age(glance.at - glance.oldest_at)
        undelivered += f" ({say('top_oldest')} {age})"
    yield undelivered
    yield f"{say('top_under_way')} {glance.under_way}"
    receiver = say("top_receives")
    if glance.paused_at is not None:
        why = printable(glance.paused_for or "").removeprefix("status_")
        age = _age(glance.at - glance.paused_at)
        receiver = f"{say('top_paused')} {age} ({why})"
    yield f"{say('top_receiver')} {receiver}"


def _one_line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _age(seconds: float) -> str:
    seconds = max(0, int(seconds))
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit} {name}"
    return f"{seconds} s"


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < _MINUTE_S else _age(seconds)


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S")
