"""The demo: real processes write turn files in many manners, and each answer arrives whole.

    python -m demo

Each step lets turns be written while something happens to the sidecar or to its receiver. In
the end the writers' accounts are compared with the receiver's.
"""

from __future__ import annotations

import signal
import sys
import time
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo.stage import Stage, StageError
from demo.verdict import Arrivals, Row, Turn, judge
from demo.writers import MANNERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Whatever has not happened after this long is wrong; what is well takes a fraction.
_PATIENCE_S = 20.0
#: One writer starts after the other, so that a person can follow.
_PACE_S = 0.12
_LOOK_S = 0.05

_UP, _DOWN, _KILLED = "all is well", "receiver down", "sidecar killed"
_QUIET = "no trailer: 5 s of quiet"
_QUICK = [name for name in MANNERS if name != "no-trailer"]
_PLAN = {
    _UP: _QUICK,
    _QUIET: ["no-trailer"] * 3,
    _DOWN: _QUICK,
    # A token that comes and goes while the sidecar is dead is seen by nobody.
    _KILLED: [name for name in _QUICK if name != "token"],
}


class Interrupted(Exception):
    """A signal of this number wants the demo to end."""


class Overdue(Exception):
    """Turns did not arrive; the text says how many. The verdict says which."""


def play(demo: Demo) -> list[str]:
    """Go through the steps. Returns what is wrong with the sidecar's end.

    Raises:
        Overdue, StageError, Interrupted: there is no going on.
    """
    demo.title("Real processes write turn files; a real sidecar pushes each to a receiver")
    demo.stage.start_receiver()
    demo.stage.start_sidecar()
    demo.wait_for("the receiver", demo.stage.is_listening)
    demo.wait_for_event("service.started")

    demo.title("All is well: every manner of writing, each by a process of its own")
    demo.write(_QUIET, _PLAN[_QUIET])
    demo.write(_UP, _PLAN[_UP])
    demo.wait_for_turns()

    demo.title("The receiver is down for a moment")
    demo.write(_DOWN, _PLAN[_DOWN][:4])
    demo.stage.stop("receiver", signal.SIGTERM)
    demo.note("the receiver is down")
    demo.write(_DOWN, _PLAN[_DOWN][4:])
    demo.wait_for_event("receiver.paused")
    demo.note("the sidecar has paused: it only asks whether the receiver is well")
    demo.note("the receiver is started again")
    demo.stage.start_receiver()
    demo.wait_for_turns()

    demo.title("The sidecar is killed with SIGKILL, and started again")
    demo.write(_KILLED, _PLAN[_KILLED][:7])
    demo.stage.stop("sidecar", signal.SIGKILL)
    demo.note("the sidecar is dead")
    demo.write(_KILLED, _PLAN[_KILLED][7:])
    demo.note("the sidecar is started again")
    demo.stage.start_sidecar()
    demo.wait_for_turns()

    # Both are stopped before the verdict: nothing can arrive after it.
    code = demo.stage.stop("sidecar", signal.SIGTERM)
    demo.stage.stop("receiver", signal.SIGTERM)
    return [f"the sidecar exited with {code} after SIGTERM"] if code else []


