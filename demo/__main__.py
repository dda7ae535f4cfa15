"""The demo: users ask, agents write in many manners, and each answer arrives whole.

    python -m demo

Everything is real and on this machine: tmux, ssh, the client, the sidecar, HTTP. In each step
something happens to one of them. In the end all accounts are compared.
"""

from __future__ import annotations

import shutil
import signal
import sys
from statistics import median
from typing import TYPE_CHECKING

import anyio
from rich.cells import set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo import circle
from demo.stage import LOOK_S, Stage, StageError
from demo.verdict import Asked, Row, Turn, Written, judge, latency
from demo.writers import MANNERS
from paliadin_client import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from anyio.abc import TaskGroup

#: Whatever has not happened after this long is wrong; what is well takes a fraction.
_PATIENCE_S = 30.0
#: One writer starts after the other, so that a person can follow.
_PACE_S = 0.1

_UP, _DOWN, _KILLED = "agents' manners", "receiver down", "sidecar killed"
_QUIET = "no trailer"
_QUICK = [name for name in MANNERS if name != "no-trailer"]
_PLAN = {
    _UP: _QUICK,
    _QUIET: ["no-trailer"] * 2,
    _DOWN: ["slow", "rename", "copy", "in-place", "redirects", "token"],
    # A token that comes and goes while the sidecar is dead is seen by nobody.
    _KILLED: ["slow", "replaced", "lines", "rename", "in-place", "redirect", "move"],
}
_TOTAL = sum(map(len, _PLAN.values())) + sum(circle.PLAN.values())


async def play(demo: Demo) -> None:
    """Go through the steps.

    Raises:
        StageError: there is no going on.
    """
    stage = demo.stage
    async with stage.receiver.serving():
        stage.start_sidecar()
        await demo.until_event("service.started")
        await circle.play(demo)

        demo.title("Agents write in many manners, each by a process of its own")
        await demo.write(_QUIET, _PLAN[_QUIET])
        await demo.write(_UP, _PLAN[_UP])
        await demo.until_answered()

        demo.title("The receiver is down for a moment")
        await demo.write(_DOWN, _PLAN[_DOWN][:2])
    demo.note("the receiver is down")
    await demo.write(_DOWN, _PLAN[_DOWN][2:])
    await demo.until_event("receiver.paused")
    demo.note("the sidecar has paused: it only asks whether the receiver is well")
    async with stage.receiver.serving():
        demo.note("the receiver is started again")
        await demo.until_answered()

        demo.title("The sidecar is killed with SIGKILL, and started again")
        await demo.write(_KILLED, _PLAN[_KILLED][:4])
        await stage.stop("sidecar", signal.SIGKILL)
        demo.note("the sidecar is dead")
        await demo.write(_KILLED, _PLAN[_KILLED][4:])
        stage.start_sidecar()
        demo.note("the sidecar is started again")
        await demo.until_answered()
        # It is stopped before the verdict: nothing can arrive after it.
        if code := await stage.stop("sidecar", signal.SIGTERM):
            demo.wrong.append(f"the sidecar exited with {code} after SIGTERM")


class Interrupted(Exception):
    """A signal of this number wants the demo to end."""


