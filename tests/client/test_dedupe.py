"""What is remembered, for how long, and by whom."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from paliadin_client.dedupe import KEEP_DAYS, Memory, Sqlite

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)


async def test_outlives_the_process(tmp_path: Path) -> None:
    """Another process that opens the same database knows what was stored."""
    path = tmp_path / "inbox.sqlite3"
    await Sqlite(path).remember("id-1", "turn-1", 1, NOW)
    again = Sqlite(path)
    assert await again.knows("id-1", "turn-1", 1)
    assert not await again.knows("id-2", "turn-1", 1)
    assert not await again.knows("id-2", "turn-2", 1)


async def test_kept_as_long_as_a_turn_can_come_again(tmp_path: Path) -> None:
    """Rows go after 90 days, when no sidecar sends them any more."""
    dedupe = Sqlite(tmp_path / "inbox.sqlite3")
    await dedupe.remember("id-1", "turn-1", 1, NOW)
    await dedupe.remember("id-2", "turn-2", 1, NOW + timedelta(days=KEEP_DAYS))
    assert await dedupe.knows("id-1", "turn-1", 1)
    await dedupe.remember("id-3", "turn-3", 1, NOW + timedelta(days=KEEP_DAYS, seconds=1))
    assert not await dedupe.knows("id-1", "turn-1", 1)
    assert await dedupe.knows("id-2", "turn-2", 1)


async def test_memory_is_bounded() -> None:
    """In memory the last 10,000 turns are known, each with all its revisions."""
    dedupe = Memory()
    for number in range(10_001):
        for revision in (1, 2):
            await dedupe.remember(f"id-{number}-{revision}", f"turn-{number}", revision, NOW)
    assert not await dedupe.knows("id-0-2", "turn-0", 2)
    assert await dedupe.knows("id-1-1", "turn-1", 1)
    assert len(dedupe._ids) == len(dedupe._revisions) == 10_000


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
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await dedupe.remember("id-1", "turn-1", 1, NOW)
