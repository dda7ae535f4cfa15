"""Whether the database's file and its log are still those that were opened."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from paliadin_sidecar.errors import Damaged, Replaced
from paliadin_sidecar.outbox.sqlite_errors import unreachable


class DatabaseFiles:
    """The files of an open database: SQLite goes on with them when they are not in place any more.

    Args:
        path: the database's file.
        connection: the connection that opened it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._file, self._log = str(path), f"{path}-wal"
        self._connection = connection
        self._file_identity = _identity(stat_of(self._file))
        self._log_identity: tuple[int, int] | None = None
        self._log_is_empty = False  #: a checkpoint emptied it, and proved that nothing is missing

    def check(self) -> None:
        """See that the files are still those that were opened. Not within a transaction.

        Raises:
            Damaged: one was unlinked, replaced or truncated: commits would go to an unlinked file.
        """
        file = stat_of(self._file)
        if file is None or _identity(file) != self._file_identity or file.st_size == 0:
            raise self._replaced()
        self.check_log()

    def expect_in_place(self) -> None:
        """See that the file that was opened is the one in its place; for who reads for long.

        Raises:
            Replaced: it was moved aside.
        """
        if _identity(stat_of(self._file)) != self._file_identity:
            raise Replaced(self._path)

    def check_log(self) -> None:
        """See that the log is still the one that was opened, and that nothing of it is missing.

        Raises:
            Damaged: it is not, or something is.
        """
        # A checkpoint of another process may have emptied the log, and then all of it is in the
        # database. Another checkpoint proves that: it fails where something is missing.
        log = stat_of(self._log)
        self._log_identity = self._log_identity or _identity(log)  # the first commit creates it
        if self._log_identity != _identity(log):
            raise self._replaced()
        if log is None or log.st_size > 0:
            self._log_is_empty = False
        elif not self._log_is_empty:  # only once, since each checkpoint writes to the file
            try:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as exc:
                if getattr(exc, "sqlite_errorname", "") == "SQLITE_IOERR_SHORT_READ":
                    raise self._replaced() from None
            else:
                self._log_is_empty = True

    def _replaced(self) -> Damaged:
        return Damaged(self._path, "was removed, replaced or truncated while it was in use")

    def flush_log(self) -> None:
        """Flush the log as it is by now, whoever wrote it.

        Raises:
            DiskFails: it cannot be.
        """
        try:
            with Path(self._log).open("rb") as log:
                os.fsync(log.fileno())
        except FileNotFoundError:
            return
        except OSError as exc:
            raise unreachable(exc, self._path) from None


def stat_of(path: str) -> os.stat_result | None:
    """What `stat` says; None where it is not there. A disk that does not say is no proof of that.

    Raises:
        PermissionError: somebody closed a directory above it.
        OutboxError: the disk would not answer.
    """
    try:
        return os.stat(path)  # noqa: PTH116 - a Path costs as much again, four times a turn
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise
    except OSError as exc:
        raise unreachable(exc, Path(path)) from None


def _identity(info: os.stat_result | None) -> tuple[int, int] | None:
    return None if info is None else (info.st_dev, info.st_ino)