class Demo:
    """What the steps work with: the stage, and the turns under way.

    Args:
        stage: the processes.
        progress: shows how many turns have arrived, and prints lines above that.
        signals: numbers of the signals that came.
    """

    def __init__(self, stage: Stage, progress: Progress, signals: list[int]) -> None:
        self.stage = stage
        self.turns: list[Turn] = []
        self._under_way: list[Turn] = []
        self._arrivals = Arrivals(stage.receiver_log)
        self._progress = progress
        self._task = progress.add_task("", total=sum(map(len, _PLAN.values())))
        self._signals = signals

    def title(self, text: str) -> None:
        """Say which step begins."""
        self.stage.events.clear()
        self._print(f"\n[bold]{text}[/bold]")

    def note(self, text: str) -> None:
        """Say what happens beside the turns."""
        self._look()
        self._print(f"  [yellow]{text}[/yellow]")

    def write(self, row: str, manners: Iterable[str]) -> None:
        """Start one writer for each, one after the other."""
        for manner in manners:
            turn = self.stage.write(row, manner)
            self.turns.append(turn)
            self._under_way.append(turn)
            self._watch(_PACE_S)

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Go on when it is true.

        Raises:
            StageError: it does not become so.
        """
        if not self._watch(_PATIENCE_S, condition):
            raise StageError(f"waited {_PATIENCE_S:g} s for {what}")

    def wait_for_event(self, name: str) -> None:
        """Go on when the sidecar has said so in this step."""
        self.wait_for(f"the sidecar's {name}", lambda: name in self.stage.events)

    def wait_for_turns(self) -> None:
        """Go on when all have arrived.

        Raises:
            Overdue: they do not.
        """
        if not self._watch(_PATIENCE_S, lambda: not self._under_way):
            raise Overdue(f"{len(self._under_way)} turns are not there after {_PATIENCE_S:g} s")

    def _watch(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        end = time.monotonic() + seconds
        while not (true := until()) and time.monotonic() < end:
            time.sleep(_LOOK_S)
            self._look()
        return true

    def _look(self) -> None:
        if self._signals:
            raise Interrupted(self._signals[0])
        self.stage.check()
        self._arrivals.read()
        self._under_way = [turn for turn in self._under_way if not self._has_arrived(turn)]

    def _has_arrived(self, turn: Turn) -> bool:
        if not self.stage.is_written(turn):
            return False
        latency = self._arrivals.latency(turn, turn.versions()[-1])
        if latency is None:
            return False
        self._progress.advance(self._task)
        title = MANNERS[turn.manner].title
        self._print(f"  {turn.id[:8]}  {turn.backend}  {title:<45} {_duration(latency):>8}")
        return True

    def _print(self, line: str) -> None:
        self._progress.console.print(line, no_wrap=True, overflow="ellipsis")


def show(console: Console, rows: dict[str, Row], wrong: list[str]) -> None:
    """Print the result."""
    table = Table(box=None, header_style="bold")
    for name in ("", "written", "delivered", "duplicates", "lost", "median", "worst"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    # The sum has no times: a median over rows that differ so much would say nothing.
    counts = []
    for name in _PLAN:
        row = rows.get(name, Row())
        numbers = (row.written, row.delivered, row.duplicates, row.written - row.delivered)
        counts.append(numbers)
        times = row.latencies
        shown = [_duration(median(times)), _duration(max(times))] if times else []
        table.add_row(name, *map(str, numbers), *shown)
    table.add_row("together", *(str(sum(column)) for column in zip(*counts, strict=True)))
    console.print("", table, "", sep="\n")
    console.print(" Times run from the complete file to the received callback.", style="dim")
    for line in dict.fromkeys(wrong):
        console.print(f" [red]wrong:[/red] {escape(line)}", soft_wrap=True)
    if not wrong:
        console.print(" [green]Nothing was lost: each answer came whole and signed.[/green]")


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def main() -> int:
    """Play it all. Returns 0 only if nothing was lost and everything that came was right."""
    # Looked at between two steps, so that no process and no directory is ever forgotten.
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda came, _: signals.append(came))
    console = Console(highlight=False)
    bar = (TextColumn(" "), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    stage = Stage()
    keep_logs = True
    try:
        with Progress(
            *bar, console=console, transient=True, disable=not console.is_terminal
        ) as progress:
            demo = Demo(stage, progress, signals)
            try:
                wrong = play(demo)
            except Overdue as exc:
                wrong = [str(exc)]
        rows, differences = judge(demo.turns, stage.receiver_log)
        wrong += differences
        show(console, rows, wrong)
        keep_logs = bool(wrong)
    except Interrupted as exc:
        console.print("\n Interrupted: everything is stopped and removed.")
        return 128 + int(exc.args[0])
    except SystemExit:  # rich's way to say that nobody reads the output any more
        keep_logs = False
        raise
    except StageError as exc:
        console.print(f"\n [red]wrong:[/red] {escape(str(exc))}", soft_wrap=True)
        return 1
    finally:
        keep_logs = keep_logs and not signals
        stage.close(keep_logs=keep_logs)
        if keep_logs:
            console.print(f" The logs are kept in {stage.logs}", soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
