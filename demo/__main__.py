"""The demo: users ask, agents write in many manners, and each answer arrives whole.

    python -m demo

Everything is real and on this machine: tmux, ssh, the client, the sidecar, HTTP. In each step
something happens to one of them. In the end all accounts are compared.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from statistics import median
from typing import TYPE_CHECKING

import anyio
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from demo import circle
from demo.stage import Stage, StageError
from demo.writers import MANNERS
from paliadin_client import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyio.abc import TaskGroup

    from demo.verdict import Asked, Turn

#: Whatever has not happened after this long is wrong; what is well takes a fraction.
_PATIENCE_S = 30.0
#: One writer starts after the other, so that a person can follow.
_PACE_S = 0.1
_LOOK_S = 0.05

_UP, _QUIET, _DOWN, _KILLED = "agents' manners", "no trailer", "receiver down", "sidecar killed"
_PLAN = {
    _UP: [name for name in MANNERS if name != "no-trailer"],
    _QUIET: ["no-trailer"] * 2,
    _DOWN: ["slow", "rename", "copy", "in-place", "redirects", "token"],
    # A token that comes and goes while the sidecar is dead is seen by nobody.
    _KILLED: ["slow", "replaced", "lines", "rename", "in-place", "redirect", "move"],
}
#: Cells of the longest question, and of all columns: a terminal of 80 has room for them.
_WIDEST, _WIDTH = 42, 80
_LEGEND = (
    "Response, push: what answered who asked, whichever came first; empty where",
    "nobody asked. Twice: came again, with the same id.",
    "Pushed, median, worst: from the complete file to the acknowledged callback.",
)


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
        await demo.stop("sidecar", signal.SIGKILL)
        demo.note("the sidecar is dead")
        await demo.write(_KILLED, _PLAN[_KILLED][4:])
        stage.start_sidecar()
        demo.note("the sidecar is started again")
        await demo.until_answered()
        # It is stopped before the verdict: nothing can arrive after it.
        if code := await demo.stop("sidecar", signal.SIGTERM):
            demo.wrong.append(f"the sidecar exited with {code} after SIGTERM")


class Demo:
    """What the steps work with.

    Args:
        stage: the processes.
        console: where each turn is shown when it has arrived.
        tasks: where users ask.

    Attributes:
        turns: all so far.
        wrong: a sentence for each thing that is.
        progress: how many have arrived, shown while it is entered.
    """

    def __init__(self, stage: Stage, console: Console, tasks: TaskGroup) -> None:
        self.stage = stage
        self.turns: list[Turn] = []
        self.wrong: list[str] = []
        self._under_way: list[Turn] = []
        self._console = console
        #: The last line of a terminal; elsewhere nothing.
        self.progress = console.status("")
        self._tasks = tasks

    def title(self, text: str, column: str = "how the file is written", by: str = "") -> None:
        """Say which step begins, and what stands in the columns of its turns."""
        self.stage.events.clear()
        self._print(f"\n[bold]{text}[/bold]")
        self._print(f"[dim]{_line('turn', 'backend', column, by, 'pushed')}[/dim]")

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

    def ask(self, backend: str, *turns: Asked) -> None:
        """Ask one after the other, beside all else."""
        self._add(*turns)
        self._tasks.start_soon(self._ask, backend, turns)

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Go on when it is true.

        Raises:
            StageError: it does not become so.
        """
        with anyio.move_on_after(_PATIENCE_S):
            while not condition():
                await anyio.sleep(_LOOK_S)
                self._look()
            return
        raise StageError(f"waited {_PATIENCE_S:g} s for {what}")

    async def until_event(self, name: str) -> None:
        """Go on when the sidecar has said so in this step."""
        await self.until(f"the sidecar's {name}", lambda: name in self.stage.events)

    async def until_answered(self) -> None:
        """Go on when all turns have arrived, and all who asked have their answers."""
        await self.until("turns", lambda: not self._under_way)

    async def stop(self, name: str, number: signal.Signals) -> int:
        """Signal a daemon, and return its exit code."""
        process = self.stage.signal(name, number)
        await self.until(f"the end of {name}", lambda: process.poll() is not None)
        return int(process.returncode)

    def judge(self) -> None:
        """Compare all accounts, and add what is wrong."""
        receiver = self.stage.receiver
        unknown = {*receiver.came} - {came for turn in self.turns for came in turn.came()}
        self.wrong += receiver.wrong + [f"{came.webhook_id} came of no turn" for came in unknown]
        for turn in self.turns:
            self.wrong += [f"{turn.id[:8]} ({turn.title}): {what}" for what in turn.wrong()]

    async def _ask(self, backend: str, turns: tuple[Asked, ...]) -> None:
        inbox, environ = self.stage.receiver.inbox, self.stage.environ[backend]
        async with connect(inbox=inbox, environ=environ) as paliadin:
            for turn in turns:
                await turn.ask(paliadin)

    def _add(self, *turns: Turn) -> None:
        self.turns += turns
        self._under_way += turns

    def _look(self) -> None:
        self.stage.check()
        self._under_way = [turn for turn in self._under_way if not self._has_arrived(turn)]
        arrived = len(self.turns) - len(self._under_way)
        self.progress.update(f"{arrived} of {len(self.turns)} turns have arrived")

    def _has_arrived(self, turn: Turn) -> bool:
        if not turn.has_ended() or (seconds := turn.latency()) is None:
            return False
        line = _line(turn.id[:8], turn.root.name, turn.title, turn.via, _duration(seconds))
        self._print(escape(line))
        return True

    def _print(self, line: str) -> None:
        # Nothing is cut: where a terminal is narrow, it breaks the line itself.
        self._console.print(line, soft_wrap=True)


