from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.users import ORDINARY, without_privilege

import paliadin_sidecar.outbox.database
from paliadin_sidecar.errors import (
    Busy,
    Damaged,
    DiskFails,
    OutboxError,
    Unwritable,
)
from paliadin_sidecar.host.storage import user_name
from paliadin_sidecar.outbox import event_rows, sqlite_errors
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.sqlite_errors import translated

if TYPE_CHECKING:
    from collections.abc import Iterator

from support.outbox_box import Box


@pytest.fixture
def theirs() -> Iterator[Path]:
    """An outbox in a directory that an ordinary user may only look at."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / FILENAME
        Outbox(path, create=True).close()
        path.chmod(0o444)
        path.parent.chmod(0o555)
        yield path
        path.parent.chmod(0o755)


def test_unwritable(theirs: Path) -> None:
    """Without the right to write, the error names the user who lacks it."""
    with without_privilege():
        for path, create in ((theirs, False), (theirs.with_name("other.db"), True)):
            with pytest.raises(Unwritable) as caught:
                Outbox(path, create=create)
            assert str(caught.value).startswith(
                f"{path}: cannot be written by user {user_name(ORDINARY)} ("
            )


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    """A directory where the database should be is an error of the outbox, like any other."""
    with pytest.raises(Unwritable):
        Outbox(tmp_path, create=True)


@pytest.mark.parametrize(
    ("looks", "kind"), [([True, True, True], Damaged), ([True, True, False], DiskFails)]
)
def test_damage_is_seen_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: list[bool], kind: type[OutboxError]
) -> None:
    """A disk that fails now and then damages nothing, and must not have the outbox moved aside."""
    monkeypatch.setattr(sqlite_errors, "_looks_damaged", lambda _: looks.pop(0))
    error = sqlite3.DatabaseError()
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
    assert type(translated(error, tmp_path / FILENAME)) is kind


def test_a_page_that_is_not_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite lists it with what is wrong."""
    monkeypatch.setattr(sqlite_errors, "_looks_damaged", lambda _: False)
    Outbox(tmp_path / FILENAME, create=True).close()
    with closing(sqlite3.connect(tmp_path / FILENAME)) as db, db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET rootpage = 3 WHERE name = 'turn_by_submitted'")
    with Outbox(tmp_path / FILENAME) as outbox, pytest.raises(DiskFails, match="was not read"):
        outbox.check_pages(60)


def holder(path: Path) -> sqlite3.Connection:
    """Another one who writes, until it is closed."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a lock."""
    monkeypatch.setattr(paliadin_sidecar.outbox.database, "_BUSY_TIMEOUT_S", 0.0)


@pytest.mark.usefixtures("impatient")
def test_busy_database(tmp_path: Path) -> None:
    """A lock that another process holds is no damage: it can be tried again."""
    box = Box(tmp_path / FILENAME, create=True)
    with closing(holder(box.path)):
        with pytest.raises(Busy) as caught:
            box(event_rows.record_service_event, "service.started", {})
        assert str(caught.value) == f"{box.path}: another process holds its lock (SQLITE_BUSY)"
    box(event_rows.record_service_event, "service.started", {})
    assert len(box.events()) == 1
    box.outbox.close()


def test_other_errors(box: Box) -> None:
    """An error without a name of its own is one of the outbox all the same."""
    with pytest.raises(OutboxError) as caught:
        box(lambda outbox: outbox.connection.execute("SELECT no_such_column"))
    assert type(caught.value) is OutboxError
    assert str(caught.value) == f"{box.path}: cannot be used (SQLITE_ERROR)"


class Corrupt(sqlite3.DatabaseError):
    """What SQLite says of a page that is wrong, and of one that the system failed to read."""

    sqlite_errorcode, sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"


def test_a_page_that_could_not_be_read(tmp_path: Path) -> None:
    """Only an outbox in which a page is wrong is damaged, and is to be moved aside."""
    path = tmp_path / FILENAME
    with Outbox(path, create=True):
        assert isinstance(translated(Corrupt(), path), DiskFails)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"x" * 8192)
    assert isinstance(translated(Corrupt(), path), Damaged)
