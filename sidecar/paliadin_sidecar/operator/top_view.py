"""What `top` shows: a glance as a screen, or as a line. Pure, in German and in English."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from paliadin_sidecar.operator.glance import Glance
from paliadin_sidecar.operator.terminal import printable

Language = Literal["de", "en"]
LANGUAGES: tuple[Language, ...] = ("de", "en")
#: From so many columns on each table has all of its columns.
_WIDE = 120
#: A turn's state, a root's, and the other words, in each language.
_WORDS: dict[str, tuple[str, str]] = {
    "running": ("läuft", "running"),
    "stopped": ("läuft nicht", "not running"),
    "undelivered": ("unzugestellt", "undelivered"),
    "oldest": ("älteste", "oldest"),
    "under way": ("unterwegs", "under way"),
    "receiver": ("Empfänger", "receiver"),
    "receives": ("nimmt an", "well"),
    "paused": ("pausiert seit", "paused for"),
    "directory": ("Verzeichnis", "directory"),
    "files": ("Dateien", "files"),
    "others": ("andere", "others"),
    "turn": ("Turn", "turn"),
    "user": ("Nutzer", "user"),
    "backend": ("Backend", "backend"),
    "state": ("Zustand", "state"),
    "age": ("Alter", "age"),
    "tries": ("Versuche", "tries"),
    "next": ("nächster", "next"),
    "last": ("zuletzt", "last"),
    "when": ("wann", "when"),
    "bytes": ("Bytes", "bytes"),
    "agent": ("Agent", "agent"),
    "delivery": ("Zustellung", "delivery"),
    "quit": ("q beendet", "q quits"),
    "asked": ("gefragt", "asked"),
    "pending": ("wartet", "pending"),
    "delivered": ("zugestellt", "delivered"),
    "failed": ("keine Antwort", "no answer"),
    "dead": ("aufgegeben", "given up"),
    "armed": ("beobachtet", "watched"),
    "missing": ("fehlt", "missing"),
    "untrusted": ("nicht vertraut", "untrusted"),
    "unreadable": ("nicht lesbar", "unreadable"),
}
_STYLES = {
    "dead": "red", "failed": "yellow", "missing": "yellow", "stopped": "bold red",
    "untrusted": "red", "unreadable": "red",
}  # fmt: skip
#: Columns that stand on the right.
_NUMBERS = {"files", "others", "age", "tries", "agent", "delivery", "bytes"}
_MINUTE_S = 60.0
#: That of the longest word for one, with what is between two columns.
_STATE_WIDTH = 18


def _word(name: str, language: Language) -> str:
    return _WORDS[name][LANGUAGES.index(language)]


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
        view.title("under way", glance.under_way), view.table_of_under_way(shown),
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
        first_width = max(1, self._width - _STATE_WIDTH)
        table = self._table(("directory", "state"), ("files", "others"), first_width=first_width)
        for root in self._glance.roots:
            self._add(
                table,
                (root["path"], self._state(root["state"])),
                (root["turn_files"], root["foreign_files"]),
            )
        return table

    def under_way(self) -> list[dict[str, Any]]:
        asked = [one | {"state": "asked", "since": one["seen_at"]} for one in self._glance.asked]
        return asked + [
            one | {"state": "pending", "since": one["accepted_at"]}
            for one in self._glance.undelivered
        ]

    def table_of_under_way(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        # An id by its form, and its revision. Below, an id's beginning is enough for `show`.
        columns = ("turn", "backend", "state", "age", "tries")
        table = self._table(columns, ("user", "next"), first_width=40)
        for row in rows:
            tries = row.get("attempts", "")
            due = _clock(row["next_attempt_at"]) if tries else ""
            age = _age(self._glance.at - row["since"])
            self._add(
                table,
                (*self._turn(row), self._state(row["state"]), age, tries),
                (row["user"] or "", due),
            )
        return table

    def table_of_settled(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        columns = ("turn", "backend", "state", "when", "agent", "delivery")
        table = self._table(columns, ("tries", "bytes", "user"), first_width=18)
        for row in rows:
            took_s = None
            if row["settle_ms"] is not None and row["state"] != "dead":
                took_s = row["settle_ms"] / 1000 + row["settled_at"] - row["accepted_at"]
            agent_s = None if row["agent_ms"] is None else row["agent_ms"] / 1000
            self._add(
                table,
                (
                    *self._turn(row),
                    self._state(row["state"]),
                    _clock(row["settled_at"]),
                    _took(agent_s),
                    _took(took_s),
                ),
                (row["attempts"], row["bytes"], row["user"] or ""),
            )
        return table

    def _table(
        self,
        columns: Sequence[str],
        columns_where_wide: Sequence[str],
        first_width: int,
    ) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for name in (*columns, *(columns_where_wide if self._is_wide else ())):
            table.add_column(
                self._word(name),
                justify="right" if name in _NUMBERS else "left",
                no_wrap=True,
                overflow="ellipsis",
                max_width=first_width if name == columns[0] and not self._is_wide else None,
            )
        return table

    def _add(self, table: Table, cells: Sequence[object], where_wide: Sequence[object]) -> None:
        shown = (*cells, *(where_wide if self._is_wide else ()))
        # Not a plain string, in which rich would read markup.
        texts = (one if isinstance(one, Text) else Text(printable(str(one))) for one in shown)
        table.add_row(*texts)

    def _turn(self, row: Mapping[str, Any]) -> tuple[str, str]:
        revision = row.get("revision", 1)
        name = row["turn_id"] if revision == 1 else f"{row['turn_id']} ({revision})"
        backend = row["backend"]
        return name, f"{backend}/{row['persona']}" if self._is_wide else backend

    def _state(self, state: str) -> Text:
        return Text(self._word(state), _STYLES.get(state, ""))

    def _word(self, name: str) -> str:
        return _word(name, self._language)


def line(glance: Glance, language: Language) -> str:
    """A glance on one line, without its end: for a pipe."""
    state = _word("running" if glance.alive else "stopped", language)
    at = datetime.fromtimestamp(glance.at).astimezone().isoformat(sep=" ", timespec="seconds")
    problems = map(printable, glance.problems)
    return "  ".join([at, state, *_facts(glance, language), *problems])


def _facts(glance: Glance, language: Language) -> Iterable[str]:
    undelivered = f"{_word('undelivered', language)} {glance.pending}"
    if glance.oldest_at is not None:
        age = _age(glance.at - glance.oldest_at)
        undelivered += f" ({_word('oldest', language)} {age})"
    yield undelivered
    yield f"{_word('under way', language)} {glance.under_way}"
    receiver = _word("receives", language)
    if glance.paused_at is not None:
        why = printable(glance.paused_for or "").removeprefix("status_")
        age = _age(glance.at - glance.paused_at)
        receiver = f"{_word('paused', language)} {age} ({why})"
    yield f"{_word('receiver', language)} {receiver}"


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
