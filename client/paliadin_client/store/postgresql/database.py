"""Connections to a store's PostgreSQL: the pool, how long each may take, and what its errors say.

Whatever is between may stall, and then no driver notices: a proxy that hangs, a firewall that
forgot the connection. So each statement has a limit, after which its connection is broken off.
It is not cancelled, since that would have to be awaited, and would hang as well.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, LiteralString, Self, TypeAlias

import anyio
import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from paliadin_client.errors import StoreFailed
from paliadin_client.store.postgresql.conninfo import Conninfo
from paliadin_client.store.postgresql.schema import VERSION

Connection: TypeAlias = psycopg.AsyncConnection[TupleRow]

CHANNEL = "paliadin"
#: How long a statement may take.
ANSWER_S = 5.0
#: Each process has as many at most, beside the one that listens. One is kept open, the others go
#: after a minute without use, so that several processes get by with few.
_MAX_CONNECTIONS = 5
_MAX_IDLE_S = 60.0
#: So many may have a push in them. The app's own part of one may take a minute, and meanwhile
#: leases are to be renewed and answers to be found.
_MAX_PUSHES = _MAX_CONNECTIONS - 1
#: How long somebody waits for a connection, and how long while none can be made.
_FREE_S = 4.0
_FREE_WHILE_DOWN_S = 0.5
#: A statement is prepared by its third use in a connection, which spares the server a quarter.
_PREPARE_AFTER = 2
#: The longest payload that a notification has.
_MAX_PAYLOAD = 7_999

#: The pool's name.
_POOL = "paliadin"
# What it says of each attempt comes back as an error, and of those the first is reported.
logging.getLogger("psycopg.pool").addFilter(
    lambda record: not (isinstance(record.args, tuple) and _POOL in record.args)
)

_VERSION = "SELECT number FROM paliadin.version"
_NOTIFY = "SELECT pg_notify(%(channel)s, payload) FROM unnest(%(payloads)s::text[]) AS payload"

_INIT = "`paliadin store init` makes them"
_REMEDIES: Mapping[type[psycopg.Error], str] = {
    errors.UndefinedTable: f"its tables are not there: {_INIT}",
    errors.InvalidSchemaName: f"its tables are not there: {_INIT}",
    errors.InsufficientPrivilege: "this role may not: connect as the one that owns the schema "
    "paliadin, or GRANT that one to it; `paliadin store init` needs CREATE on the database",
    errors.ReadOnlySqlTransaction: "it takes no writes: connect to the primary, as with "
    "target_session_attrs=read-write",
}


class _PoolConnection(psycopg.AsyncConnection[TupleRow]):
    """Reports why it could not be made, which a pool only logs."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:  # noqa: ANN401 - as given
        on_failure = kwargs.pop("on_failure")
        try:
            return await super().connect(conninfo, **kwargs)
        except psycopg.Error as exc:
            on_failure(exc)
            raise


