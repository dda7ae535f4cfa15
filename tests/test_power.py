"""The disk that loses power in `make chaos`: it forgets what was not flushed, and that shows."""

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
from chaos.power import power_lost
from chaos.steps import INBOX_MADE, OUTBOX_MADE, PROMISED, Steps
from chaos.volatile import ROOT, Disk, Loss
from chaos.world import World
from support.receiver import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FILE = 0o100600


@pytest.fixture
def rng() -> random.Random:
    return random.Random(1)


def contents(disk: Disk, directory: int = ROOT) -> dict[str, bytes]:
    return {
        name: bytes(disk.nodes[number].content)
        for name, number in disk.nodes[directory].content.items()
    }


def test_what_was_flushed_stays(rng: random.Random) -> None:
    """Neither a file's content nor its name stays for the other's flush."""
    disk = Disk()
    kept, nameless, empty = (disk.make(ROOT, name, _FILE) for name in ("kept", "gone", "empty"))
    for each in (kept, nameless, empty):
        disk.write(each, 0, b"written")
    disk.flush(kept)
    disk.flush(nameless)
    disk.remove(ROOT, "gone")
    disk.flush(ROOT)
    disk.rename(ROOT, "kept", ROOT, "renamed")
    disk.write(kept, 0, b"WRITTEN")
    for _ in range(2):  # it may be asked twice
        assert contents(disk.left(Loss.ALL, rng)) == {"kept": b"written", "empty": b""}
    assert contents(disk) == {"renamed": b"WRITTEN", "empty": b"written"}


def test_pages_are_torn_and_names_lost_one_by_one(rng: random.Random) -> None:
    """Each page of a write stays or goes for itself, and each new name; a rename is one change."""
    disk = Disk()
    file = disk.make(ROOT, "old", _FILE)
    disk.flush(ROOT)
    disk.write(file, 0, b"x" * 8192)
    disk.rename(ROOT, "old", ROOT, "new")
    disk.make(ROOT, "other", _FILE)
    left = [contents(disk.left(Loss.TORN, rng)) for _ in range(200)]
    assert {frozenset(each) for each in left} == {
        frozenset(names) for names in (["old"], ["new"], ["old", "other"], ["new", "other"])
    }
    pieces = {each.get("old", each.get("new", b"")) for each in left}
    x, zeros = b"x" * 4096, bytes(4096)
    assert pieces == {b"", x, zeros + x, zeros + zeros, x + zeros, x + x}


def test_a_disk_that_keeps_the_order_loses_the_latest(rng: random.Random) -> None:
    """What stays was done before what goes, but for what a flush made stay."""
    disk = Disk()
    first, second = (disk.make(ROOT, name, _FILE) for name in ("first", "second"))
    for _ in range(3):
        disk.write(first, len(disk.nodes[first].content), b"1")
        disk.write(second, len(disk.nodes[second].content), b"2")
    left = {tuple(contents(disk.left(Loss.LATEST, rng)).items()) for _ in range(200)}
    assert len(left) == 15
    for each in left:
        assert 0 <= len(dict(each).get("first", b"")) - len(dict(each).get("second", b"")) <= 1
    disk.flush(second)
    names = [contents(disk.left(Loss.LATEST, rng)) for _ in range(50)]
    assert {each["second"] for each in names if "second" in each} == {b"222"}


# --- mounted ------------------------------------------------------------------------------------


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[LossyDisk]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount")
    disk = LossyDisk(tmp_path / "disk", tmp_path / "recorded")
    try:
        disk.__enter__()
    except OSError as exc:
        pytest.skip(f"needs a FUSE mount, which this machine refuses: {exc}")
    yield disk
    disk.__exit__()


