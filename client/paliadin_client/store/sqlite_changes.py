"""Notices when another process has changed the database, without asking again and again.

After a commit the file of claims is touched, and the kernel notifies whoever watches it. (The
database's own files would change too early, when a commit is written and cannot be seen yet.)
Without inotify other processes' changes are found by whoever waits, who looks now and then.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress

from paliadin_client.store.claims import Claims
from paliadin_client.store.sqlite_thread import SqliteThread

#: Closed by who only read it; and removed, among other things.
_IN_CLOSE_NOWRITE, _IN_ATTRIB = 0x10, 0x4
_EVENT_BYTES = 4096
#: How long, in seconds, changes gather: nobody notices it, and a busy database is asked rarely.
_GATHER_S = 0.01
#: How long until a database that did not answer is asked again.
_AWAY_S = 2.0


class Watch:
    """Calls `on_hint`, from the first look on, with None for any turn, until it is closed.

    Args:
        claims: whose file is watched.
        thread: the database.
        on_hint: called when another process may have changed something.
    """

    def __init__(
        self, claims: Claims, thread: SqliteThread, on_hint: Callable[[str | None], None]
    ) -> None:
        self._path = os.fsencode(claims.path)
        self._thread = thread
        self._on_hint = on_hint
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at = 0.0
        self._version: object = None
        self._is_closed = False
        self._inotify = _open_inotify()

    def close(self) -> None:
        """End it."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify)
            os.close(self._inotify)

    def look(self) -> None:
        """Ask the database whether another process has changed it."""
        self._looked_at = self._loop.time()
        if self._inotify is not None:
            # Events are taken before the database is asked: one that comes from now on is of later.
            with suppress(BlockingIOError):
                os.read(self._inotify, _EVENT_BYTES)
            self._loop.add_reader(self._inotify, self._look_soon)
        self._thread.begin(self._read_version, None, writes=False).add_done_callback(self._compare)

    def _read_version(self, db: sqlite3.Connection, asked: Sequence[None]) -> list[object]:
        # It changes with what other connections commit, and each connection has its own.
        return [(db, db.execute("PRAGMA data_version").fetchone())] * len(asked)

    def _look_soon(self) -> None:
        assert self._inotify is not None
        self._loop.remove_reader(self._inotify)
        self._look_at(self._looked_at + _GATHER_S)

    def _look_at(self, when: float) -> None:
        # Instead of what was planned, or each event would leave a look that comes again and again.
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self.look)

    def _compare(self, looked: asyncio.Future[object]) -> None:
        if looked.cancelled():
            return
        failed = looked.exception() is not None  # asked always, else asyncio logs that nobody did
        if self._is_closed:
            return
        if failed:
            self._look_at(self._loop.time() + _AWAY_S)
            return
        if self._inotify is not None:
            # By its name each time, since it may have been removed and made anew.
            _libc.inotify_add_watch(self._inotify, self._path, _IN_CLOSE_NOWRITE | _IN_ATTRIB)
        version, self._version = self._version, looked.result()
        if version != self._version:
            self._on_hint(None)


_libc = ctypes.CDLL(None)


def _open_inotify() -> int | None:
    if not hasattr(_libc, "inotify_init1"):
        return None
    inotify: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    return None if inotify < 0 else inotify  # this user has as many as he may
