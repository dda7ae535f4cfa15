"""What the system refuses a file of the outbox, each in its own words and with its own end."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
from support.users import root_only

from paliadin_sidecar.errors import (
    Blocked,
    Damaged,
    DiskFails,
    Full,
    OutboxError,
    Unavailable,
    Unwritable,
)
from paliadin_sidecar.host import storage
from paliadin_sidecar.host.storage import explain, write_error
from paliadin_sidecar.outbox import event_rows, queries
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.sqlite_errors import translated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_directory_to_write_in(tmp_path: Path) -> None:
    """Where all is well there is no error, and nothing is left of the question."""
    assert write_error(tmp_path, 10_000_000) is None
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_the_file_size(tmp_path: Path) -> None:
    """It is met where the file would grow, and not before."""
    with files_up_to(200_000):
        assert write_error(tmp_path, 0) is None
        refused = write_error(tmp_path, 190_000)
    assert refused is not None
    assert refused.errno == errno.EFBIG
    assert "LimitFSIZE=" in explain(refused, tmp_path)


@root_only
def test_inodes(tmp_path: Path) -> None:
    """A disk with room and without inodes is called so."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=2", "none", str(disk)]
    subprocess.run(mount, check=True)
    try:
        (disk / "last").touch()
        refused = write_error(disk)
        assert refused is not None
        assert explain(refused, disk / "not" / "made") == "its disk has no inodes left"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_outbox_that_may_not_grow(tmp_path: Path) -> None:
    """The limit of a file's size is lack of room: nothing is half done, and it goes on."""
    with Outbox(tmp_path / FILENAME, create=True) as outbox:

        def grow() -> None:
            event_rows.record_service_event(outbox, "x", {"x": "x" * 300_000})

        with files_up_to(200_000), pytest.raises(Full, match="LimitFSIZE="):
            outbox.transaction([grow])
        outbox.transaction([grow])
        assert [event.id for event in event_rows.events(outbox, 0)] == [1]


class Refused(sqlite3.OperationalError):
    """As SQLite reports it."""

    def __init__(self, name: str) -> None:
        super().__init__("disk I/O error")
        self.sqlite_errorname = name
        self.sqlite_errorcode = getattr(sqlite3, name)


@pytest.mark.parametrize(
    ("name", "refused", "error"),
    [
        ("SQLITE_IOERR_WRITE", errno.EDQUOT, Full),
        ("SQLITE_IOERR_WRITE", errno.EFBIG, Full),
        ("SQLITE_IOERR_FSYNC", errno.EDQUOT, Full),
        ("SQLITE_IOERR_WRITE", errno.EROFS, Unavailable),
        ("SQLITE_IOERR_WRITE", errno.EIO, DiskFails),
        ("SQLITE_IOERR_WRITE", None, Unavailable),
        ("SQLITE_IOERR_READ", None, DiskFails),
        ("SQLITE_IOERR_FSYNC", None, DiskFails),
        ("SQLITE_IOERR_CORRUPTFS", None, DiskFails),
        ("SQLITE_IOERR_SHORT_READ", None, Damaged),
        ("SQLITE_IOERR_SHMMAP", errno.ENOMEM, Unavailable),
        ("SQLITE_IOERR_SHMMAP", None, Unavailable),
        ("SQLITE_IOERR_SHMSIZE", None, Full),
        ("SQLITE_IOERR_LOCK", None, Unavailable),
        ("SQLITE_CANTOPEN", errno.ENOSPC, Full),
        ("SQLITE_CANTOPEN", errno.EDQUOT, Full),
        ("SQLITE_CANTOPEN", errno.EMFILE, Unavailable),
        ("SQLITE_CANTOPEN", errno.EACCES, Unwritable),
        ("SQLITE_CANTOPEN", None, Unavailable),
        ("SQLITE_READONLY", None, Unwritable),
        ("SQLITE_READONLY_DBMOVED", None, Damaged),
        ("SQLITE_CORRUPT", errno.ENOSPC, DiskFails),
        ("SQLITE_NOTADB", None, Damaged),
    ],
)
def test_what_sqlite_reports(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    refused: int | None,
    error: type[OutboxError],
) -> None:
    """What the system says decides; damage is only what is proven, and room is waited for."""

    def answer(_: Path, __: int) -> OSError | None:
        return None if refused is None else OSError(refused, os.strerror(refused))

    monkeypatch.setattr(storage, "write_error", answer)
    with Outbox(tmp_path / FILENAME, create=True) as outbox:
        found = translated(Refused(name), outbox.path)
    assert type(found) is error
    assert ("Move it aside" in found.remedy) == (error is Damaged)
    assert str(tmp_path / FILENAME) in str(found)


def test_a_shm_in_whose_place_something_lies(tmp_path: Path) -> None:
    """The file that is in the way is named, and nothing is called damage."""
    Outbox(tmp_path / FILENAME, create=True).close()
    (tmp_path / f"{FILENAME}-shm").mkdir()
    with pytest.raises(Unwritable) as caught, Outbox(tmp_path / FILENAME) as outbox:
        outbox.transaction([partial(queries.counts, outbox)])
    assert caught.value.path == tmp_path / f"{FILENAME}-shm"


FEW_DESCRIPTORS = """
import os, resource, sys
from pathlib import Path
from paliadin_sidecar.errors import Unavailable
from paliadin_sidecar.outbox.database import Outbox
last = os.open("/dev/null", os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, last + 1))
try:
    Outbox(Path(sys.argv[1]))
except Unavailable as exc:
    print(exc)
"""


def test_without_descriptors(tmp_path: Path) -> None:
    """It is said which limit was met; the outbox is whole and its configuration right."""
    Outbox(tmp_path / FILENAME, create=True).close()
    code = [sys.executable, "-c", FEW_DESCRIPTORS, str(tmp_path / FILENAME)]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert "LimitNOFILE=" in done.stdout


def test_all_that_is_waited_for_is_blocked() -> None:
    """A group commit waits for these, and ends with the others."""
    assert issubclass(Full, Blocked)
    assert issubclass(Unavailable, Blocked)
    assert not issubclass(DiskFails, Blocked)
    assert not issubclass(Damaged, Blocked)
