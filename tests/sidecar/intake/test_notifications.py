"""Which names moved: both engines, by the same tests; and what only one of them does."""

from __future__ import annotations

import os
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio
import pytest
from support.waiting import PATIENCE_S
from support.ways import APPEAR, BEFORE, CHANGE, TOUCH, content

from paliadin_sidecar.errors import WatchFailed
from paliadin_sidecar.intake import notifications as events
from paliadin_sidecar.intake.notifications import changes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

MOST_QUEUED = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))

#: No process may open so many files.
NOT_OPEN = 2**30

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.fixture(params=["watchfiles", "inotify"])
def inotify(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "inotify")


async def watched(path: Path, *, inotify: bool) -> AsyncGenerator[set[str], None]:
    """Events of a directory, as it is when this begins."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        async with aclosing(changes(directory, inotify=inotify)) as found:
            async for touched in found:
                yield touched
    finally:
        os.close(directory)


class Watch:
    """Events of one directory, until the block ends."""

    def __init__(self, path: Path, *, inotify: bool) -> None:
        self._events = watched(path, inotify=inotify)

    async def __aenter__(self) -> Self:
        assert await anext(self._events) == set()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._events.aclose()

    async def see(self, *names: str) -> None:
        """Wait until each of these names was touched."""
        await touched(self._events, set(names))


async def touched(found: AsyncGenerator[set[str], None], waiting: set[str]) -> set[str]:
    """Wait until each of these names was touched; all that were."""
    seen: set[str] = set()
    with anyio.fail_after(PATIENCE_S):
        while waiting - seen:
            seen |= await anext(found)
    return seen


async def test_changes(path: Path, *, inotify: bool) -> None:
    """The name is reported of what is made, written, touched, renamed to it and removed."""
    async with Watch(path, inotify=inotify) as watch:
        (path / "a.txt").touch()
        await watch.see("a.txt")
        (path / "a.txt").write_text("x")
        await watch.see("a.txt")
        os.utime(path / "a.txt", (1, 1))
        await watch.see("a.txt")
        (path / "a.txt").rename(path / "b.txt")
        await watch.see("b.txt")
        (path / "b.txt").unlink()
        await watch.see("b.txt")


@pytest.mark.parametrize(
    ("make", "was"),
    [
        *(pytest.param(way, None, id=f"appears by {name}") for name, way in APPEAR.items()),
        *(
            pytest.param(way, BEFORE, id=f"{name}")
            for name, way in (CHANGE | TOUCH).items()
            if name != "mmap"
        ),
    ],
)
async def test_each_way(
    path: Path, make: Callable[[Path], None], was: bytes | None, *, inotify: bool
) -> None:
    """A file that becomes complete, or changes, is reported whichever way it does so."""
    turn = path / "t.txt"
    if was is not None:
        turn.write_bytes(was)
    async with Watch(path, inotify=inotify) as watch:
        make(turn)
        await watch.see("t.txt")


async def test_each_way_through_a_bind_mount(path: Path, *, inotify: bool) -> None:
    """The directory is watched, and not the way that leads to it."""
    other = path.with_name("other")
    other.mkdir()
    if (
        await anyio.run_process(["mount", "--bind", str(path), str(other)], check=False)
    ).returncode:
        pytest.skip("needs the right to mount")
    try:
        async with Watch(path, inotify=inotify) as watch:
            for n, (name, make) in enumerate(APPEAR.items()):
                if "outside" not in name:  # nothing is renamed from mount to mount
                    make(other / f"t{n}.txt")
                    await watch.see(f"t{n}.txt")
    finally:
        await anyio.run_process(["umount", "-l", str(other)])


async def test_inotify_reports_a_change_by_mmap(path: Path) -> None:
    """Only the close reports it, which watchfiles does not report: there a scan finds it."""
    turn = path / "t.txt"
    turn.write_bytes(content(turn)[::-1])
    async with Watch(path, inotify=True) as watch:
        CHANGE["mmap"](turn)
        await watch.see("t.txt")


async def test_inotify_gathers_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that does not rest is reported now and then, and its close at once."""
    monkeypatch.setattr(events, "_WRITTEN_S", 0.0)
    async with Watch(path, inotify=True) as watch:
        with (path / "a.txt").open("wb", buffering=0) as file:
            await watch.see("a.txt")
            file.write(b"x")
            await watch.see("a.txt")
            monkeypatch.setattr(events, "_WRITTEN_S", 3600.0)
            for _ in range(100):
                file.write(b"x")
            (path / "b.txt").touch()
            await watch.see("b.txt")
        await watch.see("a.txt")


