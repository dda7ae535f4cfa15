"""Hears which turns may be found now: `LISTEN` on a connection that proves that it still hears.

A notification is a hint: whoever waits looks for the rows all the same, now and then. So what is
not heard costs a moment, and no answer.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import psycopg

from paliadin_client.errors import StoreFailed
from paliadin_client.store.postgresql.database import (
    ANSWER_S,
    CHANNEL,
    Connection,
    Database,
    run,
    time_limit,
)
from paliadin_client.tasks import Tasks
from paliadin_contract.trace import safe_trace

_log = logging.getLogger(__name__)

#: How often the connection proves that it hears, in seconds, and how long a proof may take.
_PROOF_INTERVAL_S = 10.0
_PROOF_S = 5.0
#: When a connection that was lost is made again, and one to a pooler that passes nothing on.
_RETRY_S = 1.0
_RETRY_POOLER_S = 60.0
#: How long, in seconds, the turns to notify of gather after a notification: each is a commit.
_GATHER_S = 0.01
#: Begins the payload of a proof, and of no id.
_PROOF = " "
#: Where Supabase's pooler is in transaction mode, and where it is in session mode.
_SUPABASE_TRANSACTION, _SUPABASE_SESSION = "6543", "5432"

OnHint = Callable[[str | None], None]


class _PoolerBetween(Exception):
    """It answers, took `LISTEN`, and passes no notification on."""


class Notifier:
    """Notifies who waits for a turn: of the first at once, then of all that gathered, together.

    Where that fails, they find it when they look.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn_ids: set[str] = set()
        self._notifying: asyncio.Task[None] | None = None

    def notify(self, turn_id: str) -> None:
        """Notify of this turn soon. For an id that a payload cannot hold it says: any turn."""
        self._turn_ids.add("" if turn_id.startswith(_PROOF) else turn_id)
        if self._notifying is None or self._notifying.done():
            self._notifying = asyncio.create_task(self._send(), name="paliadin-notify")

    async def aclose(self) -> None:
        """Return when all notifications are sent, or have failed."""
        if self._notifying is not None:
            await asyncio.wait([self._notifying])

    async def _send(self) -> None:
        while self._turn_ids:
            turn_ids, self._turn_ids = self._turn_ids, set()
            try:
                await self._database.notify(turn_ids)
            except StoreFailed as exc:
                _log.debug("store.not_notified error=%s", exc)
            await anyio.sleep(_GATHER_S)


@asynccontextmanager
async def hints(database: Database, on_hint: OnHint) -> AsyncIterator[None]:
    """Call `on_hint` until the context ends, as `Store.hints` says."""
    listening = Tasks()
    listening.start(_listen(database, on_hint), "paliadin-listen")
    try:
        yield
    finally:
        await listening.end()


async def _listen(database: Database, on_hint: OnHint) -> None:
    has_failed = pooler_was_named = False
    while True:
        rest_s = _RETRY_S
        try:
            async with database.own_connection() as connection:
                await database.check_version(connection)
                await _start(connection)
                if has_failed:
                    has_failed = False
                    _log.info("store.listening store=%s", database.name)
                await _hear(database, connection, on_hint)
        except _PoolerBetween:
            database.has_sessions = False
            rest_s = _RETRY_POOLER_S
            if not pooler_was_named:
                pooler_was_named = True
                _log.warning(
                    "store.no_notifications store=%s: %s", database.name, _pooler(database)
                )
        except Exception as exc:  # noqa: BLE001 - whatever it is, hints must begin again
            if not has_failed:
                has_failed = True
                # Types and places of what is unexpected: its text may be anything.
                reason = _reason(database, exc)
                _log.error("store.listen_failed error=%s", reason)
        await anyio.sleep(rest_s)


async def _start(connection: Connection) -> None:
    try:
        with time_limit(connection, ANSWER_S):
            await run(connection, f"LISTEN {CHANNEL}")
    except psycopg.Error:
        if connection.closed:
            raise
        raise _PoolerBetween from None  # one that refuses it, and says so


async def _hear(database: Database, connection: Connection, on_hint: OnHint) -> None:
    """Pass notifications on, until the connection is lost or hears no more."""
    ears = _Ears(connection, on_hint)
    on_hint(None)  # what came before is heard by nobody
    has_heard = False
    try:
        while not ears.lost.is_set():
            hears = await _hears(database, ears)
            if hears is not False:
                # Its pooler, if there is one, keeps a session for each connection.
                has_heard = database.has_sessions = has_heard or hears is True
            elif not has_heard:
                ears.close()
                with database.asked(connection, ANSWER_S):
                    await run(connection, f"UNLISTEN {CHANNEL}")
                raise _PoolerBetween
            else:
                raise StoreFailed(f"{database.name}: nothing was heard for {_PROOF_S:g} s")
            with anyio.move_on_after(_PROOF_INTERVAL_S):
                await ears.lost.wait()
        raise StoreFailed(f"{database.name}: the connection that listens was lost")
    finally:
        ears.close()


async def _hears(database: Database, ears: _Ears) -> bool | None:
    """Whether it hears what another connection says: through itself it always does.

    None says that nothing was proven: that one could not speak, or this one is lost.
    """
    ears.proof, ears.heard = secrets.token_hex(8), anyio.Event()
    try:
        await database.notify([_PROOF + ears.proof])
    except StoreFailed:
        return None
    with anyio.move_on_after(_PROOF_S):
        await ears.heard.wait()
    return None if ears.lost.is_set() else ears.heard.is_set()


class _Ears:
    """Reads a connection whenever there is something to be read.

    Attributes:
        proof: what is to be heard next, as a proof.
        heard: set when it was.
        lost: set when the connection is.
    """

    def __init__(self, connection: Connection, on_hint: OnHint) -> None:
        self._pgconn = connection.pgconn
        self._on_hint = on_hint
        self._loop = asyncio.get_running_loop()
        self._socket = self._pgconn.socket
        self.proof = ""
        self.heard = anyio.Event()
        self.lost = anyio.Event()
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        """Read no more."""
        self._loop.remove_reader(self._socket)

    def _read(self) -> None:
        try:
            self._pgconn.consume_input()
        except psycopg.Error:
            self.close()
            self.lost.set()
            self.heard.set()
        while notification := self._pgconn.notifies():
            payload = notification.extra.decode(errors="replace")
            if not payload.startswith(_PROOF):
                self._on_hint(payload or None)
            elif payload == _PROOF + self.proof:
                self.heard.set()


def _pooler(database: Database) -> str:
    remedy = (
        f"name port {_SUPABASE_SESSION}, its session mode, instead of {_SUPABASE_TRANSACTION}"
        if database.port == _SUPABASE_TRANSACTION
        else "set its pool_mode=session, or name a port that is in session mode (Supabase: "
        f"{_SUPABASE_SESSION}), or the server itself"
    )
    return (
        "it takes LISTEN and passes no notification on, as a pooler in transaction mode does: "
        f"{remedy}. Until then, answers that another process received are looked for every 2 s"
    )


def _reason(database: Database, exc: Exception) -> str:
    if isinstance(exc, StoreFailed):
        return str(exc)
    if isinstance(exc, psycopg.Error):
        return str(database.failed(exc))
    return " | ".join(safe_trace(exc))
