"""The errors of SQLite in the words of `OutboxError`."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from paliadin_sidecar import errors
from paliadin_sidecar.host import storage

#: Not the system's refusal but a file that is shorter than it was, or another one.
_PROVES_DAMAGE = {"SQLITE_IOERR_SHORT_READ", "SQLITE_READONLY_DBMOVED"}
_OF_THE_SYSTEM = {
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM,
}  # fmt: skip
_OF_RIGHTS = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
_STEP_BYTES = 1024 * 1024
_LOOKS = 3
#: What no limit and no lack of room explains.
_OF_THE_DISK = {
    "SQLITE_IOERR_READ", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC", "SQLITE_IOERR_CORRUPTFS",
    "SQLITE_IOERR_DATA",
}  # fmt: skip


def translated(exc: sqlite3.Error, path: Path) -> errors.OutboxError:
    """The same error in the words of `OutboxError`; reads outside a transaction need it."""
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    name = getattr(exc, "sqlite_errorname", type(exc).__name__)
    if code == sqlite3.SQLITE_FULL:
        return errors.Full(path, "there is no room on its disk")
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}:
        return errors.Busy(path, f"another process holds its lock ({name})")
    if code == sqlite3.SQLITE_CORRUPT and not is_damaged(path):
        return errors.DiskFails(path, f"its disk fails ({name}, and no page is wrong)")
    if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT} or name in _PROVES_DAMAGE:
        return errors.Damaged(path, f"is damaged, or its disk is ({name})")
    if code in _OF_THE_SYSTEM:
        return _of_the_system(path, code, name)
    return errors.OutboxError(path, f"cannot be used ({name})")


def unreachable(exc: OSError, path: Path) -> errors.DiskFails:
    """The system cannot say whether the database's file is there: the disk or its mount fails."""
    return errors.DiskFails(path, f"its disk fails ({exc.strerror})")


def _of_the_system(path: Path, code: int, name: str) -> errors.OutboxError:
    # SQLite says that the system refused something, and not why: the system is asked.
    folder = path.parent
    refused = storage.write_error(folder, max(map(_size, _files(path))))
    number = None if refused is None else refused.errno
    if refused is not None and number in storage.NO_ROOM:
        return errors.Full(path, storage.explain(refused, folder))
    if refused is not None and number in storage.PASSES - {errno.EIO}:
        return errors.Unavailable(path, storage.explain(refused, folder))
    if name == "SQLITE_IOERR_SHMSIZE":
        return errors.Full(path, "there is no room on its disk")
    if number == errno.EIO or (number is None and name in _OF_THE_DISK):
        return errors.DiskFails(path, f"its disk fails ({name})")
    file = next(filter(_is_refused, _files(path)), None)
    if number is None and file is None and code not in _OF_RIGHTS:
        return errors.Unavailable(path, f"the system refused it, and says not why ({name})")
    user = storage.user_name(os.geteuid())
    return errors.Unwritable(file or path, f"cannot be written by user {user} ({name})")


def is_damaged(path: Path) -> bool:
    """Whether a page of a database is wrong, which it is each time, and not only not read now."""
    return all(_looks_damaged(path) for _ in range(_LOOKS))


def _looks_damaged(path: Path) -> bool:
    # SQLite says the same of a page that the system failed to read (EIO) as of one that is wrong.
    try:
        for file in _files(path)[:2]:
            with suppress(FileNotFoundError), file.open("rb") as there:
                while there.read(_STEP_BYTES):
                    pass
    except OSError:
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as opened:
            found: str = opened.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error:
        return True
    return found != "ok"


def _files(path: Path) -> list[Path]:
    return [path.with_name(f"{path.name}{part}") for part in ("", "-wal", "-shm")]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_refused(path: Path) -> bool:
    # It is there, and no file that this process may write.
    return path.exists() and not (path.is_file() and os.access(path, os.R_OK | os.W_OK))