class Database:
    """A store's PostgreSQL. It connects when it is used for the first time."""

    def __init__(self, conninfo: Conninfo) -> None:
        self._conninfo = conninfo
        self._pool: AsyncConnectionPool[Connection] | None = None
        self._pushes = asyncio.Semaphore(_MAX_PUSHES)
        #: Why there is no connection, until there is one again.
        self._failure = ""
        #: Whether a connection is surely one and the same session of the server, as it is not
        #: behind a pooler in transaction mode. Only then are statements prepared.
        self.has_sessions = False

    @property
    def name(self) -> str:
        """The store's name, without user and password."""
        return self._conninfo.name

    @property
    def port(self) -> str:
        """As it was given; empty where it was not."""
        return self._conninfo.port

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection of the pool, in no transaction.

        Raises:
            StoreFailed: none was free in time, or none can be made, and why.
        """
        pool = await self._opened_pool()
        try:
            connection = await pool.getconn(_FREE_WHILE_DOWN_S if self._failure else _FREE_S)
        except PoolTimeout:
            reason = f"{self.name}: none of its connections was free within {_FREE_S:g} s"
            raise StoreFailed(self._failure or reason) from None
        except psycopg.Error as exc:  # the pool is closed
            raise self.failed(exc) from None
        self._failure = ""
        connection.prepare_threshold = _PREPARE_AFTER if self.has_sessions else None
        try:
            yield connection
        finally:
            # What is not given back is missing for ever.
            with anyio.CancelScope(shield=True), time_limit(connection, ANSWER_S):
                await pool.putconn(connection)

    @asynccontextmanager
    async def connection_for_push(self) -> AsyncIterator[Connection]:
        """As `connection`, for what may take long: one of them stays free for all else.

        Raises:
            StoreFailed: as `connection`, or too many pushes are being stored already.
        """
        try:
            async with asyncio.timeout(_FREE_S):
                await self._pushes.acquire()
        except TimeoutError:
            raise StoreFailed(
                f"{self.name}: {_MAX_PUSHES} pushes are being stored, and none of them was done "
                f"within {_FREE_S:g} s: what does on_turn wait for?"
            ) from None
        try:
            async with self.connection() as connection:
                yield connection
        finally:
            self._pushes.release()

    @asynccontextmanager
    async def own_connection(self) -> AsyncIterator[Connection]:
        """A connection that is not the pool's, and is closed in the end.

        Raises:
            StoreFailed: none can be made, and why.
        """
        try:
            connection = await psycopg.AsyncConnection.connect(
                self._conninfo.dsn, autocommit=True, prepare_threshold=None
            )
        except psycopg.Error as exc:
            raise self.failed(exc) from None
        try:
            yield connection
        finally:
            await connection.close()  # closes the socket and waits for nobody

    async def rows(
        self, statement: LiteralString, values: Mapping[str, object], limit_s: float
    ) -> list[tuple[Any, ...]]:
        """The rows of a statement, which is a transaction of its own.

        Raises:
            StoreFailed: it did not do it, or did not answer within `limit_s` seconds.
        """
        async with self.connection() as connection:
            with self.asked(connection, limit_s):
                return await run(connection, statement, values)

    async def notify(self, payloads: Collection[str]) -> None:
        """Notify all who listen, by a statement of its own.

        Within another's transaction it would hold a lock that all commits of the server wait for.

        Raises:
            StoreFailed: the notifications could not be sent.
        """
        fitting = [each if len(each.encode()) <= _MAX_PAYLOAD else "" for each in payloads]
        await self.rows(_NOTIFY, {"channel": CHANNEL, "payloads": fitting}, ANSWER_S)

    async def version(self, connection: Connection) -> int:
        """The version of the tables.

        Raises:
            StoreFailed: they are not there.
        """
        with self.asked(connection, ANSWER_S):
            rows = await run(connection, _VERSION)
        return int(rows[0][0]) if rows else 0

    async def check_version(self, connection: Connection) -> None:
        """Ask whether the tables are there, and are the ones that this package knows.

        Raises:
            StoreFailed: they are not, and what mends it.
        """
        number = await self.version(connection)
        if number > VERSION:
            raise StoreFailed(
                f"{self.name}: its tables are of version {number}, and this paliadin knows "
                f"{VERSION}: install the later one that made them, in its checkout by "
                "`pip install --no-deps --no-build-isolation .`"
            )
        if number < VERSION:
            raise StoreFailed(
                f"{self.name}: its tables are of version {number}, and this paliadin needs "
                f"{VERSION}: `paliadin store init` brings them there"
            )

    @contextmanager
    def errors_named(self) -> Iterator[None]:
        """Turn psycopg's errors into `StoreFailed`."""
        try:
            yield
        except psycopg.Error as exc:
            raise self.failed(exc) from None

    @contextmanager
    def asked(self, connection: Connection, limit_s: float) -> Iterator[None]:
        """As `errors_named`, and give up a connection that does not answer in time."""
        with self.errors_named(), time_limit(connection, limit_s) as is_over:
            try:
                yield
            except psycopg.Error:
                if is_over():
                    raise StoreFailed(f"{self.name}: no answer within {limit_s:g} s") from None
                raise

    def failed(self, exc: psycopg.Error) -> StoreFailed:
        """What may be said of an error: what the server said may quote a row, and so an answer."""
        for kind, remedy in _REMEDIES.items():
            if isinstance(exc, kind):
                return StoreFailed(f"{self.name}: {remedy}")
        if exc.sqlstate is not None:
            reason = f"{type(exc).__name__} ({exc.sqlstate})"
        elif isinstance(exc, psycopg.OperationalError):
            # Of the connection, and libpq's own words, which name the host and no password.
            reason = " ".join(self._conninfo.without_secrets(str(exc)).split())
        else:
            reason = type(exc).__name__
        return StoreFailed(f"{self.name}: {reason}")

    async def aclose(self) -> None:
        """Close the pool."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def _opened_pool(self) -> AsyncConnectionPool[Connection]:
        if self._pool is None:
            # It belongs to the event loop, and the app may make a store before it has one.
            self._pool = AsyncConnectionPool(
                self._conninfo.dsn,
                kwargs={
                    "autocommit": True,
                    "prepare_threshold": None,
                    "on_failure": self._connect_failed,
                },
                connection_class=_PoolConnection,
                name=_POOL,
                min_size=1,
                max_size=_MAX_CONNECTIONS,
                max_idle=_MAX_IDLE_S,
                # Whoever needs a connection tries again; with a pool's own patience, a server
                # that is back would be seen a minute later.
                reconnect_timeout=0.0,
                configure=self._configure,
                check=_check_open,
                open=False,
            )
        await self._pool.open()
        return self._pool

    async def _configure(self, connection: Connection) -> None:
        # Behind a pooler it may hear what another one listens for, and would keep it.
        connection.add_notify_handler(lambda _: None)
        try:
            await self.check_version(connection)
        except StoreFailed as exc:
            self._failure = exc.args[0]
            raise

    def _connect_failed(self, exc: psycopg.Error) -> None:
        self._failure = self.failed(exc).args[0]


async def run(
    connection: Connection,
    statement: LiteralString,
    values: Mapping[str, object] | None = None,
) -> list[tuple[Any, ...]]:
    """The rows of a statement, whatever rows the app has set the connection to make."""
    async with connection.cursor(binary=True, row_factory=tuple_row) as cursor:
        await cursor.execute(statement, values)
        # It is None where there is nothing to be fetched. `description` would describe each column.
        return await cursor.fetchall() if cursor.rownumber is not None else []


@contextmanager
def time_limit(connection: Connection, seconds: float) -> Iterator[Callable[[], bool]]:
    """Break the connection off after `seconds`: what is awaited on it then ends with an error.

    Yields whether that has happened.
    """
    loop = asyncio.get_running_loop()
    timer = loop.call_later(seconds, _break_off, connection)
    try:
        yield lambda: loop.time() >= timer.when()
    finally:
        timer.cancel()


def _break_off(connection: Connection) -> None:
    with (
        suppress(psycopg.Error, OSError),  # it is closed already
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as stalled,
    ):
        stalled.shutdown(socket.SHUT_RDWR)


async def _check_open(connection: Connection) -> None:
    # A server that went away has closed it. Nothing else is to be read where nothing was asked.
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    if connection.pgconn.transaction_status != TransactionStatus.IDLE or poll.poll(0):
        await connection.close()  # or the pool would keep it
        raise psycopg.OperationalError("the server closed the connection")
