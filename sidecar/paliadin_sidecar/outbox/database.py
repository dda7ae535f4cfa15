"""The outbox's database: its connection, its transactions, and whether its files are still ours."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from paliadin_sidecar.errors import Damaged, Newer, Older, OutboxError
from paliadin_sidecar.failpoints import failpoint
from paliadin_sidecar.outbox.records import ANY_TIME, to_ms
from paliadin_sidecar.outbox.sqlite_errors import size, translated
from paliadin_sidecar.outbox.statements import MIGRATIONS, Row, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["FILENAME", "LATE_S", "Database"]

FILENAME = "outbox.db"
#: A change of an answer that comes later than this is an edit for the record, not for the
#: person, who has long read the answer.
LATE_S = 600.0
#: A log that grew beyond this is cut back.
_MAX_LOG_BYTES = 16 * 1024 * 1024
#: Less is not worth while, and more than a clock that is made to run faster or slower moves.
_STEP_S = 1.0
#: Another process that writes is a command, done in no time.
_BUSY_TIMEOUT_S = 1.0

T = TypeVar("T")


class Database:
    """One connection to the outbox's database.

    Args:
        path: the database's file.
        host: this host's name, for the callback's bodies.
        wall: the clock, in epoch seconds.
        steady: a clock that nobody sets, in seconds: where the other one is set, stored times
            follow. None: that is not looked for.
        create: make the database where there is none, and migrate one of an earlier version;
            without it a missing file is `FileNotFoundError`.
        successor: one that is made now follows one that was lost: nothing becomes history.
        max_bytes: what it may take; see `accept`. None: as much as there is.

    Raises:
        OutboxError: it cannot be used.
    """

    migrations: ClassVar = MIGRATIONS

    def __init__(
        self,
        path: Path,
        *,
        host: str = "",
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] | None = None,
        create: bool = False,
        successor: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.last_event = 0  #: id of the last event that was written here
        self.host = host
        self.wall = wall
        self._steady = steady
        self._offset_s = self._clock_offset_s()
        self.set_forward_ms = 0
        self._transaction_at: int | None = None  # one reading for all of its times
        self.last_attempt_at = ANY_TIME  # not earlier than that of any delivery
        if not create and not path.exists():
            raise FileNotFoundError(path)
        mode = "rwc" if create else "rw"
        try:
            self.connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                isolation_level=None,
                timeout=_BUSY_TIMEOUT_S,
                check_same_thread=False,
            )
            try:
                self.connection.row_factory = _row
                self._set_up(create=create, successor=successor)
            except BaseException:
                self.connection.close()
                raise
        except sqlite3.Error as exc:
            raise self.translated(exc) from None
        self._log_path = path.with_name(f"{path.name}-wal")
        self._identity = _identity(path)
        self._log_identity: tuple[int, int] | None = None
        self._log_is_empty = False  #: and rightly so

    def _set_up(self, *, create: bool, successor: bool) -> None:
        version, ours = self.pragma("user_version"), 1 + len(self.migrations)
        if version > ours:
            raise Newer(self.path, f"is of version {version}, this program knows {ours}")
        if version == 0 and not create:
            if self.connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None:
                raise FileNotFoundError(self.path)  # its making was cut short: it holds nothing
            raise Damaged(self.path, "is no outbox")
        if version < ours and not create:
            raise Older(self.path, f"is of version {version}, this program's is {ours}")
        if version == 0:
            # Before the first page is written: later only a VACUUM could change it.
            self.connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # WAL with FULL survives the loss of power, not just of the process.
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("PRAGMA foreign_keys = ON")
        # A hardened service can write no directory for temporary files.
        self.connection.execute("PRAGMA temp_store = MEMORY")
        self.connection.execute(f"PRAGMA journal_size_limit = {_MAX_LOG_BYTES}")
        if version == 0:
            # The schema, its number and the one row of the service go together.
            self._begin_with(sql.schema.sql, ours)
            sql.create_service(self.connection, successor=int(successor))
            self.connection.execute("COMMIT")
            return
        for number in range(version, ours):
            self._begin_with(self.migrations[number - 1], number + 1)
            self.connection.execute("COMMIT")

    def _begin_with(self, script: str, version: int) -> None:
        self.connection.executescript(f"BEGIN IMMEDIATE;{script}PRAGMA user_version = {version};")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self.connection.close()

    # --- transactions ---------------------------------------------------------------------

    def transaction(self, steps: Iterable[Callable[[], T]]) -> list[T]:
        """Run these in one transaction and return what they returned, once it is durable.

        Raises:
            OutboxError: none of them took effect.
        """
        last_event = self.last_event
        self.check_identity()  # before a commit makes an emptied log look like a whole one
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                offset_s = self._follow_clock()
                self._transaction_at = self.now()
                results = [step() for step in steps]
                failpoint("before a commit")
                self.connection.execute("COMMIT")
                failpoint("after a commit")
            except BaseException:
                self.last_event = last_event  # the next one will get the number again
                self.last_attempt_at = ANY_TIME  # a clamp is undone as well
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
            finally:
                self._transaction_at = None
        except sqlite3.Error as exc:
            raise self.translated(exc) from None
        if offset_s != self._offset_s:
            self.set_forward_ms += max(0, to_ms(offset_s - self._offset_s))
            self._offset_s = offset_s
            self.last_attempt_at = ANY_TIME
        self.check_identity()
        return results

    def _follow_clock(self) -> float:
        # Dates stay dates of the clock, and what is measured from them stays as long as it is.
        # Returns the offset that is heeded once this is committed.
        offset_s = self._clock_offset_s()
        step_s = offset_s - self._offset_s
        if abs(step_s) < _STEP_S:
            return self._offset_s
        step = to_ms(step_s)
        sql.shift_deliveries(self.connection, step=step)
        # Older ones are late, whatever the new date is.
        since = self.now() - step - abs(step) - to_ms(LATE_S)
        sql.shift_turns(self.connection, step=step, since=since)
        return offset_s

    def _clock_offset_s(self) -> float:
        while self._steady is not None:
            before_s = self._steady()
            wall_s = self.wall()
            if self._steady() - before_s < _STEP_S / 10:  # else we were held between the two
                return wall_s - before_s
        return 0.0

    def check_identity(self) -> None:
        """See that the files are still those that were opened. Not within a transaction.

        Raises:
            Damaged: one was unlinked, replaced or truncated: commits would go to an unlinked file.
        """
        log = _identity(self._log_path)
        self._log_identity = self._log_identity or log  # it is made by the first commit
        same = (_identity(self.path), log) == (self._identity, self._log_identity)
        if not same or size(self.path) == 0 or not self._log_is_whole():
            raise Damaged(self.path, "was removed, replaced or truncated while it was in use")

    def _log_is_whole(self) -> bool:
        # A checkpoint of another process may have emptied it, and then all of it is in the
        # database. Checkpointing again proves that: it fails where something is missing.
        if self._log_identity is None or size(self._log_path) > 0:
            self._log_is_empty = False
        elif not self._log_is_empty:  # once: each checkpoint touches the file
            try:
                self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as exc:
                return getattr(exc, "sqlite_errorname", "") != "SQLITE_IOERR_SHORT_READ"
            self._log_is_empty = True
        return True

    def changed_elsewhere(self) -> int:
        """A number that moves when another process writes."""
        return self.pragma("data_version")

    def check_pages(self, within_s: float) -> bool:
        """Read every page; False where that took longer than so many seconds.

        Raises:
            OutboxError: one is damaged, or cannot be read.
        """
        end = time.monotonic() + within_s
        try:
            self.connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
            row = self.connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as exc:
            if exc.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                return False
            raise self.translated(exc) from None
        finally:
            self.connection.set_progress_handler(None, 0)
        if row["quick_check"] != "ok":
            raise Damaged(self.path, "is damaged (found by quick_check)")
        return True

    def pragma(self, name: str) -> int:
        """What a PRAGMA says that is a number."""
        row: dict[str, int] = self.connection.execute(f"PRAGMA {name}").fetchone()
        return row[name]

    def translated(self, exc: sqlite3.Error) -> OutboxError:
        """The same error in the words of this package; reads outside `transaction` need it."""
        return translated(exc, self.path)

    def used_bytes(self) -> int:
        """What it takes, without pages that are free to be used again."""
        pages = self.pragma("page_count") - self.pragma("freelist_count")
        return pages * self.pragma("page_size")

    def now(self) -> int:
        """The time of the transaction, in milliseconds."""
        # A clock that is set within a transaction must not part an attempt from its delay.
        return to_ms(self.wall()) if self._transaction_at is None else self._transaction_at


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return (info.st_dev, info.st_ino)


def _row(cursor: sqlite3.Cursor, values: tuple[Any, ...]) -> Row:
    return {column[0]: value for column, value in zip(cursor.description, values, strict=True)}
