"""Keeps one connection to a SQLite database, in a thread of its own.

Each commit waits for the disk, so the event loop must not do it; and what is written while the
thread waits for the disk shares the next commit. Two threads of Python hinder each other more than
the statements take: so what one step of the event loop asks for is handed over together, and what
is asked for several times is asked of the database once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

import anyio
from anyio import to_thread

from paliadin_client.store.sqlite_file import DatabaseFile, Opened, failure

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_A = TypeVar("_A")
#: Does the same for each of the arguments, and returns as many results.
_Statements: TypeAlias = "Callable[[sqlite3.Connection, Sequence[_A]], Sequence[_T]]"

#: How long, in seconds, what is read may be of a file that was removed. What is written never is.
_CHECK_S = 0.1


@dataclass(slots=True, eq=False)
class _Job(Generic[_T]):
    statements: _Statements[Any, _T]
    argument: Any
    writes: bool
    future: asyncio.Future[_T]
    result: Any = None
    error: Exception | None = None


class SqliteThread:
    """Runs statements on a database that several processes share.

    The thread and its connection begin with the first statement, and end with this object,
    with `aclose`, and before a fork: SQLite's connections must not be carried over one.

    Args:
        file: the database's.
        on_commit: called in the thread when something may have been committed.
    """

    def __init__(self, file: DatabaseFile, on_commit: Callable[[], None]) -> None:
        self._on_commit = on_commit
        self._file = file
        self._jobs: SimpleQueue[list[_Job[Any]] | None] | None = None
        self._thread: threading.Thread | None = None
        #: What has not been handed over yet, of each event loop.
        self._asked: dict[asyncio.AbstractEventLoop, list[_Job[Any]]] = {}
        _all.add(self)

    async def read(self, statements: _Statements[_A, _T], argument: _A) -> _T:
        """What `statements` return for `argument`; they only read.

        Raises:
            StoreFailed: the database does not answer.
        """
        return await self.begin(statements, argument, writes=False)

    async def write(self, statements: _Statements[_A, _T], argument: _A) -> _T:
        """The same, once what they write is on the disk. They may be run more than once.

        Cancelling it waits for the commit: whoever is cancelled knows that nothing goes on.

        Raises:
            StoreFailed: nothing of it was written.
        """
        written = self.begin(statements, argument, writes=True)
        try:
            return await asyncio.shield(written)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([written])
            raise

    def begin(
        self, statements: _Statements[_A, _T], argument: _A, *, writes: bool
    ) -> asyncio.Future[_T]:
        """The same, to be awaited later."""
        loop = asyncio.get_running_loop()
        job = _Job(statements, argument, writes, loop.create_future())
        asked = self._asked.setdefault(loop, [])
        if not asked:
            loop.call_soon(self._hand_over, loop)
        asked.append(job)
        return job.future

    async def aclose(self) -> None:
        """Close the connection; the next statement opens another one."""
        with _guard:
            thread = self.stop()
        if thread is not None:
            await to_thread.run_sync(thread.join)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        asked = self._asked.pop(loop)
        with _guard:
            if self._jobs is None:
                self._jobs = self._start()
            self._jobs.put(asked)

    def _start(self) -> SimpleQueue[list[_Job[Any]] | None]:
        jobs: SimpleQueue[list[_Job[Any]] | None] = SimpleQueue()
        # A daemon: whoever forgets to close can end all the same. It does not know this object,
        # which therefore can be collected, and then ends it.
        self._thread = threading.Thread(
            target=_work,
            args=(self._file, jobs, self._on_commit),
            name="paliadin-store",
            daemon=True,
        )
        self._thread.start()
        weakref.finalize(self, jobs.put, None)
        return jobs

    def stop(self) -> threading.Thread | None:
        """Let the thread end, which is returned; the caller holds the guard."""
        thread, jobs = self._thread, self._jobs
        self._thread = self._jobs = None
        if jobs is not None:
            jobs.put(None)
        return thread


#: Held while a thread begins or ends, and while the process forks: no connection is open then.
_guard = threading.Lock()
_all: weakref.WeakSet[SqliteThread] = weakref.WeakSet()


def _before_fork() -> None:
    _guard.acquire()
    for each in tuple(_all):
        if (thread := each.stop()) is not None:
            thread.join()


os.register_at_fork(
    before=_before_fork, after_in_parent=_guard.release, after_in_child=_guard.release
)


def _work(
    file: DatabaseFile, queue: SimpleQueue[list[_Job[Any]] | None], on_commit: Callable[[], None]
) -> None:
    session = _Session(file)
    try:
        ended = False
        while not ended:
            handed_over = _take_all(queue)
            ended = None in handed_over
            jobs = [job for each in handed_over for job in each or ()]
            if reads := [job for job in jobs if not job.writes]:
                session.run(reads, writes=False)
                _hand_back(reads)
            if writes := [job for job in jobs if job.writes]:
                session.run(writes, writes=True)
                on_commit()
                _hand_back(writes)
    finally:
        session.close()


def _take_all(queue: SimpleQueue[_T]) -> list[_T]:
    taken = [queue.get()]
    while not queue.empty():  # nobody else takes from it
        taken.append(queue.get())
    return taken


def _hand_back(jobs: list[_Job[Any]]) -> None:
    for loop in {job.future.get_loop() for job in jobs}:
        ours = [job for job in jobs if job.future.get_loop() is loop]
        # A loop that is closed has nobody who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, ours)


def _settle(jobs: list[_Job[Any]]) -> None:
    for job in jobs:
        if job.future.done():
            continue  # whoever waited was cancelled
        if job.error is None:
            job.future.set_result(job.result)
        else:
            job.future.set_exception(job.error)


def _run(db: sqlite3.Connection, jobs: list[_Job[Any]]) -> None:
    for statements in dict.fromkeys(job.statements for job in jobs):
        same = [job for job in jobs if job.statements == statements]
        results = statements(db, [job.argument for job in same])
        for job, result in zip(same, results, strict=True):
            job.result = result


class _Session:
    """The thread's connection, opened anew where the file was removed or failed."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._opened: Opened | None = None
        self._check_at = 0.0

    def close(self) -> None:
        """Close the connection."""
        opened, self._opened = self._opened, None
        if opened is not None:
            # The file may have been removed, and then there is nothing to save.
            with suppress(sqlite3.Error):
                opened.db.close()

    def run(self, jobs: list[_Job[Any]], *, writes: bool) -> None:
        """Run these, in one transaction where they write; what fails is each job's own error."""
        try:
            if writes:
                self._write(jobs)
            else:
                _run(self._current(), jobs)
        except Exception as exc:  # noqa: BLE001 - a fault of the statements is their caller's
            # Whatever it is, a connection that begins afresh does not carry it on.
            self.close()
            if len(jobs) > 1 and getattr(exc, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
                # It may be one job's alone.
                for job in jobs:
                    self.run([job], writes=writes)
                return
            for job in jobs:
                job.error = exc
                if isinstance(exc, OSError | sqlite3.Error):
                    job.error = failure(self._file.path, exc)

    def _write(self, jobs: list[_Job[Any]]) -> None:
        while True:
            db = self._current()
            db.execute("BEGIN IMMEDIATE")
            try:
                _run(db, jobs)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            # What went into a file that had been removed before is nowhere.
            if self._is_current():
                return

    def _is_current(self) -> bool:
        found = self._opened is not None and self._file.is_current(self._opened)
        self._check_at = time.monotonic() + _CHECK_S if found else 0.0
        return found

    def _current(self) -> sqlite3.Connection:
        if self._opened is not None:
            if time.monotonic() < self._check_at or self._is_current():
                return self._opened.db
            self._file.remove_emptied()
            self.close()
        self._opened = self._file.open()
        if self._opened.is_new:
            _log.error(
                "dedupe.renewed path=%s: it was removed while in use, so that what was stored "
                "before may reach on_turn once more",
                self._file.path,
            )
        return self._opened.db
