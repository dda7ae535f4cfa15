"""Keeps everything in a SQLite database, which the processes of one host may share."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

from paliadin_client.errors import ConfigError
from paliadin_client.store.claims import Claims
from paliadin_client.store.protocol import (
    KEEP_BODIES_S,
    KEEP_IDS_S,
    Found,
    Push,
    Receipt,
    Verdict,
    Window,
    callback_in,
)
from paliadin_client.store.sqlite_changes import Watch
from paliadin_client.store.sqlite_file import DatabaseFile, failure
from paliadin_client.store.sqlite_thread import SqliteThread
from paliadin_contract.rank import Rank, outranks, rank_of

#: The first two tables are those of layout 0, which had no others: what they know stays known.
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
CREATE TABLE IF NOT EXISTS bodies (turn TEXT PRIMARY KEY, body BLOB NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS bodies_at ON bodies (at);
CREATE TABLE IF NOT EXISTS own_ids (
    id TEXT PRIMARY KEY, turn TEXT NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS own_ids_at ON own_ids (at);
CREATE TABLE IF NOT EXISTS replies (turn TEXT PRIMARY KEY, reply BLOB NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS replies_at ON replies (at);
CREATE TABLE IF NOT EXISTS windows (
    name TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    turn_id TEXT,
    host TEXT,
    until REAL NOT NULL,
    at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS windows_at ON windows (at)
"""
_LAYOUT = 1

_JUDGE = """
WITH pushes (place, id, turn) AS (VALUES {rows})
SELECT json_group_array(json_array(
    place, EXISTS (SELECT 1 FROM webhook_ids WHERE webhook_ids.id = pushes.id),
    file, answered, revision
)) FROM pushes LEFT JOIN ranks USING (turn)
"""
_FIND_PUSHES = """
WITH wanted (id) AS (SELECT value FROM json_each(?))
SELECT id, body FROM wanted JOIN bodies ON turn = id
UNION ALL SELECT id, body FROM wanted JOIN own_ids USING (id) JOIN bodies USING (turn)
WHERE NOT EXISTS (SELECT 1 FROM bodies AS by_turn WHERE by_turn.turn = id)
"""
_FIND_REPLIES = """
SELECT turn, reply FROM replies WHERE turn IN (SELECT value FROM json_each(?))
"""
_RELEASE = "UPDATE windows SET turn_id = NULL WHERE name = ? AND turn_id = ?"
_MOVE = "UPDATE windows SET host = ? WHERE name = ? AND turn_id = ?"
#: Each table's key, and how long its rows are kept, in seconds.
_KEPT = (
    ("webhook_ids", "id", KEEP_IDS_S),
    ("ranks", "turn", KEEP_IDS_S),
    ("bodies", "turn", KEEP_BODIES_S),
    ("own_ids", "id", KEEP_BODIES_S),
    ("replies", "turn", KEEP_BODIES_S),
    ("windows", "name", KEEP_IDS_S),
)
#: How many rows of one table one step removes.
_STEP_ROWS = 200
#: How many rows one statement inserts, of at most six values: SQLite may take no more than 999.
_MAX_ROWS = 100


