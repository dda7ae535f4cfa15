"""The demo of many: users ask an app of four processes, and agents on three hosts answer.

    python -m demo.many

Everything is real and on this machine. A sidecar, a process of the app and PostgreSQL are killed
while agents are at work. In the end what each page shows is compared with what the app stored.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING

import anyio
from rich.markup import escape
from rich.table import Table
from support.postgresql import NotInstalled

from demo.many.deployment import APPS, HOSTS, Deployment
from demo.many.page import Page
from demo.processes import HostError
from demo.session import duration
from demo.stage import perform
from paliadin_client.store.postgresql.migration import migrate

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

_USERS = ("anna", "bao", "carla", "deniz", "emil", "fatma")
_WELL, _SIDECAR, _APP, _DATABASE = ROWS = (
    "all is well",
    "a sidecar killed",
    "a process killed",
    "PostgreSQL killed",
)
#: What has not happened after this long is wrong. What is well takes a fraction of it.
_TIMEOUT_S = 30.0
_POLL_S = 0.05
#: How long an agent is at work on a turn that something happens to.
_THINK = "think 2"
_LEGEND = (
    "Elsewhere: shown by another process than the one that was asked. Stored: rows in",
    "the app's table. Median, worst: from the question to the answer on the page.",
)


class Play:
    """The steps, and the account of them.

    Args:
        site: what is played on.
        console: where each step is printed.
        tasks: where pages wait.

    Attributes:
        pages: all so far.
        wrong: a sentence for each thing that is.
    """

    def __init__(self, site: Deployment, console: Console, tasks: anyio.abc.TaskGroup) -> None:
        self.pages: list[Page] = []
        self.wrong: list[str] = []
        self._site, self._console, self._tasks = site, console, tasks
        self._users = {
            name: site.user_id(HOSTS[number % len(HOSTS)]) for number, name in enumerate(_USERS)
        }

    async def play(self) -> None:
        """Go through the steps.

        Raises:
            HostError: there is no going on.
        """
        site = self._site
        await migrate(site.store)
        site.start()
        await self._until("all processes", site.are_up)
        self._say(f"{len(APPS)} processes of the app behind one address, {len(HOSTS)} hosts")
        for question in ("Welche Fristen laufen ab?", "Wer ist 'Müller & Söhne'; seit wann?"):
            await self._ask_all(_WELL, question)
            await self._answered()

        await self._ask_all(_SIDECAR, f"Bitte ({_THINK})!")
        await self._until("the hosts to have the turns", self._at_work)
        site.end_sidecar(HOSTS[0], signal.SIGKILL)
        self._say(f"the sidecar of {HOSTS[0]} is killed while agents are at work")
        await self._until("the agents", self._written)
        site.start_sidecar(HOSTS[0])
        self._say("it is started again")
        await self._answered()

        await self._ask_all(_APP, f"Gründlich ({_THINK})!")
        await self._until("the hosts to have the turns", self._at_work)
        asked = Counter(page.process for page in self.pages if page.row == _APP)
        ((victim, turns),) = asked.most_common(1)
        site.end(victim, signal.SIGKILL)
        self._say(f"{victim} is killed: it had been asked {turns} of {len(_USERS)} questions")
        await self._answered()
        site.start_app(victim)
        await self._until(victim, site.are_up)
        self._say("it is started again")

        await self._ask_all(_DATABASE, f"明天有什么 ({_THINK})?")
        await self._until("the hosts to have the turns", self._at_work)
        site.database.kill()
        self._say("PostgreSQL is killed while agents are at work")
        await self._ask_all(_DATABASE, "Und danach?")
        self._say("the same users ask on")
        await self._until("the agents", lambda: self._written(len(_USERS)))
        await anyio.to_thread.run_sync(site.database.start)
        self._say("PostgreSQL is started again")
        await self._answered()
        for host in HOSTS:  # before the accounts are compared, so that nothing comes after that
            if code := site.end_sidecar(host, signal.SIGTERM):
                self.wrong.append(f"the sidecar of {host} exited with {code} after SIGTERM")

    def compare(self) -> None:
        """Compare what the pages show with what is stored, and add what is wrong."""
        stored = self._site.stored()
        for page in self.pages:
            whose = f"{page.email}, {page.row}, {page.question!r}"
            # Only its token says who asks, so this is also whose turn the agent took it for.
            right = f"{page.user_id} asked:\n\n> {page.question}"
            if (shown := page.shown.get("text", "").strip()) != right:
                self.wrong.append(f"{whose}: the page shows {shown or page.shown!r}")
            texts = [text.strip() for turn, text in stored if turn == page.turn_id]
            if texts != [right]:
                self.wrong.append(f"{whose}: stored {len(texts)} times: {texts!r}")
        known = {page.turn_id for page in self.pages}
        self.wrong += [
            f"{turn} was stored, and not asked" for turn, _ in stored if turn not in known
        ]

    def show(self) -> None:
        """Print the result."""
        table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
        table.add_column()
        for name in ("turns", "shown", "elsewhere", "response", "push", "stored", "lost"):
            table.add_column(name, justify="right")
        for name in ("median", "worst"):
            table.add_column(name, justify="right")
        stored = Counter(turn for turn, _ in self._site.stored())
        sums: Counter[int] = Counter()
        for row in ROWS:
            pages = [page for page in self.pages if page.row == row]
            shown = [page for page in pages if page.shown.get("text")]
            vias = [page.shown["via"] for page in shown]
            counts = (
                len(pages), len(shown), sum(page.is_elsewhere for page in shown),
                vias.count("response"), vias.count("push"),
                sum(stored[page.turn_id] for page in pages),
                len(pages) - len(shown),
            )  # fmt: skip
            sums.update(dict(enumerate(counts)))
            times = [page.took_s for page in shown]
            last = [duration(median(times)), duration(max(times))] if times else []
            table.add_row(row, *map(str, counts), *last)
        table.add_row("together", *(str(sums[number]) for number in range(len(counts))))
        self._console.print("", table, "", sep="\n")
        for line in _LEGEND:
            self._console.print(line, style="dim", soft_wrap=True)
        for line in self.wrong:
            self._console.print(f"[red]wrong:[/red] {escape(line)}", soft_wrap=True)
        if not self.wrong:
            self._console.print("[green]Each user got his own answer, and each is stored once.[/]")

    async def _ask_all(self, row: str, question: str) -> None:
        for name, user_id in self._users.items():
            page = Page(row, user_id, f"{name}@example.org", f"{name}: {question}")
            self.pages.append(page)
            await page.ask(self._site.port)
            self._tasks.start_soon(page.look, self._site.port)

    async def _answered(self) -> None:
        turns = {page.turn_id for page in self.pages}

        def have_all() -> bool:
            return all(page.shown for page in self.pages) and turns <= {
                turn for turn, _ in self._site.stored()
            }

        await self._until("the answers on all pages and in the table", have_all)

    def _at_work(self) -> bool:
        return self._site.under_way() == len(_USERS)

    def _written(self, but: int = 0) -> bool:
        return self._site.written() == len(self.pages) - but

    async def _until(self, what: str, condition: Callable[[], bool]) -> None:
        with anyio.move_on_after(_TIMEOUT_S):
            while not condition():
                await anyio.sleep(_POLL_S)
            return
        raise HostError(f"waited {_TIMEOUT_S:g} s for {what}")

    def _say(self, line: str) -> None:
        self._console.print(f"  [yellow]{line}[/yellow]", soft_wrap=True)


async def _perform(console: Console, site: Deployment, scope: anyio.CancelScope) -> bool:
    # Returns whether all is well.
    async with anyio.create_task_group() as tasks:
        play = Play(site, console, tasks)
        try:
            await play.play()
        except (HostError, OSError) as exc:
            play.wrong.append(str(exc))
        except SystemExit:  # rich's way to say that nobody reads the output any more
            scope.cancel()
        tasks.cancel_scope.cancel()
    if scope.cancel_called:
        return False
    play.compare()
    play.show()
    return not play.wrong


def main() -> int:
    """Play it all. Returns 0 only if each user got the own answer, and each is stored once."""
    if not shutil.which("tmux"):
        sys.exit("The demo needs more on this machine: apt install tmux")
    try:
        return anyio.run(perform, Deployment, _perform)
    except NotInstalled:
        sys.exit(
            "The demo needs a PostgreSQL server, which it starts itself, and none is installed:\n"
            "apt install postgresql"
        )


if __name__ == "__main__":
    sys.exit(main())
