"""What an inbox remembers of the pushes that the app has stored, in memory or in SQLite."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from anyio import to_thread

from paliadin_client.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime

__all__ = ["KEEP_DAYS", "Dedupe", "Memory", "Sqlite"]

#: A sidecar sends until it is acknowledged, keeps a body for 72 h after that for `replay`, and a
#: row for 90 days after its file has gone. What is older than this comes again only where an
#: outbox was lost, and the file still lies there.
KEEP_DAYS = 90
_MEMORY_TURNS = 10_000
_BUSY_S = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS stored (
    webhook_id TEXT PRIMARY KEY,
    turn TEXT NOT NULL,
    revision INTEGER NOT NULL,
    at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS stored_turn ON stored (turn, revision);
CREATE INDEX IF NOT EXISTS stored_at ON stored (at);
"""


class Dedupe(Protocol):
    """A turn is named by its backend, persona and id."""

    def claim(self, name: str) -> AbstractContextManager[bool]:
        """Whether nobody else has claimed `name`; nobody else can within the context."""
        ...

    async def knows(self, webhook_id: str, turn: str, revision: int) -> bool:
        """Whether this push, or a higher revision of its turn, was stored."""
        ...

    async def remember(self, webhook_id: str, turn: str, revision: int, now: datetime, /) -> None:
        """This push was stored."""
        ...


class Memory:
    """The pushes of the last 10,000 turns, in this process."""

    def __init__(self) -> None:
        self._claimed: set[str] = set()
        self._ids: dict[str, set[str]] = {}
        self._revisions: dict[str, int] = {}

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """See `Dedupe`."""
        if name in self._claimed:
            yield False
            return
        self._claimed.add(name)
        try:
            yield True
        finally:
            self._claimed.remove(name)

    async def knows(self, webhook_id: str, turn: str, revision: int) -> bool:
        """See `Dedupe`."""
        return webhook_id in self._ids.get(turn, ()) or revision < self._revisions.get(turn, 0)

    async def remember(self, webhook_id: str, turn: str, revision: int, _now: datetime, /) -> None:
        """See `Dedupe`."""
        self._ids.setdefault(turn, set()).add(webhook_id)
        self._revisions[turn] = revision
        if len(self._ids) > _MEMORY_TURNS:
            oldest = next(iter(self._ids))
            del self._ids[oldest], self._revisions[oldest]


class Sqlite:
    """A database that outlives the process, and that several processes may share.

    Args:
        path: of the database; made where there is none. Beside it stands `<path>.locks/`.

    Raises:
        ConfigError: it can be neither opened nor made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._locks = self._path.with_name(f"{self._path.name}.locks")
        try:
            self._locks.mkdir(mode=0o700, exist_ok=True)
            with closing(self._open()) as db:
                db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as exc:
            raise ConfigError([f"the dedupe database {self._path}: {exc}"]) from None

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """A lock on a file: the kernel drops it with the process, however that ends."""
        path = self._locks / hashlib.sha256(name.encode()).hexdigest()
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

    async def knows(self, webhook_id: str, turn: str, revision: int) -> bool:
        """See `Dedupe`.

        Raises:
            sqlite3.Error: the database does not answer.
        """
        return await to_thread.run_sync(self._knows, webhook_id, turn, revision)

    async def remember(self, webhook_id: str, turn: str, revision: int, now: datetime, /) -> None:
        """See `Dedupe`.

        Raises:
            sqlite3.Error: the database does not take it.
        """
        row = (webhook_id, turn, revision, now.timestamp())
        await to_thread.run_sync(self._remember, row)

    def _open(self) -> sqlite3.Connection:
        # One connection for each use: it belongs to no thread, and nothing is left to be closed.
        return sqlite3.connect(self._path, timeout=_BUSY_S)

    def _knows(self, webhook_id: str, turn: str, revision: int) -> bool:
        with closing(self._open()) as db:
            found = db.execute(
                "SELECT 1 FROM stored WHERE webhook_id = ? OR (turn = ? AND revision > ?) LIMIT 1",
                (webhook_id, turn, revision),
            )
            return found.fetchone() is not None

    def _remember(self, row: tuple[str, str, int, float]) -> None:
        *_, now = row
        with closing(self._open()) as db, db:
            db.execute("INSERT OR IGNORE INTO stored VALUES (?, ?, ?, ?)", row)
            db.execute("DELETE FROM stored WHERE at < ?", (now - KEEP_DAYS * 86_400,))


def _locked(lock: int, path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The one before may have removed the name after we opened it: then ours guards nothing.
        return os.path.samestat(os.fstat(lock), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
