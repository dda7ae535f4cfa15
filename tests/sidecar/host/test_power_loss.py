"""What the state directory has is there after a loss of power, whatever of it was not flushed.

`make chaos` does the same at each write of whole daemons; these are the faults that it has found.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from chaos.lossy import LossyDisk, replayed
from chaos.volatile import Loss
from support.outbox_box import KEY, Box, answer

from paliadin_sidecar.host import state_directory
from paliadin_sidecar.outbox import acceptance, erasure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OUTBOX = "outbox.db"
SECRET = b"Die Frist ist versaeumt."


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LossyDisk]:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("needs root and /dev/fuse, to mount")
    with LossyDisk(tmp_path / "disk", tmp_path / "recorded") as disk:
        yield disk


def after_each_step(tmp_path: Path, disk: LossyDisk, look: Callable[[Path], object]) -> list[bool]:
    """Look at what each loss leaves, after each thing that was done since `begun` was made.

    Returns whether what was done was over then.
    """
    disk.__exit__()
    rng = random.Random(1)
    over: list[bool] = []
    for done in replayed(tmp_path / "recorded"):
        names = {name for node in done.nodes.values() if node.is_directory for name in node.content}
        if "begun" not in names:
            continue
        for loss in [*Loss] * 5:
            left = tmp_path / f"left{len(over)}"
            left.mkdir()
            done.left(loss, rng).put(left)
            look(left)
            over.append("over" in names)
    return over


def test_a_new_state_directory_is_there_once_an_outbox_is(tmp_path: Path, disk: LossyDisk) -> None:
    """Each directory that was made on the way to it, and that an outbox was made there."""
    state = disk.path / "var" / "lib" / "state"
    state_directory.prepare(state)
    with state_directory.lock(state):
        (state / OUTBOX).touch()
        state_directory.remember_outbox(state)
    disk.lose_power(Loss.ALL, random.Random(1))
    assert (state / OUTBOX).exists()
    with state_directory.lock(state) as held_one:
        assert held_one


def test_an_outbox_that_is_moved_aside_keeps_its_log(tmp_path: Path, disk: LossyDisk) -> None:
    """Either is still in place, or both are aside: what was committed last is beside the rest."""
    script = f"""
import os, signal, sqlite3
db = sqlite3.connect({str(disk.path / OUTBOX)!r})
db.executescript("PRAGMA journal_mode = WAL; CREATE TABLE kept (n); INSERT INTO kept VALUES (1)")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    (disk.path / "begun").touch()
    state_directory.quarantine(disk.path, OUTBOX)
    (disk.path / "over").touch()

    def has_all(left: Path) -> None:
        here = [path for path in left.glob(f"{OUTBOX}*") if _is_outbox(path)]
        assert len(here) == 1, here
        with closing(sqlite3.connect(here[0])) as db:
            assert db.execute("SELECT n FROM kept").fetchall() == [(1,)]

    over = after_each_step(tmp_path, disk, has_all)
    assert over.count(False) > 50
    assert any(over)


def _is_outbox(path: Path) -> bool:
    return not path.name.endswith(("-wal", "-shm"))


def test_the_journal_s_key_is_none_or_whole(tmp_path: Path, disk: LossyDisk) -> None:
    """Never zeros, by which everybody could find out what an answer says; and it stays."""
    (disk.path / "begun").touch()
    key = state_directory.journal_key(disk.path, create=True)
    (disk.path / "over").touch()
    found = []

    def look(left: Path) -> None:
        file = left / "journal.key"
        found.append(file.read_bytes() if file.exists() else None)

    over = after_each_step(tmp_path, disk, look)
    assert set(found) == {None, key}
    assert all(each == key for each, is_over in zip(found, over, strict=True) if is_over)


def test_what_was_erased_does_not_come_back(tmp_path: Path, disk: LossyDisk) -> None:
    """SQLite empties the log without a flush; `erase` says that it is done once it is flushed."""
    box = Box(disk.path / OUTBOX, create=True)
    box(acceptance.accept, answer(SECRET))
    (disk.path / "begun").touch()
    (turn,) = box(erasure.turns_named, KEY.turn_id)
    box(erasure.erase, turn.id, "root", undelivered=True)
    assert erasure.empty_log(box.outbox, 5)
    (disk.path / "over").touch()
    box.outbox.close()
    found: list[bool] = []

    def look(left: Path) -> None:
        found.append(any(SECRET in path.read_bytes() for path in left.iterdir()))

    over = after_each_step(tmp_path, disk, look)
    assert any(found)
    assert not any(is_there for is_there, is_over in zip(found, over, strict=True) if is_over)


_UNFLUSHED = """
import os, signal, sys
from pathlib import Path
from support.outbox_box import Box, answer
from paliadin_sidecar.outbox import acceptance
box = Box(Path(sys.argv[1]), create=True)
if "first" in sys.argv:
    box.outbox.execute("PRAGMA synchronous = OFF")  # it is killed before its flush
    box(acceptance.accept, answer("Antwort"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_wrote_is_flushed_by_the_next(disk: LossyDisk) -> None:
    """It finds a turn in the log, prints it as accepted and sends it: so that is on the disk."""
    for which in ("first", "second"):
        command = [sys.executable, "-c", _UNFLUSHED, str(disk.path / OUTBOX), which]
        environ = os.environ | {"PYTHONPATH": "tests"}
        assert subprocess.run(command, env=environ, check=False).returncode == -signal.SIGKILL
    disk.lose_power(Loss.ALL, random.Random(1))
    with closing(sqlite3.connect(disk.path / OUTBOX)) as db:
        assert db.execute("SELECT turn_id FROM turn").fetchall() == [(KEY.turn_id,)]
