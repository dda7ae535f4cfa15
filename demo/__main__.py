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
from rich.markup import escape
from rich.table import Table

from demo import round_trip
from demo.host import Host
from demo.processes import HostError
from demo.session import Session, duration
from demo.stage import perform
from demo.writers import MANNERS

if TYPE_CHECKING:
    from rich.console import Console

_UP, _QUIET, _DOWN, _KILLED = "agents' manners", "no trailer", "receiver down", "sidecar killed"
_PLAN = {
    _UP: [name for name in MANNERS if name != "no-trailer"],
    _QUIET: ["no-trailer"] * 2,
    _DOWN: ["slow", "rename", "copy", "in-place", "redirects", "token"],
    # A token that comes and goes while the sidecar is dead is seen by nobody.
    _KILLED: ["slow", "replaced", "lines", "rename", "in-place", "redirect", "move"],
}
_LEGEND = (
    "Response, push: what answered who asked, whichever came first; empty where",
    "nobody asked. Twice: came again, with the same id.",
    "Pushed, median, worst: from the complete file to the acknowledged callback.",
)


async def play(session: Session) -> None:
    """Go through the steps.

    Raises:
        HostError: there is no going on.
    """
    host = session.host
    async with host.receiver.serving():
        host.start_sidecar()
        await session.until_event("service.started")
        await round_trip.play(session)

        session.title("Agents write in many manners, each by a process of its own")
        await session.write(_QUIET, _PLAN[_QUIET])
        await session.write(_UP, _PLAN[_UP])
        await session.until_answered()

        session.title("The receiver is down for a moment")
        await session.write(_DOWN, _PLAN[_DOWN][:2])
    session.note("the receiver is down")
    await session.write(_DOWN, _PLAN[_DOWN][2:])
    await session.until_event("receiver.paused")
    session.note("the sidecar has paused: it only asks whether the receiver is well")
    async with host.receiver.serving():
        session.note("the receiver is started again")
        await session.until_answered()

        session.title("The sidecar is killed with SIGKILL, and started again")
        await session.write(_KILLED, _PLAN[_KILLED][:4])
        await session.stop("sidecar", signal.SIGKILL)
        session.note("the sidecar is dead")
        await session.write(_KILLED, _PLAN[_KILLED][4:])
        host.start_sidecar()
        session.note("the sidecar is started again")
        await session.until_answered()
        # It is stopped before the accounts are compared, so that nothing can arrive after that.
        if code := await session.stop("sidecar", signal.SIGTERM):
            session.wrong.append(f"the sidecar exited with {code} after SIGTERM")


def show(console: Console, session: Session) -> None:
    """Print the result."""
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column()
    for name in ("turns", "response", "push", "delivered", "twice", "lost", "median", "worst"):
        table.add_column(name, justify="right")
    counts = []
    for name in (*round_trip.ROWS, *_PLAN):
        turns = [turn for turn in session.turns if turn.row == name]
        times = [seconds for turn in turns if (seconds := turn.latency()) is not None]
        vias = [turn.via for turn in turns]
        ids = [arrival.webhook_id for turn in turns for arrival in turn.arrivals()]
        answered = (vias.count("response"), vias.count("push"))
        lost = len(turns) - len(times)
        counts.append((len(turns), *answered, len(times), len(ids) - len(set(ids)), lost))
        shown = [duration(median(times)), duration(max(times))] if times else []
        cells = [*map(str, counts[-1]), *shown]
        if name in _PLAN:
            cells[1:3] = "", ""  # nobody asked
        table.add_row(name, *cells)
    # The sum has no times: a median over rows that differ so much would say nothing.
    table.add_row("together", *(str(sum(column)) for column in zip(*counts, strict=True)))
    console.print("", table, "", sep="\n")
    for line in _LEGEND:
        console.print(line, style="dim", soft_wrap=True)
    for line in session.wrong:
        console.print(f"[red]wrong:[/red] {escape(line)}", soft_wrap=True)
    if not session.wrong:
        console.print("[green]Nothing was lost: each answer came whole, signed, to its user.[/]")


async def _perform(console: Console, host: Host, scope: anyio.CancelScope) -> bool:
    # Returns whether all is well.
    async with anyio.create_task_group() as tasks:
        session = Session(host, console, tasks)
        try:
            with session.progress:
                await play(session)
        except HostError as exc:
            session.wrong.append(str(exc))
        except SystemExit:  # rich's way to say that nobody reads the output any more
            scope.cancel()
        tasks.cancel_scope.cancel()
    session.compare_accounts()
    show(console, session)
    return not session.wrong


def main() -> int:
    """Play it all. Returns 0 only if nothing was lost and everything that came was right."""
    needed = {"tmux": "tmux", "ssh": "openssh-client"}
    if missing := [package for name, package in needed.items() if not shutil.which(name)]:
        sys.exit(f"The demo needs more on this machine: apt install {' '.join(missing)}")
    return anyio.run(perform, Host, _perform)


if __name__ == "__main__":
    sys.exit(main())
