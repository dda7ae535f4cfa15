"""What the page is made from: turns and deliveries that are counted, and cells that show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from paliadin_sidecar.audit.turn_history import Delivery, Turn, TurnHistory
from paliadin_sidecar.operator.language import Language
from paliadin_sidecar.operator.report.view import Cell, Column

#: Both backends' own limit (the shim's `PALIADIN_TIMEOUT_S`, the persona's): what polls for an
#: answer does so for as long.
POLLED_MS = 120_000
#: So many rows are shown at most: nobody reads more, and a program takes an export.
FEW_ROWS, MANY_ROWS = 20, 200


@dataclass(frozen=True)
class Facts:
    """What the page is made from, and in which language and form.

    Attributes:
        history: what happened.
        language: how it is said.
        made_at: when it was read, in epoch milliseconds.
        anonymous: whether persons are left out.
        dead: how many deliveries are given up in all, of whatever time.
        command: a command as it is typed on this host.
    """

    history: TurnHistory
    language: Language
    made_at: int
    anonymous: bool
    dead: int
    command: Callable[[str], str]

    @cached_property
    def turns(self) -> list[Turn]:
        """Those that are counted."""
        return [turn for turn in self.history.turns.values() if turn.counted]

    @cached_property
    def deliveries(self) -> list[Delivery]:
        """Those that are counted."""
        return [each for each in self.history.deliveries.values() if each.counted]

    @cached_property
    def acknowledged(self) -> list[tuple[int, Delivery]]:
        """The answers that were acknowledged, and how long that took."""
        return [
            (each.delivered_ms, each)
            for each in self.deliveries
            if each.is_answer and each.delivered_ms is not None
        ]

    @cached_property
    def timed(self) -> list[tuple[int, Turn]]:
        """The turns whose beginning is known, and how long the agent took."""
        return [(turn.took_ms, turn) for turn in self.turns if turn.took_ms is not None]

    @cached_property
    def late(self) -> list[tuple[int, Turn]]:
        """Of these, those that a poller would not have waited for."""
        return [(took, turn) for took, turn in self.timed if took > POLLED_MS]

    def turn_cells(self, turn: Turn, at: int) -> list[Cell]:
        """The cells of a turn and of a time; that of a person only where persons are shown."""
        user = [] if self.anonymous else [Cell(turn.user or "")]
        return [Cell(turn.turn_id, code=True), Cell(turn.root), *user, self.time(at)]

    def turn_columns(self, at: str, *names: str, numeric: Iterable[str] = ()) -> list[Column]:
        """The columns of these cells, by the name of the time's text, and others behind them."""
        user = [] if self.anonymous else ["user"]
        return self.columns("turn", "backend", *user, at, *names, numeric=numeric)

    def time(self, at: int) -> Cell:
        """The cell of a time."""
        return Cell(self.language.time(at), sort=at, at=at)

    def number(self, number: int) -> Cell:
        """The cell of a number."""
        return Cell(self.language.number(number), sort=number)

    def duration(self, ms: int) -> Cell:
        """The cell of a duration."""
        return Cell(self.language.duration(ms), sort=ms)

    def columns(self, *names: str, numeric: Iterable[str] = ()) -> list[Column]:
        """Columns by the names of their texts."""
        return [Column(self.language.text(name), numeric=name in numeric) for name in names]

    def cause(self, status: int | None, error: str | None, detail: str | None = None) -> str:
        """What an answer of the receiver usually comes from, and what mends it."""
        return self.command(self.language.cause(status, error, detail))

    def left_out(self, shown: int, number: int) -> str:
        """What is said below a table that does not show all."""
        if shown >= number:
            return ""
        amounts = {"shown": self.language.number(shown), "number": self.language.number(number)}
        return self.command(self.language.text("more_rows", **amounts))