class SqliteStore:
    """Keeps pushes, replies and windows in a database, a file.

    Args:
        path: of the database; made where there is none, readable by its user alone. Beside it
            stand `<path>-wal`, `<path>-shm` and `<path>-claims`.
        now: the clock, in seconds since the epoch.

    Raises:
        ConfigError: it can be neither opened nor made, or the path names no file.
    """

    has_connection = False

    def __init__(
        self, path: str | os.PathLike[str], *, now: Callable[[], float] = time.time
    ) -> None:
        if str(path) in {"", ":memory:"}:
            raise ConfigError(
                [f"{str(path)!r} names no file: a path, or None to remember in memory"]
            )
        try:
            # SQLite follows links, and has its other files beside the file itself.
            self._path = Path(os.path.realpath(Path(path)))
            self._claims = Claims(self._path.with_name(f"{self._path.name}-claims"))
            file = DatabaseFile(self._path, _SCHEMA, _LAYOUT)
            file.open().db.close()
        except (OSError, sqlite3.Error) as exc:
            raise ConfigError([failure(self._path, exc).args[0]]) from None
        except (TypeError, ValueError) as exc:
            raise ConfigError([f"the inbox's database {path!r}: {exc}"]) from None
        self._thread = SqliteThread(file, self._claims.touch)
        self._listeners: list[Callable[[str | None], None]] = []
        self._now = now

    @asynccontextmanager
    async def receive(self, push: Push) -> AsyncIterator[Receipt]:
        """As `Store.receive`."""
        claimed = f"turn {push.turn}", f"id {push.webhook_id}"
        try:
            is_free = self._claims.take(*claimed)
        except OSError as exc:
            raise failure(self._path, exc) from None
        if not is_free:
            yield Receipt(Verdict.BUSY)
            return
        try:
            rank = rank_of(push.callback)
            verdict = await self._thread.read(_judge, (push, rank))
            yield Receipt(verdict)
            if verdict is Verdict.NEW:
                await self._thread.write(_remember, (push, rank, self._now()))
        finally:
            self._claims.drop(*claimed)
        if verdict is Verdict.NEW:
            self._hint(push.turn)

    async def find(self, turn_ids: Collection[str]) -> Mapping[str, Found]:
        """As `Store.find`."""
        return await self._thread.read(_find, json.dumps(list(turn_ids)))

    async def leave_reply(self, turn_id: str, reply: bytes) -> None:
        """As `Store.leave_reply`."""
        await self._thread.write(_leave_reply, (turn_id, reply, self._now()))
        self._hint(turn_id)

    @asynccontextmanager
    async def hints(self, on_hint: Callable[[str | None], None]) -> AsyncIterator[None]:
        """As `Store.hints`: of this process by the turn's id, of others as None."""
        self._listeners.append(on_hint)
        try:
            with closing(Watch(self._claims, self._thread, on_hint)) as watch:
                self._claims.touch()  # which makes the file that is watched
                watch.look()
                yield
        finally:
            self._listeners.remove(on_hint)

    async def hold(self, window: Window, ttl_s: float) -> Window:
        """As `Store.hold`."""
        return await self._thread.write(_hold, (window, self._now(), ttl_s))

    async def release(self, window: Window, reply: bytes | None = None) -> None:
        """As `Store.release`."""
        await self._thread.write(_release, (window, reply, self._now()))
        self._hint(window.turn_id)

    async def move(self, window: Window) -> None:
        """As `Store.move`."""
        await self._thread.write(_move, window)

    async def prune(self) -> None:
        """As `Store.prune`."""
        await self._thread.write(_prune, self._now())

    async def aclose(self) -> None:
        """As `Store.aclose`."""
        await self._thread.aclose()
        self._claims.close()

    def _hint(self, turn_id: str | None) -> None:
        for on_hint in tuple(self._listeners):
            on_hint(turn_id)


def _judge(db: sqlite3.Connection, asked: Sequence[tuple[Push, Rank]]) -> list[Verdict]:
    rows = ", ".join(f"({place}, ?, ?)" for place in range(len(asked)))
    values = [text for push, _ in asked for text in (push.webhook_id, push.turn)]
    (found,) = db.execute(_JUDGE.format(rows=rows), values).fetchone()
    verdicts = dict.fromkeys(range(len(asked)), Verdict.NEW)
    for place, known, *standing in json.loads(found):
        rank = None if standing[0] is None else Rank(standing[0], bool(standing[1]), standing[2])
        if known:
            verdicts[place] = Verdict.KNOWN
        elif not outranks(asked[place][1], rank):
            verdicts[place] = Verdict.OUTRANKED
    return list(verdicts.values())


