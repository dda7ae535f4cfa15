"""What is remembered, for how long, and by whom."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import pytest

from paliadin_client.dedupe import KEEP_DAYS, DedupeFailed, Memory, Sqlite
from paliadin_client.errors import ConfigError
from paliadin_contract.rank import Rank

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)


def rank(revision: int = 1) -> Rank:
    return Rank("aichat_paliadin_turn-1", answered=True, revision=revision)


async def test_outlives_the_process(tmp_path: Path) -> None:
    """Another process that opens the same database knows what was stored."""
    path = tmp_path / "inbox.sqlite3"
    await Sqlite(path).remember("id-1", "turn-1", rank(2), NOW)
    again = Sqlite(path)
    assert await again.find("id-1", "turn-1") == (True, rank(2))
    assert await again.find("id-2", "turn-1") == (False, rank(2))
    assert await again.find("id-2", "turn-2") == (False, None)


async def test_kept_as_long_as_a_turn_can_come_again(tmp_path: Path) -> None:
    """Rows go after 90 days, when no sidecar sends them any more."""
    dedupe = Sqlite(tmp_path / "inbox.sqlite3")
    await dedupe.remember("id-1", "turn-1", rank(), NOW)
    await dedupe.remember("id-2", "turn-2", rank(), NOW + timedelta(days=KEEP_DAYS))
    assert await dedupe.find("id-1", "turn-1") == (True, rank())
    await dedupe.remember("id-3", "turn-3", rank(), NOW + timedelta(days=KEEP_DAYS, seconds=1))
    assert await dedupe.find("id-1", "turn-1") == (False, None)
    assert await dedupe.find("id-2", "turn-2") == (True, rank())


async def test_memory_is_bounded() -> None:
    """In memory the last 10,000 turns are known, each with all its revisions."""
    dedupe = Memory()
    for number in range(10_001):
        for revision in (1, 2):
            name = f"id-{number}-{revision}"
            await dedupe.remember(name, f"turn-{number}", rank(revision), NOW)
    assert await dedupe.find("id-0-2", "turn-0") == (False, None)
    assert await dedupe.find("id-1-1", "turn-1") == (True, rank(2))
    assert len(dedupe._turns) == 10_000


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_no_file(path: str) -> None:
    """A path that names no file would forget at once: it is refused where the inbox is made."""
    with pytest.raises(ConfigError, match="names no file"):
        Sqlite(path)


@pytest.mark.parametrize("path", [".", "/", "a\0b", b"x", "\ud800"], ids=ascii)
def test_no_possible_file(path: str) -> None:
    """What can be no path is told like a file that cannot be made."""
    with pytest.raises(ConfigError, match="the dedupe database"):
        Sqlite(path)


def test_for_its_user_alone(tmp_path: Path) -> None:
    """Database and locks are readable by their user alone, also where they were not before."""
    path = tmp_path / "inbox.sqlite3"
    path.touch(mode=0o644)
    path.chmod(0o644)
    Sqlite(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_name("inbox.sqlite3.locks").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["removed", "emptied", "removed with its locks", "locks removed"])
async def test_removed_while_in_use(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Removed under the running app, it is made again, and the log names it."""
    path = tmp_path / "inbox.sqlite3"
    dedupe = Sqlite(path)
    await dedupe.remember("id-1", "turn-1", rank(), NOW)
    if what == "emptied":
        os.truncate(path, 0)
    elif what != "locks removed":
        path.unlink()
    if "locks" in what:
        path.with_name("inbox.sqlite3.locks").rmdir()
    with dedupe.claim("turn-1") as mine:
        assert mine
    known, _ = await dedupe.find("id-1", "turn-1")
    assert known == (what == "locks removed")
    await dedupe.remember("id-1", "turn-1", rank(), NOW)
    assert await dedupe.find("id-1", "turn-1") == (True, rank())
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]


async def test_directory_removed_while_in_use(tmp_path: Path) -> None:
    """Where its directory is gone the error names it, and all is well when that is back."""
    directory = tmp_path / "state"
    directory.mkdir()
    dedupe = Sqlite(directory / "inbox.sqlite3")
    shutil.rmtree(directory)
    with pytest.raises(DedupeFailed, match=r"inbox\.sqlite3: No such file"), dedupe.claim("turn-1"):
        pass
    with pytest.raises(DedupeFailed, match=r"inbox\.sqlite3: No such file"):
        await dedupe.find("id-1", "turn-1")
    directory.mkdir()
    assert await dedupe.find("id-1", "turn-1") == (False, None)


async def test_threads_of_its_own(tmp_path: Path) -> None:
    """It does not wait behind an app that keeps all of its threads busy."""
    dedupe = Sqlite(tmp_path / "inbox.sqlite3")
    everything = anyio.to_thread.current_default_thread_limiter()
    tokens = [object() for _ in range(int(everything.total_tokens))]
    for token in tokens:
        everything.acquire_on_behalf_of_nowait(token)
    try:
        with anyio.fail_after(10):
            await dedupe.remember("id-1", "turn-1", rank(), NOW)
    finally:
        for token in tokens:
            everything.release_on_behalf_of(token)


def test_claim(tmp_path: Path) -> None:
    """A turn is claimed by one at a time; nothing lies about afterwards."""
    path = tmp_path / "inbox.sqlite3"
    first, second = Sqlite(path), Sqlite(path)
    with first.claim("turn-1") as mine:
        with second.claim("turn-1") as theirs, second.claim("turn-2") as other:
            assert (mine, theirs, other) == (True, False, True)
        with second.claim("turn-1") as theirs:
            assert not theirs
    with second.claim("turn-1") as theirs:
        assert theirs
    assert list((tmp_path / "inbox.sqlite3.locks").iterdir()) == []


def test_claim_outlasted(tmp_path: Path) -> None:
    """A lock whose file its holder removed after we had opened it is no claim."""
    dedupe = Sqlite(tmp_path / "inbox.sqlite3")
    locks = tmp_path / "inbox.sqlite3.locks"
    opened = os.open
    with pytest.MonkeyPatch.context() as patch:

        def open_then_removed(*args: int, **kwargs: int) -> int:
            descriptor = opened(*args, **kwargs)  # type: ignore[arg-type]  # handed through
            for path in locks.iterdir():
                path.unlink()
            return descriptor

        patch.setattr("os.open", open_then_removed)
        with dedupe.claim("turn-1") as mine:
            assert not mine


def test_claim_of_a_killed_process(tmp_path: Path) -> None:
    """A process that is killed while it stores leaves the turn to others."""
    path = tmp_path / "inbox.sqlite3"
    code = (
        "import os, signal, sys\n"
        "from paliadin_client.dedupe import Sqlite\n"
        "with Sqlite(sys.argv[1]).claim('turn-1') as mine:\n"
        "    print(mine, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, check=False
    )
    assert (killed.stdout, killed.returncode) == (b"True\n", -9)
    with Sqlite(path).claim("turn-1") as mine:
        assert mine


async def test_busy_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that somebody holds for too long is an error, not a forgotten turn."""
    monkeypatch.setattr("paliadin_client.dedupe._BUSY_S", 0.1)
    path = tmp_path / "inbox.sqlite3"
    dedupe = Sqlite(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DedupeFailed, match="locked"):
            await dedupe.remember("id-1", "turn-1", rank(), NOW)
