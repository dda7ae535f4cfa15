"""The demo's session: starts turns, shows each one that arrives, and waits for what must happen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from rich.cells import cell_len
from rich.markup import escape

from demo.processes import HostError
from paliadin_client import connect

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable

    from anyio.abc import TaskGroup
    from rich.console import Console

    from demo.host import Host
    from demo.turns import Asked, Turn


#: What has not happened after this long is wrong. What is well takes a fraction of it.
_TIMEOUT_S = 30.0
#: One writer starts after the other, so that a person can follow.
_PACE_S = 0.1
_POLL_S = 0.05
#: Cells of the longest question. With it all columns fit into a terminal of 80.
_WIDEST = 42


class Session:
    """What the steps work with.

    Args:
        host: the processes.
        console: where each turn is shown when it has arrived.
        tasks: where users ask.

    Attributes:
        turns: all so far.
        wrong: a sentence for each thing that is.
        progress: how many have arrived, shown while it is entered.
    """

    def __init__(self, host: Host, console: Console, tasks: TaskGroup) -> None:
        self.host = host
        self.turns: list[Turn] = []
        self.wrong: list[str] = []
        self._under_way: list[Turn] = []
        self._console = console
        #: Shown in the last line of a terminal, and nowhere else.
        self.progress = console.status("")
        self._tasks = tasks

    def title(self, text: str, column: str = "how the file is written", by: str = "") -> None:
        """Say which step begins, and what stands in the columns of its turns."""
        self.host.events.clear()
        self._print(f"\n[bold]{text}[/bold]")
        self._print(f"[dim]{turn_line('turn', 'backend', column, by, 'pushed')}[/dim]")

    def note(self, text: str) -> None:
        """Say what happens beside the turns."""
        self._update()
        self._print(f"  [yellow]{text}[/yellow]")

    async def write(self, row: str, manners: Iterable[str]) -> None:
        """Start one writer for each, one after the other."""
        for manner in manners:
            self._add(self.host.write(row, manner))
            await anyio.sleep(_PACE_S)
            self._update()

    def ask(self, backend: str, *turns: Asked) -> None:
        """Ask one after the other, beside all else."""
        self._add(*turns)
        self._tasks.start_soon(self._ask, backend, turns)

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Go on when it is true.

        Raises:
            HostError: it does not become so.
        """
        with anyio.move_on_after(_TIMEOUT_S):
            while not condition():
                await anyio.sleep(_POLL_S)
                self._update()
            return
        raise HostError(f"waited {_TIMEOUT_S:g} s for {what}")

    async def until_event(self, name: str) -> None:
        """Go on when the sidecar has said so in this step."""
        await self.until(f"the sidecar's {name}", lambda: name in self.host.events)

    async def until_answered(self) -> None:
        """Go on when all turns have arrived, and all who asked have their answers."""
        await self.until("turns", lambda: not self._under_way)

    async def stop(self, name: str, number: signal.Signals) -> int:
        """Signal a daemon, and return its exit code."""
        process = self.host.signal(name, number)
        await self.until(f"the end of {name}", lambda: process.poll() is not None)
        return int(process.returncode)

    def compare_accounts(self) -> None:
        """Compare all accounts, and add what is wrong."""
        receiver = self.host.receiver
        unknown = {*receiver.arrivals} - {
            arrival for turn in self.turns for arrival in turn.arrivals()
        }
        self.wrong += receiver.wrong + [
            f"{arrival.webhook_id} arrived for no turn" for arrival in unknown
        ]
        for turn in self.turns:
            self.wrong += [f"{turn.id[:8]} ({turn.title}): {what}" for what in turn.wrong()]

    async def _ask(self, backend: str, turns: tuple[Asked, ...]) -> None:
        inbox, environ = self.host.receiver.inbox, self.host.environ[backend]
        async with connect(inbox=inbox, environ=environ) as paliadin:
            for turn in turns:
                await turn.ask(paliadin)

    def _add(self, *turns: Turn) -> None:
        self.turns += turns
        self._under_way += turns

    def _update(self) -> None:
        self.host.check()
        self._under_way = [turn for turn in self._under_way if not self._has_arrived(turn)]
        arrived = len(self.turns) - len(self._under_way)
        self.progress.update(f"{arrived} of {len(self.turns)} turns have arrived")

    def _has_arrived(self, turn: Turn) -> bool:
        if not turn.has_ended() or (seconds := turn.latency()) is None:
            return False
        line = turn_line(turn.id[:8], turn.root.name, turn.title, turn.via, duration(seconds))
        self._print(escape(line))
        return True

    def _print(self, line: str) -> None:
        # Nothing is cut. A narrow terminal breaks the line itself.
        self._console.print(line, soft_wrap=True)


def turn_line(turn: str, backend: str, what: str, by: str, time: str) -> str:
    """One line of the output, in the columns of a turn."""
    fill = " " * (_WIDEST - cell_len(what))
    return f"  {turn:8} {backend:7}  {what}{fill}  {by:8} {time:>7}"


def duration(seconds: float) -> str:
    """The time as it is shown: milliseconds, or seconds where it is longer."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
