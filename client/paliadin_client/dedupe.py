"""Remembers which pushes the app has stored, in memory or in SQLite, and which are being stored."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import anyio
from anyio import to_thread

from paliadin_client.errors import ConfigError
from paliadin_contract.rank import Rank

__all__ = ["KEEP_DAYS", "DedupeFailed", "Memory", "Sqlite"]

_log = logging.getLogger(__name__)

#: A sidecar sends until it is acknowledged, keeps a body for 72 h after that for `replay`, and a
#: row for 90 days after its file has gone. An older turn comes again only where an outbox was lost
#: and the file is still there.
KEEP_DAYS = 90
_MEMORY_TURNS = 10_000
_BUSY_S = 5.0
#: The database has threads of its own, since the app may keep all of anyio's usual ones busy.
_THREADS = 4

_SCHEMA = """
CREATE TABLE IF NOT EXISTS webhook_ids (id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS webhook_ids_at ON webhook_ids (at);
CREATE TABLE IF NOT EXISTS ranks (
    turn TEXT PRIMARY KEY,
    file TEXT NOT NULL,
    answered INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ranks_at ON ranks (at);
"""


class DedupeFailed(Exception):
    """The database does not answer. Its text names the path and SQLite's or the system's reason."""

    def __init__(self, path: Path, cause: OSError | sqlite3.Error) -> None:
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        super().__init__(f"the dedupe database {path}: {reason}")


class Memory:
    """Remembers the pushes of the last 10,000 turns, for this process alone.

    A turn is named as its app finds it: by the submitted id, else by its own.
    """

    def __init__(self) -> None:
        self._claimed: set[str] = set()
        self._turns: dict[str, tuple[set[str], Rank]] = {}

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether nobody else has claimed `name`. Nobody else can within the context."""
        if name in self._claimed:
            yield False
            return
        self._claimed.add(name)
        try:
            yield True
        finally:
            self._claimed.remove(name)

    async def find(self, webhook_id: str, turn: str) -> tuple[bool, Rank | None]:
        """Whether this push was stored, and the rank of what was stored for the turn last."""
        ids, rank = self._turns.get(turn, ((), None))
        return webhook_id in ids, rank

    async def remember(self, webhook_id: str, turn: str, rank: Rank, _now: datetime, /) -> None:
        """Remember that this push was stored."""
        ids, _ = self._turns.get(turn, (set[str](), None))
        self._turns[turn] = ({*ids, webhook_id}, rank)
        if len(self._turns) > _MEMORY_TURNS:
            del self._turns[next(iter(self._turns))]


class Sqlite:
    """Remembers the same as `Memory` in a database, which several processes may share.

    Args:
        path: of the database, a file; made where there is none, readable by its user alone.
            Beside it stands `<path>.locks/`.

    Raises:
        ConfigError: it can be neither opened nor made, or the path names no file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if str(path) in {"", ":memory:"}:
            raise ConfigError(
                [f"dedupe={str(path)!r} names no file: a path, or None to remember in memory"]
            )
        self._threads = anyio.CapacityLimiter(_THREADS)
        try:
            self._path = Path(path)
            self._locks = self._path.with_name(f"{self._path.name}.locks")
            self._make()
        except (OSError, sqlite3.Error, TypeError, ValueError) as exc:
            raise ConfigError([f"the dedupe database {path!r}: {exc}"]) from None

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """As `Memory.claim`, by a file's lock: the kernel drops it with the process.

        Raises:
            DedupeFailed: there is no place for the lock.
        """
        path = self._locks / hashlib.sha256(name.encode()).hexdigest()
        with self._errors_named():
            if not self._locks.exists():
                self._renew()
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            claimed = _locked(lock, path)
            try:
                yield claimed
            finally:
                if claimed:
                    path.unlink(missing_ok=True)
        finally:
            os.close(lock)

    async def find(self, webhook_id: str, turn: str) -> tuple[bool, Rank | None]:
        """As `Memory.find`.

        Raises:
            DedupeFailed: the database does not answer.
        """
        return await to_thread.run_sync(self._find, webhook_id, turn, limiter=self._threads)

    async def remember(self, webhook_id: str, turn: str, rank: Rank, now: datetime, /) -> None:
        """As `Memory.remember`.

        Raises:
            DedupeFailed: the database does not answer.
        """
        await to_thread.run_sync(
            self._remember, webhook_id, turn, rank, now.timestamp(), limiter=self._threads
        )

    def _find(self, webhook_id: str, turn: str) -> tuple[bool, Rank | None]:
        with self._open() as db:
            known = db.execute("SELECT 1 FROM webhook_ids WHERE id = ?", (webhook_id,)).fetchone()
            ranks = db.execute("SELECT file, answered, revision FROM ranks WHERE turn = ?", (turn,))
            row = ranks.fetchone()
        return known is not None, row and Rank(row[0], bool(row[1]), row[2])

    def _remember(self, webhook_id: str, turn: str, rank: Rank, now: float) -> None:
        with self._open() as db, db:
            db.execute("INSERT OR IGNORE INTO webhook_ids VALUES (?, ?)", (webhook_id, now))
            db.execute("REPLACE INTO ranks VALUES (?, ?, ?, ?, ?)", (turn, *rank, now))
            for table in ("webhook_ids", "ranks"):
                oldest = now - KEEP_DAYS * 86_400
                db.execute(f"DELETE FROM {table} WHERE at < ?", (oldest,))  # noqa: S608 - as above

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # Each use has its own connection, so that none belongs to a thread or must be closed later.
        with self._errors_named():
            if not (self._path.exists() and self._path.stat().st_size):
                self._renew()
            with closing(sqlite3.connect(self._path, timeout=_BUSY_S)) as db:
                yield db

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as exc:
            raise DedupeFailed(self._path, exc) from None

    def _renew(self) -> None:
        # Somebody removed it while we run. Only the memory is lost, and answers must arrive.
        self._make()
        _log.error(
            "dedupe.renewed path=%s: it was removed while in use, so that what was stored before "
            "may reach on_turn once more",
            self._path,
        )

    def _make(self) -> None:
        self._locks.mkdir(mode=0o700, exist_ok=True)
        # SQLite would create it by the umask. Its journal gets the mode of the database.
        made = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(made).st_uid == os.geteuid():
                os.fchmod(made, 0o600)
        finally:
            os.close(made)
        with closing(sqlite3.connect(self._path, timeout=_BUSY_S)) as db:
            db.executescript(_SCHEMA)


def _locked(lock: int, path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A lock guards nothing where the holder before removed its file after we had opened it.
        return os.path.samestat(os.fstat(lock), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
