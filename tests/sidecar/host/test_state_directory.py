from __future__ import annotations

import fcntl
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.users import ORDINARY, without_privilege

from paliadin_sidecar.errors import Locked, StateDirError
from paliadin_sidecar.host.state_directory import (
    is_alive,
    journal_key,
    lock,
    prepare,
    quarantine,
    remember_outbox,
)
from paliadin_sidecar.host.storage import user_name

if TYPE_CHECKING:
    from collections.abc import Iterator

OUTBOX = "outbox.db"


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that an ordinary user may enter and look into, and no more."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


# --- making it ------------------------------------------------------------------------------


def test_prepare(tmp_path: Path) -> None:
    """The directory is made with all above it, for us alone; a second time changes nothing."""
    path = tmp_path / "var" / "state"
    prepare(path)
    (path / "kept").touch()
    prepare(path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / "kept").exists()


def test_prepare_over_a_file(tmp_path: Path) -> None:
    """Where a file is in the way the error says so."""
    path = tmp_path / "state"
    path.touch()
    with pytest.raises(StateDirError, match=re.escape(f"{path} cannot be made (File exists)")):
        prepare(path)


def test_prepare_where_we_may_not(open_to_all: Path) -> None:
    """What may not be made, and what may not be written, is reported with the user who may not."""
    folder = open_to_all / "theirs"
    folder.mkdir(mode=0o755)
    folder.chmod(0o555)
    with without_privilege():
        with pytest.raises(StateDirError) as made:
            prepare(folder / "state")
        with pytest.raises(StateDirError) as written:
            prepare(folder)
    assert str(made.value) == f"{folder}/state cannot be made (Permission denied)"
    assert str(written.value) == f"{folder} cannot be written by user {user_name(ORDINARY)}"


# --- the lock -------------------------------------------------------------------------------


def test_lock(tmp_path: Path) -> None:
    """While the block lasts the directory is in use, and not longer, whatever ends it."""
    assert not is_alive(tmp_path)
    with lock(tmp_path):
        assert is_alive(tmp_path)
    assert not is_alive(tmp_path)
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    assert not is_alive(tmp_path)
    assert (tmp_path / "sidecar.lock").stat().st_mode & 0o777 == 0o600


HOLDER = """
import sys
from pathlib import Path
from paliadin_sidecar.host.state_directory import lock
from paliadin_sidecar.host.storage import user_name
with lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_another_daemon(tmp_path: Path) -> None:
    """A second daemon is refused, until the first one is gone, however it went."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        assert is_alive(tmp_path)
        with pytest.raises(Locked), lock(tmp_path):
            pytest.fail("two of them")
        assert is_alive(tmp_path)
        holder.send_signal(signal.SIGKILL)
    assert not is_alive(tmp_path)
    with lock(tmp_path):
        assert is_alive(tmp_path)


def test_a_command_that_asks(tmp_path: Path) -> None:
    """A command that looks whether the daemon lives does not keep it from starting."""
    (tmp_path / "sidecar.lock").touch(mode=0o600)
    with (tmp_path / "sidecar.lock").open() as command:
        fcntl.flock(command, fcntl.LOCK_SH)
        letting_go = threading.Timer(0.1, fcntl.flock, (command, fcntl.LOCK_UN))
        letting_go.start()
        with lock(tmp_path):
            assert is_alive(tmp_path)
        letting_go.join()


def test_a_lock_that_is_a_link(tmp_path: Path) -> None:
    """A link in the lock's place is not followed, and nothing is made where it leads."""
    (tmp_path / "sidecar.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateDirError, match="cannot be made"), lock(tmp_path):
        pytest.fail("followed")
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_that_may_not_be_seen(open_to_all: Path) -> None:
    """Who may not look at the lock learns that, and not that nobody is there."""
    state = open_to_all / "state"
    prepare(state)
    state.chmod(0o000)
    with without_privilege():
        with pytest.raises(PermissionError):
            is_alive(state)
        with pytest.raises(StateDirError, match="Permission denied"), lock(state):
            pytest.fail("locked")
    state.chmod(0o700)


# --- was there an outbox? -------------------------------------------------------------------


def held_one(path: Path) -> bool:
    with lock(path) as found:
        return found


def test_no_outbox_yet(tmp_path: Path) -> None:
    """A directory that never held an outbox has lost none, however often it is started."""
    assert not held_one(tmp_path)
    assert not held_one(tmp_path)


def test_an_outbox_was_made(tmp_path: Path) -> None:
    """That is remembered once and for all, whatever becomes of it."""
    with lock(tmp_path):
        remember_outbox(tmp_path)
        before = (tmp_path / "sidecar.lock").read_bytes()
        remember_outbox(tmp_path)
    assert (tmp_path / "sidecar.lock").read_bytes() == before
    assert held_one(tmp_path)
    (tmp_path / OUTBOX).write_bytes(b"x")
    assert held_one(tmp_path)


# --- moving one aside -----------------------------------------------------------------------


def test_nothing_to_move(tmp_path: Path) -> None:
    """Without an outbox there is nothing to move aside."""
    (tmp_path / "sidecar.lock").touch()
    assert quarantine(tmp_path, OUTBOX) is None
    assert [path.name for path in tmp_path.iterdir()] == ["sidecar.lock"]


def test_quarantine(tmp_path: Path) -> None:
    """An outbox goes aside with all that belongs to it: what it had committed is still in it."""
    live, crashed = tmp_path / "live", tmp_path / "crashed"
    live.mkdir()
    with closing(sqlite3.connect(live / OUTBOX)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE kept (text)")
        database.execute("INSERT INTO kept VALUES ('in the log')")
        database.commit()
        shutil.copytree(live, crashed)  # as a crash leaves it: the row is in the -wal alone
    assert {path.name for path in crashed.iterdir()} == {OUTBOX, f"{OUTBOX}-wal", f"{OUTBOX}-shm"}
    aside = quarantine(crashed, OUTBOX)
    assert aside is not None
    assert aside.parent == crashed
    assert all(path.name.startswith(f"{OUTBOX}.aside-20") for path in crashed.iterdir())
    with closing(sqlite3.connect(aside)) as database:
        assert database.execute("SELECT text FROM kept").fetchall() == [("in the log",)]


def test_two_in_a_row(tmp_path: Path) -> None:
    """However fast one follows the other, each outbox that went aside is kept."""
    found = []
    for n in range(5):
        (tmp_path / OUTBOX).write_text(f"outbox {n}")
        found.append(quarantine(tmp_path, OUTBOX))
    assert [path.read_text() for path in found if path] == [f"outbox {n}" for n in range(5)]
    assert len(list(tmp_path.iterdir())) == 5


def test_the_journal_s_key(tmp_path: Path) -> None:
    """Made once, for us alone; half of one is replaced, and without room there is one anyway."""
    assert len(journal_key(tmp_path)) == 32
    assert not list(tmp_path.iterdir())
    key = journal_key(tmp_path, create=True)
    (file,) = tmp_path.iterdir()
    assert journal_key(tmp_path) == journal_key(tmp_path, create=True) == key == file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"half")
    assert journal_key(tmp_path, create=True) == file.read_bytes() != key
    file.unlink()
    file.mkdir()
    assert len(journal_key(tmp_path, create=True)) == 32
