"""A SQLite database as a file: made for its user alone, opened, and what its errors mean.

Several processes share it, and somebody may remove it while it is in use.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from paliadin_client.errors import StoreFailed

#: How long, in seconds, another process may hold the database.
_BUSY_S = 5.0
_RETRY_S = 0.02
_PRIVATE = 0o600
#: What a large push leaves of the write-ahead log, in bytes.
_WAL_BYTES = 8 * 1024 * 1024

_LOCAL_DISK = "SQLite needs a local disk, and no NFS or the like"
_ADVICE = {
    sqlite3.SQLITE_FULL: "its disk is full: make room",
    sqlite3.SQLITE_READONLY: "let the app's user write it and in its directory",
    sqlite3.SQLITE_CANTOPEN: "let the app's user write it and in its directory",
    sqlite3.SQLITE_BUSY: f"another program has held it for {_BUSY_S:.0f} s",
    sqlite3.SQLITE_IOERR: f"look at its disk; {_LOCAL_DISK}",
    sqlite3.SQLITE_PROTOCOL: _LOCAL_DISK,
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection, the file that it is to, and whether that had to be made."""

    db: sqlite3.Connection
    file: os.stat_result
    is_new: bool


class DatabaseFile:
    """The database as a file.

    Args:
        path: where it is, or is made.
        schema: what makes its tables where there are none; the layout's number goes with it.
        layout: counts the layouts; a database of a higher one is refused.
    """

    def __init__(self, path: Path, schema: str, layout: int) -> None:
        self.path = path
        self._schema, self._layout = schema, layout

    def open(self) -> Opened:
        """Open it, and make it where there is none."""
        with self._alone() as directory:
            is_new = not self._is_there()
            if is_new:
                self._make(directory)
            self._keep_private()
            db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
            return Opened(db, self.path.stat(), is_new)

    def is_current(self, opened: Opened) -> bool:
        """Whether the path still names the file that was opened."""
        try:
            found = self.path.stat()
        except OSError:
            return False
        # The first page is in the file from the beginning, so an empty one was emptied.
        return os.path.samestat(found, opened.file) and found.st_size > 0

    def remove_emptied(self) -> None:
        """Remove what was emptied: a connection that is closed would write some pages into it."""
        with self._alone():
            if not self._is_there():
                self.path.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[int]:
        # Who makes it anew removes files by their names, and nobody may have opened them just now.
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield directory
        finally:
            os.close(directory)

    def _is_there(self) -> bool:
        try:
            return self.path.stat().st_size > 0
        except FileNotFoundError:
            return False

    def _make(self, directory: int) -> None:
        # What is left of one that was removed would be taken for this one's.
        for name in (self.path.name, f"{self.path.name}-wal", f"{self.path.name}-shm"):
            self.path.with_name(name).unlink(missing_ok=True)
        # SQLite would create it by the umask. Its other files get the mode of the database.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE))
        os.fsync(directory)

    def _keep_private(self) -> None:
        # By its name: SQLite's own locks would end with any open file that is closed here.
        found = self.path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != _PRIVATE:
            self.path.chmod(_PRIVATE)

    def _prepare(self, db: sqlite3.Connection) -> None:
        (layout,) = db.execute("PRAGMA user_version").fetchone()
        if layout > self._layout:
            raise sqlite3.DatabaseError(
                f"a later version of this package has made it (layout {layout}, this one knows "
                f"{self._layout}); install that version, or name another file"
            )
        mode = _until_free(lambda: db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        if mode != "wal":
            raise sqlite3.OperationalError(f"it cannot have a write-ahead log; {_LOCAL_DISK}")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        if layout < self._layout:
            db.executescript(
                f"BEGIN IMMEDIATE; {self._schema}; PRAGMA user_version = {self._layout}; COMMIT"
            )
        # One that begins finds in the log also a commit whose flush failed, and what is found there
        # is acknowledged.
        log = self.path.with_name(f"{self.path.name}-wal")
        with suppress(FileNotFoundError), log.open("rb") as opened:
            os.fsync(opened.fileno())


def failure(path: Path, exc: OSError | sqlite3.Error) -> StoreFailed:
    """The error that names the database, the reason, and what to do about it."""
    if isinstance(exc, OSError):
        reason, advice = exc.strerror or str(exc), ""
        if exc.errno in _NO_LOCKS:
            advice = _LOCAL_DISK
    else:
        reason = str(exc)
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        advice = _ADVICE.get(code, "")
        if code in _DAMAGED:
            names = f"{path.name}, {path.name}-wal and {path.name}-shm"
            advice = f"stop the app, move {names} away, and start it: a new one is made"
    text = f"the inbox's database {path}: {reason}"
    return StoreFailed(f"{text}; {advice}", remedy="") if advice else StoreFailed(text)


def _until_free(ask: Callable[[], str]) -> str:
    # SQLite does not wait for a change of the mode itself.
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            return ask()
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)