def show(console: Console, demo: Demo) -> None:
    """Print the result."""
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column()
    for name in ("turns", "response", "push", "delivered", "twice", "lost", "median", "worst"):
        table.add_column(name, justify="right")
    counts = []
    for name in (*circle.ROWS, *_PLAN):
        turns = [turn for turn in demo.turns if turn.row == name]
        times = [seconds for turn in turns if (seconds := turn.latency()) is not None]
        vias = [turn.via for turn in turns]
        ids = [came.webhook_id for turn in turns for came in turn.came()]
        answered = (vias.count("response"), vias.count("push"))
        lost = len(turns) - len(times)
        counts.append((len(turns), *answered, len(times), len(ids) - len(set(ids)), lost))
        shown = [_duration(median(times)), _duration(max(times))] if times else []
        cells = [*map(str, counts[-1]), *shown]
        if name in _PLAN:
            cells[1:3] = "", ""  # nobody asked
        table.add_row(name, *cells)
    # The sum has no times: a median over rows that differ so much would say nothing.
    table.add_row("together", *(str(sum(column)) for column in zip(*counts, strict=True)))
    console.print("", table, "", sep="\n")
    for line in _LEGEND:
        console.print(line, style="dim", soft_wrap=True)
    for line in demo.wrong:
        console.print(f"[red]wrong:[/red] {escape(line)}", soft_wrap=True)
    if not demo.wrong:
        console.print("[green]Nothing was lost: each answer came whole, signed, to its user.[/]")


def _line(turn: str, backend: str, what: str, by: str, time: str) -> str:
    fill = " " * (_WIDEST - cell_len(what))
    return f"  {turn:8} {backend:7}  {what}{fill}  {by:8} {time:>7}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


async def _perform(console: Console, stage: Stage, scope: anyio.CancelScope) -> bool:
    # Returns whether all is well.
    async with anyio.create_task_group() as tasks:
        demo = Demo(stage, console, tasks)
        try:
            with demo.progress:
                await play(demo)
        except StageError as exc:
            demo.wrong.append(str(exc))
        except SystemExit:  # rich's way to say that nobody reads the output any more
            scope.cancel()
        tasks.cancel_scope.cancel()
    demo.judge()
    show(console, demo)
    return not demo.wrong


async def _main() -> int:
    console, well = Console(highlight=False), False
    console.width = max(console.width, _WIDTH)  # a narrower terminal breaks lines, cuts no words
    with anyio.CancelScope() as scope:
        # What is run by the loop cannot come in between: nothing is started and then forgotten.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as it is by `nohup`
                asyncio.get_running_loop().add_signal_handler(number, scope.cancel)
        stage = Stage()
        try:
            well = await _perform(console, stage, scope)
        finally:
            keep_logs = not (well or scope.cancel_called)
            left = stage.close(keep_logs=keep_logs)
    for line in left:
        console.print(f"[red]wrong:[/red] {line}")
    if scope.cancel_called:
        console.print("\nInterrupted: everything is stopped and removed.")
        return 128 + signal.SIGINT
    if keep_logs:
        console.print(f"The logs are kept in {stage.logs}", soft_wrap=True)
    return 0 if well and not left else 1


def main() -> int:
    """Play it all. Returns 0 only if nothing was lost and everything that came was right."""
    needed = {"tmux": "tmux", "ssh": "openssh-client"}
    if missing := [package for name, package in needed.items() if not shutil.which(name)]:
        sys.exit(f"The demo needs more on this machine: apt install {' '.join(missing)}")
    return anyio.run(_main)


if __name__ == "__main__":
    sys.exit(main())