async def test_any_name(path: Path, *, inotify: bool) -> None:
    """No name is passed over: what is none of ours is for others to say."""
    names = (".git", "a.txt~", ".a.txt.swp", "__pycache__", "ä\n.txt", "x" * 255)
    async with Watch(path, inotify=inotify) as watch:
        for name in names:
            (path / name).touch()
        await watch.see(*names)


async def test_below(path: Path, *, inotify: bool) -> None:
    """What is in directories below, or behind links, is not looked at."""
    (path / "below").mkdir()
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir()
    (path / "link").symlink_to(elsewhere)
    async with aclosing(watched(path, inotify=inotify)) as found:
        await anext(found)
        (path / "below" / "a.txt").touch()
        (elsewhere / "b.txt").touch()
        (path / "c.txt").touch()
        seen = await touched(found, {"c.txt"})
    assert seen <= {"c.txt", "below"}


@pytest.fixture
def opened(path: Path) -> Iterator[int]:
    """A descriptor of the directory, which is called `moved` since; another one has its path."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    path.rename(path.with_name("moved"))
    path.mkdir()
    yield opened
    os.close(opened)


async def test_the_directory_and_not_its_path(path: Path, opened: int, *, inotify: bool) -> None:
    """What was opened is watched, whatever the path leads to."""
    async with aclosing(changes(opened, inotify=inotify)) as found:
        await anext(found)
        (path / "other.txt").touch()
        (path.with_name("moved") / "t.txt").touch()
        assert "other.txt" not in await touched(found, {"t.txt"})


async def test_no_directory(*, inotify: bool) -> None:
    """What is not there cannot be watched."""
    with pytest.raises(WatchFailed, match=r"^FileNotFoundError$"):
        await anext(changes(NOT_OPEN, inotify=inotify))


async def test_leaving_early(path: Path, *, inotify: bool) -> None:
    """Who is cancelled while it waits leaves at once, and may watch again."""
    with anyio.fail_after(PATIENCE_S):
        async with Watch(path, inotify=inotify) as watch:
            with anyio.move_on_after(0.05) as scope:
                await watch.see("never")
            assert scope.cancelled_caught
        async with Watch(path, inotify=inotify) as watch:
            (path / "a.txt").touch()
            await watch.see("a.txt")


def touch_bytes(path: Path) -> str:
    name = os.fsencode(path) + b"/\xff.txt"
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT))
    return os.path.basename(os.fsdecode(name))  # noqa: PTH119 - a name that is no UTF-8


async def test_a_name_that_is_not_utf_8_costs_watchfiles_the_watch(path: Path) -> None:
    """It says so, and whoever listens watches anew."""
    async with Watch(path, inotify=False) as watch:
        touch_bytes(path)
        with pytest.raises(WatchFailed):
            await watch.see("never")


async def test_a_name_that_is_not_utf_8_is_one_like_any_other_to_inotify(path: Path) -> None:
    """The name comes with surrogates, as Python lists it."""
    async with aclosing(watched(path, inotify=True)) as found:
        await anext(found)
        await touched(found, {touch_bytes(path)})


async def test_watchfiles_keeps_what_nobody_asks_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the loop is held its thread reports some, waits, and loses none of the rest."""
    monkeypatch.setattr(events, "_MAX_REPORTS", 1)
    async with Watch(path, inotify=False) as watch:
        for n in range(200):
            (path / f"{n}.txt").touch()
        await watch.see(*(f"{n}.txt" for n in range(200)))


async def test_watchfiles_rests_after_the_flight(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for a scan when it begins to look less often, and goes on seeing."""
    monkeypatch.setattr(events, "_FLIGHT_MS", 20)
    async with aclosing(watched(path, inotify=False)) as found:
        await anext(found)
        (path / "a").touch()
        await touched(found, {"a"})
        with anyio.fail_after(PATIENCE_S):
            while await anext(found):
                pass
        (path / "b").touch()
        await touched(found, {"b"})


async def test_inotify_asks_for_a_scan_after_an_overflow(path: Path) -> None:
    """The kernel's queue has an end, and says when it was reached."""
    async with aclosing(watched(path, inotify=True)) as found:
        await anext(found)
        for name in "ab":
            (path / name).touch()
        for n in range(MOST_QUEUED):  # in turn, as the kernel merges two that are the same
            os.utime(path / "ab"[n % 2])
        with anyio.fail_after(PATIENCE_S):
            while await anext(found):
                pass
