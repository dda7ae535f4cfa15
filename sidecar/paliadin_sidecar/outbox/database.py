"""The outbox: its database, the statements, and transactions."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self, TypeVar, cast

from paliadin_sidecar.errors import (
    Damaged,
    DiskFails,
    Newer,
    Older,
    Unwritable,
)
from paliadin_sidecar.failpoints import failpoint
from paliadin_sidecar.outbox.database_files import DatabaseFiles, stat_of
from paliadin_sidecar.outbox.records import NOT_KNOWN, Retention, to_ms
from paliadin_sidecar.outbox.sqlite_errors import is_damaged, translated

FILENAME = "outbox.db"
#: A change of an answer that comes later than this is an edit for the record, not for the
#: person, who has long read the answer.
LATE_S = 600.0
#: SQLite truncates a write-ahead log that grew beyond this.
_MAX_LOG_BYTES = 16 * 1024 * 1024
#: The clock was set where it moved by more than this against a clock that nobody sets. A clock that
#: is only made to run faster or slower moves less between two transactions.
_STEP_S = 1.0
#: How long another process may hold the lock: only commands write, and each takes milliseconds.
_BUSY_TIMEOUT_S = 1.0

#: The steps that lead from each version of the schema to the next one, the first from version 1;
#: each runs in one transaction with its number. A change of the schema changes `schema` and adds
#: its step here.
MIGRATIONS: tuple[str, ...] = ()

_parts = re.split(
    r"^-- name: (\w+)\n",
    Path(__file__).with_name("outbox.sql").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)
#: Each statement's text, as an attribute.
sql = SimpleNamespace(**dict(zip(_parts[1::2], _parts[2::2], strict=True)))

_NOTHING: Mapping[str, Any] = {}

T = TypeVar("T")


class Outbox:
    """What was accepted, until it is acknowledged: one connection to its database.

    What can be done with it are functions in the modules of their jobs, which take it first. One
    that writes is called within `transaction`, which makes it durable. Nothing else is kept in
    memory.

    Args:
        path: the database's file.
        host: this host's name, for the callback's bodies.
        wall: the clock, in epoch seconds.
        steady: a clock that nobody sets, in seconds: where the other one is set, stored times
            follow. None: that is not looked for.
        create: make the database where there is none, and migrate one of an earlier version;
            without it a missing file is `FileNotFoundError`.
        read_only: for who only looks: nothing can be written by it.
        successor: one that is made now follows one that was lost: nothing becomes history.
        max_bytes: what it may take; see `accept`. None: as much as there is.
        retention: how long it keeps what is settled.

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
        read_only: bool = False,
        successor: bool = False,
        max_bytes: int | None = None,
        retention: Retention = Retention(),  # noqa: B008 - frozen
    ) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.retention = retention
        self.last_event = 0  #: id of the last event that was written here
        self.host = host
        self.wall = wall
        self._steady = steady
        self._offset_s = self._read_clock()[1]
        self.set_forward_ms = 0
        self._transaction_at: int | None = None  # one reading for all of its times
        self.began_at: float | None = None  #: when the transaction began that is under way
        self._data_version = 0
        self.retries_from = NOT_KNOWN  #: no delivery that was tried before is due earlier
        if not create and stat_of(str(path)) is None:
            raise FileNotFoundError(path)
        mode = "rwc" if create else "ro" if read_only else "rw"
        try:
            self.connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                isolation_level=None,
                timeout=_BUSY_TIMEOUT_S,
                check_same_thread=False,
            )
            try:
                self.connection.row_factory = sqlite3.Row
                self._set_up(create=create, successor=successor)
                self.files = DatabaseFiles(path, self.connection)
                if create:
                    # What a process wrote that was killed before its flush is there, and not yet
                    # on the disk: nobody may see it, nor be sent it.
                    self.files.flush_log()
                self._page_size = self.pragma("page_size")
            except BaseException:
                self.connection.close()
                raise
        except sqlite3.Error as exc:
            raise translated(exc, path) from None

    def _set_up(self, *, create: bool, successor: bool) -> None:
        version, ours = self.pragma("user_version"), 1 + len(self.migrations)
        if version > ours:
            raise Newer(self.path, f"is of version {version}, this program knows {ours}")
        if version == 0 and not create:
            if self.execute("SELECT 1 FROM sqlite_schema").fetchone() is None:
                raise FileNotFoundError(self.path)  # creating it was cut short, so it holds nothing
            raise Damaged(self.path, "is no outbox")
        if version < ours and not create:
            raise Older(self.path, f"is of version {version}, this program's is {ours}")
        if version == 0:
            # This must precede the first page: later only a VACUUM could change it.
            self.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # A WAL with FULL survives the loss of power, and not only the end of the process.
        self.execute("PRAGMA journal_mode = WAL")
        self.execute("PRAGMA synchronous = FULL")
        self.execute("PRAGMA foreign_keys = ON")
        # What is deleted is overwritten: nothing of an answer is left in free pages.
        self.execute("PRAGMA secure_delete = ON")
        # A hardened service can write no directory for temporary files.
        self.execute("PRAGMA temp_store = MEMORY")
        self.execute(f"PRAGMA journal_size_limit = {_MAX_LOG_BYTES}")
        if version == 0:
            # One transaction makes the schema, its number and the row of the service.
            self._begin_with(sql.schema, ours)
            self.execute(sql.create_service, {"successor": int(successor)})
            self.execute("COMMIT")
            return
        for number in range(version, ours):
            self._begin_with(self.migrations[number - 1], number + 1)
            self.execute("COMMIT")

    def _begin_with(self, script: str, version: int) -> None:
        self.connection.executescript(f"BEGIN IMMEDIATE;{script}PRAGMA user_version = {version};")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    # --- transactions ---------------------------------------------------------------------

    def transaction(self, steps: Iterable[Callable[[], T]]) -> list[T]:
        """Run these in one transaction and return what they returned, once it is durable.

        Raises:
            OutboxError: none of them took effect.
        """
        last_event = self.last_event
        self.began_at = time.monotonic()
        try:
            self.files.check_log()  # before a commit makes an emptied log look like a whole one
            self.execute("BEGIN IMMEDIATE")
            try:
                offset_s = self._follow_clock()
                results = [step() for step in steps]
                failpoint("before a commit")
                self.execute("COMMIT")
                failpoint("after a commit")
            except BaseException:
                self.last_event = last_event  # the next one will get the number again
                self.retries_from = NOT_KNOWN
                if self.connection.in_transaction:
                    self.execute("ROLLBACK")
                raise
            if offset_s != self._offset_s:
                self.set_forward_ms += max(0, to_ms(offset_s - self._offset_s))
                self._offset_s = offset_s
            self.files.check()
        except sqlite3.Error as exc:
            raise translated(exc, self.path) from None
        except PermissionError as exc:  # of its own name: somebody closed a directory above it
            raise Unwritable(self.path, f"cannot be reached any more ({exc.strerror})") from None
        finally:
            self.began_at = self._transaction_at = None
        return results

    def execute(self, statement: str, values: Mapping[str, Any] = _NOTHING) -> sqlite3.Cursor:
        """Run one statement; called within a transaction."""
        return self.connection.execute(statement, values)

    def insert(self, statement: str, values: Mapping[str, Any]) -> int:
        """Insert one row; returns its id."""
        return cast("int", self.connection.execute(statement, values).lastrowid)

    def one(self, statement: str, values: Mapping[str, Any] = _NOTHING) -> sqlite3.Row | None:
        """The first row of a query; None where there is none."""
        row: sqlite3.Row | None = self.connection.execute(statement, values).fetchone()
        return row

    def value(self, statement: str, values: Mapping[str, Any] = _NOTHING) -> Any:  # noqa: ANN401 - a column's
        """The first column of a query's only row."""
        return self.connection.execute(statement, values).fetchone()[0]

    def _follow_clock(self) -> float:
        # Where the clock was set, the times from which durations are measured are set with it, so
        # that durations stay what they were. Returns the offset that holds once this is committed.
        wall_s, offset_s = self._read_clock()
        self._transaction_at = now = to_ms(wall_s)
        step_s = offset_s - self._offset_s
        if abs(step_s) < _STEP_S:
            return self._offset_s
        step = to_ms(step_s)
        self.execute(sql.shift_deliveries, {"step": step})
        # An edit of an older answer is late before and after.
        since = now - step - abs(step) - to_ms(LATE_S)
        self.execute(sql.shift_turns, {"step": step, "since": since})
        self.retries_from = NOT_KNOWN
        return offset_s

    def _read_clock(self) -> tuple[float, float]:
        # The time, and by how much that is ahead of the clock that nobody sets.
        while self._steady is not None:
            before_s = self._steady()
            wall_s = self.wall()
            if self._steady() - before_s < _STEP_S / 10:  # else the process was held between them
                return wall_s, wall_s - before_s
        return self.wall(), 0.0

    def changed_elsewhere(self) -> int:
        """A number that changes when another process writes."""
        version = self.pragma("data_version")
        if version != self._data_version:
            self._data_version = version
            self.retries_from = NOT_KNOWN
        return version

    def check_pages(self, within_s: float) -> bool:
        """Read every page; False where that took longer than so many seconds.

        Raises:
            OutboxError: one is damaged, or cannot be read.
        """
        end = time.monotonic() + within_s
        try:
            self.connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
            row = self.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as exc:
            if exc.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                return False
            raise translated(exc, self.path) from None
        finally:
            self.connection.set_progress_handler(None, 0)
        if row[0] != "ok":
            if not is_damaged(self.path):
                raise DiskFails(self.path, "its disk fails (a page was not read)")
            raise Damaged(self.path, "is damaged (found by quick_check)")
        return True

    def do_not_wait_for_locks(self) -> None:
        """From here on, another process that holds the lock is `Busy` at once."""
        self.execute("PRAGMA busy_timeout = 0")

    def pragma(self, name: str) -> int:
        """What a PRAGMA says that is a number."""
        value: int = self.value(f"PRAGMA {name}")
        return value

    def used_bytes(self) -> int:
        """What it takes, without pages that are free to be used again."""
        return (self.pragma("page_count") - self.pragma("freelist_count")) * self._page_size

    def is_over_budget(self) -> bool:
        """Whether it takes more than it may."""
        limit = self.max_bytes
        if limit is None or self.pragma("page_count") * self._page_size <= limit:
            return False
        return self.used_bytes() > limit

    def now(self) -> int:
        """The time of the transaction, in milliseconds."""
        # One reading for all: a clock that is set within a transaction must not come between an
        # attempt and the delay after it.
        return to_ms(self.wall()) if self._transaction_at is None else self._transaction_at