def _remember(db: sqlite3.Connection, pushes: Sequence[tuple[Push, Rank, float]]) -> Sequence[None]:
    _insert(db, "webhook_ids", [(push.webhook_id, now) for push, _, now in pushes])
    _insert(db, "ranks", [(push.turn, *rank, now) for push, rank, now in pushes])
    _insert(db, "bodies", [(push.turn, push.body, now) for push, _, now in pushes])
    own_ids = [(push.callback.data.turn_id, push.turn, now) for push, _, now in pushes]
    _insert(db, "own_ids", [row for row in own_ids if row[0] != row[1]])
    return [None] * len(pushes)


def _leave_reply(
    db: sqlite3.Connection, replies: Sequence[tuple[str, bytes, float]]
) -> Sequence[None]:
    _insert(db, "replies", replies)
    return [None] * len(replies)


def _insert(db: sqlite3.Connection, table: str, rows: Sequence[tuple[object, ...]]) -> None:
    # Several at a time: each statement costs as much as the rows do.
    for start in range(0, len(rows), _MAX_ROWS):
        some = rows[start : start + _MAX_ROWS]
        row = f"({', '.join('?' * len(some[0]))})"
        db.execute(
            f"REPLACE INTO {table} VALUES {', '.join([row] * len(some))}",  # noqa: S608 - ours
            [value for each in some for value in each],
        )


def _find(db: sqlite3.Connection, asked: Sequence[str]) -> list[dict[str, Found]]:
    return [_find_each(db, turn_ids) for turn_ids in asked]


def _find_each(db: sqlite3.Connection, turn_ids: str) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for turn_id, body in db.execute(_FIND_PUSHES, (turn_ids,)):
        found[turn_id] = Found(push=callback_in(body))
    for turn_id, reply in db.execute(_FIND_REPLIES, (turn_ids,)):
        found[turn_id] = replace(found.get(turn_id, Found()), reply=reply)
    return found


def _hold(db: sqlite3.Connection, asked: Sequence[tuple[Window, float, float]]) -> list[Window]:
    return [_hold_each(db, *each) for each in asked]


def _hold_each(db: sqlite3.Connection, window: Window, now: float, ttl_s: float) -> Window:
    row = db.execute(
        "SELECT user_id, turn_id, host, until FROM windows WHERE name = ?", (window.name,)
    ).fetchone()
    if row is not None:
        user_id, turn_id, host, until = row
        # Else a clock that was set back would keep it for as long as that.
        if not now < until < now + 2 * ttl_s:
            turn_id = None
        if user_id != window.user_id or turn_id not in (None, window.turn_id):
            return Window(window.name, user_id, turn_id, host)
        window = replace(window, host=host or window.host)
    db.execute(
        "REPLACE INTO windows VALUES (?, ?, ?, ?, ?, ?)",
        (window.name, window.user_id, window.turn_id, window.host, now + ttl_s, now),
    )
    return window


def _release(
    db: sqlite3.Connection, asked: Sequence[tuple[Window, bytes | None, float]]
) -> Sequence[None]:
    _insert(
        db, "replies", [(w.turn_id, reply, now) for w, reply, now in asked if reply is not None]
    )
    db.executemany(_RELEASE, [(window.name, window.turn_id) for window, _, _ in asked])
    return [None] * len(asked)


def _move(db: sqlite3.Connection, asked: Sequence[Window]) -> Sequence[None]:
    db.executemany(_MOVE, [(window.host, window.name, window.turn_id) for window in asked])
    return [None] * len(asked)


def _prune(db: sqlite3.Connection, asked: Sequence[float]) -> Sequence[None]:
    for table, key, keep_s in _KEPT:
        db.execute(
            f"DELETE FROM {table} WHERE {key} IN "  # noqa: S608 - the names are ours
            f"(SELECT {key} FROM {table} WHERE at < ? ORDER BY at LIMIT {_STEP_ROWS})",
            (max(asked) - keep_s,),
        )
    return [None] * len(asked)