def test_it_is_a_file_system(mount: LossyDisk, rng: random.Random) -> None:
    """Made, written, cut, renamed, removed, listed; only the flushed is there afterwards."""
    folder = mount.path / "folder"
    folder.mkdir(mode=0o700)
    file = folder / "file"
    with file.open("xb") as opened:
        opened.write(b"x" * 300_000)
        opened.truncate(200_000)
        opened.flush()
        os.fsync(opened.fileno())
        opened.write(b"y")
    file.chmod(0o600)
    (folder / "other").write_bytes(b"z")
    (folder / "other").rename(folder / "renamed")
    assert sorted(path.name for path in folder.iterdir()) == ["file", "renamed"]
    assert (folder / "renamed").read_bytes() == b"z"
    with pytest.raises(OSError, match="not empty"):
        folder.rmdir()
    (folder / "renamed").unlink()
    for directory in (folder, mount.path):
        descriptor = os.open(directory, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    (folder / "late").touch()
    mount.lose_power(Loss.ALL, rng)
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert file.read_bytes() == b"x" * 200_000
    assert file.stat().st_mode == _FILE


#: Commits forty rows to each of eight databases, and dies.
_COMMITS = """
import os, signal, sqlite3, sys
for n in range(8):
    db = sqlite3.connect(f"{sys.argv[1]}/{n}", isolation_level=None)
    db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = {sys.argv[2]}")
    db.execute("CREATE TABLE number (n)")
    for each in range(40):
        db.execute("INSERT INTO number VALUES (?)", (each,))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("synchronous", ["FULL", "OFF"])
def test_a_database_keeps_its_commits_only_by_flushes(
    mount: LossyDisk, rng: random.Random, synchronous: str, loss: Loss
) -> None:
    """SQLite with a write-ahead log: all of them are there, or, without flushes, not."""
    command = [sys.executable, "-c", _COMMITS, str(mount.path), synchronous]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    mount.lose_power(loss, rng)
    kept = [_numbers(mount.path / str(n)) == list(range(40)) for n in range(8)]
    assert all(kept) == (synchronous == "FULL")


def _numbers(path: Path) -> list[int]:
    try:
        with closing(sqlite3.connect(path)) as db:
            return [n for (n,) in db.execute("SELECT n FROM number ORDER BY n")]
    except sqlite3.DatabaseError:
        return []


def test_what_was_done_can_be_replayed(tmp_path: Path, mount: LossyDisk) -> None:
    """Each state of the disk on its way is had again."""
    file = mount.path / "file"
    file.write_bytes(b"1")
    file.write_bytes(b"22")
    mount.__exit__()
    states = [contents(disk) for disk in replayed(tmp_path / "recorded")]
    assert [each for n, each in enumerate(states) if each not in states[:n]] == [
        {"file": b""},
        {"file": b"1"},
        {"file": b"22"},
    ]


# --- what `make chaos` does with it -------------------------------------------------------------

#: A daemon whose outbox is never flushed.
_NEVER_FLUSHED = """
import sys
from paliadin_sidecar.operator.cli import main
from paliadin_sidecar.outbox.database import Outbox

execute = Outbox.execute
Outbox.execute = lambda self, statement, *values: execute(
    self, statement.replace("synchronous = FULL", "synchronous = OFF"), *values
)
sys.argv = sys.argv[1:]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("flushes", [True, False], ids=["FULL", "OFF"])
def test_the_daemon_loses_answers_only_without_flushes(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, *, flushes: bool
) -> None:
    """The scenario finds what `synchronous=OFF` loses, and that is all that it finds."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("needs root and /dev/fuse, to mount")
    if not flushes:
        monkeypatch.setattr("chaos.world._PATIENCE_S", 5.0)  # what is lost never comes
    with World(tmp_path, rng, quick=True) as world:
        world.behaviour = lambda _: Reply(503)
        if not flushes:
            world.host.prefix = [sys.executable, "-c", _NEVER_FLUSHED]
        power_lost(world, [Loss.ALL] * 3)
        verdict = world.verdict()
    assert verdict.turns > 10
    assert not verdict.cut
    if flushes:
        assert verdict.holds, verdict
    else:
        assert verdict.lost
        assert any("became another one" in each for each in verdict.wrong)


#: A stage of `chaos.steps` whose databases are never flushed.
_STAGE_NEVER_FLUSHED = """
import runpy, sqlite3

class NeverFlushed(sqlite3.Connection):
    def execute(self, statement, *values):
        statement = statement.replace("synchronous = FULL", "synchronous = OFF")
        return super().execute(statement, *values)

connect = sqlite3.connect
sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=NeverFlushed, **kwargs)
runpy.run_module("chaos.steps", run_name="__main__")
"""


@pytest.mark.parametrize("done", [OUTBOX_MADE, INBOX_MADE], ids=["outbox", "inbox"])
def test_a_database_that_is_not_flushed_does_not_hold(
    tmp_path: Path, mount: LossyDisk, rng: random.Random, done: Steps
) -> None:
    """What the steps promised is missed where it is lost; with all that was written it is there."""
    (stage,) = done.stages
    command = [sys.executable, "-c", _STAGE_NEVER_FLUSHED, stage, str(mount.path)]
    subprocess.run(command, check=True)
    promised = [path.name for path in (mount.path / PROMISED).iterdir()]
    mount.__exit__()
    (*_, disk) = replayed(tmp_path / "recorded")
    whole, left = tmp_path / "whole", tmp_path / "left"
    for each in (whole, left):
        each.mkdir()
    disk.put(whole)
    done.holds(whole, promised)
    disk.left(Loss.ALL, rng).put(left)
    with pytest.raises(AssertionError):
        done.holds(left, promised)
