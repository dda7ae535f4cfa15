"""What the demo of many prints fits in a terminal of 80 columns; what it lacks, it says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING, cast

import anyio
import pytest
from demo.many import __main__ as demo
from demo.many.page import Page
from demo.stage import WIDTH
from rich.cells import cell_len
from rich.console import Console
from support import postgresql

if TYPE_CHECKING:
    from demo.many.deployment import Deployment

STORED = "0-1 asked:\n\n> Frist?"


class Site:
    """What the account needs of a deployment."""

    def __init__(self, *stored: tuple[str, str]) -> None:
        self._stored = stored

    def stored(self) -> list[tuple[str, str]]:
        return [*self._stored]

    def user_id(self, host: str) -> str:
        return f"user of {host}"


async def played(site: Site, *pages: Page) -> tuple[demo.Play, str]:
    """The account of what was played, and what is printed of it."""
    out = StringIO()
    async with anyio.create_task_group() as tasks:
        console = Console(file=out, width=WIDTH)
        play = demo.Play(cast("Deployment", site), console, tasks)
        play.pages += pages
        play.compare()
        play.show()
    return play, out.getvalue()


def page(turn_id: str, text: str = STORED) -> Page:
    shown = {"text": text, "via": "push", "process": "app 2"}
    return Page(
        demo.ROWS[-1], "0-1", "anna@example.org", "Frist?", turn_id, 1.0, "app 1", shown, 29.99
    )


@pytest.mark.anyio
async def test_all_is_well() -> None:
    """Each line fits, also with three digits in each column."""
    turns = [f"t-{number}" for number in range(100)]
    site = Site(*((turn, STORED) for turn in turns))
    play, printed = await played(site, *map(page, turns))
    assert play.wrong == []
    lines = printed.splitlines()
    assert [line.split()[-2:] for line in lines if "PostgreSQL" in line] == [["29.99", "s"]]
    assert max(map(cell_len, (*lines, *demo._LEGEND))) <= WIDTH


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("site", "shown", "wrong"),
    [
        (Site(), STORED, "stored 0 times"),
        (Site(("t", STORED), ("t", STORED)), STORED, "stored 2 times"),
        (Site(("t", "0-2 asked:\n\n> Frist?")), STORED, "stored 1 times"),
        (Site(("t", STORED)), "0-2 asked:\n\n> Frist?", "the page shows"),
        (Site(("t", STORED)), "", "the page shows"),
        (Site(("t", STORED), ("u", STORED)), STORED, "stored, and not asked"),
    ],
)
async def test_each_breach_is_seen(site: Site, shown: str, wrong: str) -> None:
    """Lost, twice, another's, or nobody's."""
    play, _ = await played(site, page("t", shown))
    assert len(play.wrong) == 1
    assert wrong in play.wrong[0]


def without_tmux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)


def without_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "_system_programs", lambda: None)
    monkeypatch.setattr(postgresql, "_embedded_programs", lambda *_: None)


@pytest.mark.parametrize(
    ("without", "mend"),
    [(without_tmux, "apt install tmux"), (without_postgresql, "apt install postgresql")],
)
def test_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, without: Callable[[pytest.MonkeyPatch], None], mend: str
) -> None:
    """And what mends it, with an exit code that is not 0."""
    if without is without_postgresql and shutil.which("tmux") is None:
        monkeypatch.setattr(shutil, "which", lambda *_, **__: "tmux")
    without(monkeypatch)
    with pytest.raises(SystemExit, match=mend):
        demo.main()