class Demo:
    """What the steps work with.

    Args:
        stage: the processes.
        progress: shows how many turns have arrived, and prints lines above that.
        tasks: where users ask.

    Attributes:
        turns: all so far.
        wrong: what went wrong besides the turns.
    """

    def __init__(self, stage: Stage, progress: Progress, tasks: TaskGroup) -> None:
        self.stage = stage
        self.turns: list[Turn] = []
        self.wrong: list[str] = []
        self._under_way: list[Turn] = []
        self._progress = progress
        self._task = progress.add_task("", total=_TOTAL)
        self._tasks = tasks

    def title(self, text: str) -> None:
        """Say which step begins."""
        self.stage.events.clear()
        self._print(f"\n[bold]{text}[/bold]")

    def note(self, text: str) -> None:
        """Say what happens beside the turns."""
        self._look()
        self._print(f"  [yellow]{text}[/yellow]")

    async def write(self, row: str, manners: Iterable[str]) -> None:
        """Start one writer for each, one after the other."""
        for manner in manners:
            self._add(self.stage.write(row, manner))
            await anyio.sleep(_PACE_S)
            self._look()

    def ask(self, *turns: Asked) -> None:
        """Ask one after the other, beside all else."""
        self._add(*turns)
        self._tasks.start_soon(self._ask, turns)

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Go on when it is true.

        Raises:
            StageError: it does not become so.
        """
        with anyio.move_on_after(_PATIENCE_S):
            while not condition():
                await anyio.sleep(LOOK_S)
                self._look()
            return
        raise StageError(f"waited {_PATIENCE_S:g} s for {what}")

    async def until_event(self, name: str) -> None:
        """Go on when the sidecar has said so in this step."""
        await self.until(f"the sidecar's {name}", lambda: name in self.stage.events)

    async def until_answered(self) -> None:
        """Go on when all turns have arrived, and all who asked have their answers."""
        await self.until("turns", lambda: not self._under_way)

    async def _ask(self, turns: tuple[Asked, ...]) -> None:
        async with connect(
            inbox=self.stage.receiver.inbox, environ=self.stage.environ[turns[0].backend]
        ) as paliadin:
            for turn in turns:
                await turn.ask(paliadin)

    def _add(self, *turns: Turn) -> None:
        self.turns += turns
        self._under_way += turns

    def _look(self) -> None:
        self.stage.check()
        self._under_way = [turn for turn in self._under_way if not self._has_arrived(turn)]

    def _has_arrived(self, turn: Turn) -> bool:
        if isinstance(turn, Asked) and turn.error:
            raise StageError(f"{turn.title!r} was not answered: {turn.error}")
        if not (turn.via or (isinstance(turn, Written) and self.stage.is_written(turn))):
            return False
        seconds = latency(turn, self.stage.receiver.of(turn.id))
        if seconds is None:
            return False
        self._progress.advance(self._task)
        title, time = escape(set_cell_size(turn.title, 40)), _duration(seconds)
        self._print(f"  {turn.id[:8]}  {turn.backend}  {title} {turn.via:8} {time:>7}")
        return True

    def _print(self, line: str) -> None:
        self._progress.console.print(line, no_wrap=True, overflow="ellipsis")


def show(console: Console, rows: dict[str, Row], wrong: list[str]) -> None:
    """Print the result."""
    table = Table(box=None, header_style="bold")
    for name in ("", "turns", "response", "push", "delivered", "duplicates", "lost"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name in ("median", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    # The sum has no times: a median over rows that differ so much would say nothing.
    sums = [0] * 6
    for name in (*circle.PLAN, *_PLAN):
        row = rows.get(name, Row())
        lost = row.turns - row.delivered
        numbers = (row.turns, row.response, row.push, row.delivered, row.duplicates, lost)
        sums = [a + b for a, b in zip(sums, numbers, strict=True)]
        times = row.latencies
        shown = [_duration(median(times)), _duration(max(times))] if times else []
        table.add_row(name, *map(str, numbers), *shown)
    table.add_row("together", *map(str, sums))
    console.print("", table, "", sep="\n")
    console.print(
        " Response or push: what answered who asked. Times run from the complete file to\n"
        " the received callback.",
        style="dim",
    )
    for line in dict.fromkeys(wrong):
        console.print(f" [red]wrong:[/red] {escape(line)}", soft_wrap=True)
    if not wrong:
        console.print(" [green]Nothing was lost: each answer came whole, signed, to its user.[/]")


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


async def _perform(console: Console, stage: Stage, signals: AsyncIterator[int]) -> list[str]:
    # Returns what is wrong.
    came: list[int] = []

    async def obey(scope: anyio.CancelScope) -> None:
        async for number in signals:
            came.append(number)
            scope.cancel()

    bar = (TextColumn(" "), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = not console.is_terminal
    with Progress(*bar, console=console, transient=True, disable=hidden) as progress:
        async with anyio.create_task_group() as tasks:
            demo = Demo(stage, progress, tasks)
            tasks.start_soon(obey, tasks.cancel_scope)
            try:
                await play(demo)
            except StageError as exc:
                demo.wrong.append(str(exc))
            except SystemExit:  # rich's way to say that nobody reads the output any more
                came.append(signal.SIGPIPE)
            tasks.cancel_scope.cancel()
    if came:
        raise Interrupted(came[0])
    rows, differences = judge(demo.turns, stage.receiver)
    wrong = demo.wrong + differences
    show(console, rows, wrong)
    return wrong


async def _main() -> int:
    console = Console(highlight=False)
    # Whatever else comes while everything is being stopped is taken, and passed over.
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        stage = Stage()
        keep_logs = True
        try:
            wrong = await _perform(console, stage, signals)
            keep_logs = bool(wrong)
        except Interrupted as exc:
            keep_logs = False
            console.print("\n Interrupted: everything is stopped and removed.")
            return 128 + int(exc.args[0])
        finally:
            left = stage.close(keep_logs=keep_logs)
            for line in left:
                console.print(f" [red]wrong:[/red] {line}")
            if keep_logs:
                console.print(f" The logs are kept in {stage.logs}", soft_wrap=True)
    return 1 if wrong or left else 0


def main() -> int:
    """Play it all. Returns 0 only if nothing was lost and everything that came was right."""
    if missing := [name for name in ("tmux", "ssh") if not shutil.which(name)]:
        sys.exit(f"The demo needs {' and '.join(missing)}.")
    return anyio.run(_main)


if __name__ == "__main__":
    sys.exit(main())
