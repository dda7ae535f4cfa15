"""What an app remembers, in PostgreSQL: in the same transaction as what the app itself stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from psycopg.pq import TransactionStatus

from paliadin_client.errors import StoreFailed
from paliadin_client.store.postgresql.conninfo import Conninfo
from paliadin_client.store.postgresql.database import (
    ANSWER_S,
    Connection,
    Database,
    run,
    time_limit,
)
from paliadin_client.store.postgresql.listening import Notifier, hints
from paliadin_client.store.postgresql.pruning import prune
from paliadin_client.store.protocol import (
    Found,
    Push,
    Receipt,
    Verdict,
    Window,
    callback_in,
)
from paliadin_contract.rank import Rank, outranks, rank_of

#: How long a push may take to be stored, the app's own part included: as long as a sidecar's
#: longest attempt. After that the connection is broken off here, and the server gives up what it
#: waits for or works at, so that the turn is free for the next attempt, also where a machine
#: vanished in the middle.
_RECEIVE_S = 60.0
#: How much later `on_turn` is cancelled, if it waits for something else than that connection.
_CANCEL_S = 1.0
#: How long a statement may take that carries bodies.
_BODIES_S = 15.0

# Claims the turn and the push, until the transaction ends, and reads what is known of them. A
# claim is no row, since a second INSERT of an id waits for the first one's transaction.
_CLAIM = """
    SELECT
        pg_try_advisory_xact_lock(hashtextextended('paliadin turn ' || %(turn)s::text, 0))
            AND pg_try_advisory_xact_lock(hashtextextended('paliadin id ' || %(id)s::text, 0)),
        EXISTS (SELECT FROM paliadin.pushes WHERE webhook_id = %(id)s),
        standing.file, standing.answered, standing.revision,
        set_config('idle_in_transaction_session_timeout', %(limit)s, true),
        set_config('statement_timeout', %(limit)s, true)
    FROM (VALUES (1)) AS always LEFT JOIN paliadin.turns AS standing ON standing.turn = %(turn)s"""
# Stores the push. Somebody may have stored one after `claim` began to read, and before it had the
# claim: then the id is there, or the rank is another one, and nothing is stored.
_STORE = """
    WITH pushed AS (
        INSERT INTO paliadin.pushes (webhook_id, turn) VALUES (%(id)s, %(turn)s)
        ON CONFLICT DO NOTHING RETURNING turn
    )
    INSERT INTO paliadin.turns AS standing (turn, turn_id, file, answered, revision, body)
    SELECT turn, %(turn_id)s, %(file)s, %(answered)s, %(revision)s, %(body)b FROM pushed
    ON CONFLICT (turn) DO UPDATE SET
        turn_id = EXCLUDED.turn_id, file = EXCLUDED.file, answered = EXCLUDED.answered,
        revision = EXCLUDED.revision, body = EXCLUDED.body, stored_at = now()
    WHERE (standing.file, standing.answered, standing.revision)
        = (%(old_file)s::text, %(old_answered)s::boolean, %(old_revision)s::bigint)
    RETURNING 1"""
# What there is for these turns, under either of their ids.
_FIND = """
    SELECT turn, turn_id, body, NULL::bytea FROM paliadin.turns
    WHERE body IS NOT NULL
        AND (turn = ANY(%(ids)s) OR turn_id = ANY(%(ids)s) AND turn_id <> turn)
    UNION ALL
    SELECT turn, turn, NULL, reply FROM paliadin.replies WHERE turn = ANY(%(ids)s)"""
_LEAVE_REPLY = """
    INSERT INTO paliadin.replies (turn, reply) VALUES (%(turn_id)s, %(reply)b)
    ON CONFLICT (turn) DO UPDATE SET reply = EXCLUDED.reply, left_at = now()"""
# Takes a window that is free, or renews it, and reads it where it is neither. The times are the
# server's, since the processes' clocks may differ.
_HOLD = """
    WITH held AS (
        INSERT INTO paliadin.windows AS standing (name, user_id, turn_id, host, expires_at)
        VALUES (%(name)s, %(user_id)s, %(turn_id)s, %(host)s,
            now() + %(ttl_s)s * interval '1 second')
        ON CONFLICT (name) DO UPDATE SET
            turn_id = EXCLUDED.turn_id, expires_at = EXCLUDED.expires_at, used_at = now(),
            host = coalesce(standing.host, EXCLUDED.host)
        WHERE standing.user_id = EXCLUDED.user_id AND (
            standing.turn_id IS NULL OR standing.turn_id = EXCLUDED.turn_id
            OR standing.expires_at < now())
        RETURNING user_id, turn_id, host
    )
    SELECT user_id, turn_id, host FROM held
    UNION ALL
    SELECT user_id, CASE WHEN expires_at >= now() THEN turn_id END, host FROM paliadin.windows
    WHERE name = %(name)s AND NOT EXISTS (SELECT FROM held)"""
_RELEASE = """
    UPDATE paliadin.windows SET turn_id = NULL, expires_at = NULL, used_at = now()
    WHERE name = %(name)s AND turn_id = %(turn_id)s"""
_RELEASE_AND_LEAVE_REPLY = f"WITH reply AS ({_LEAVE_REPLY}) {_RELEASE}"
_MOVE = """
    UPDATE paliadin.windows SET host = %(host)s WHERE name = %(name)s AND turn_id = %(turn_id)s"""


class PostgreSQLStore:
    """A store for all processes of an app, on all machines. `Store` says what each method does.

    Args:
        url: `postgresql://…`, as libpq takes it.

    Raises:
        ConfigError: the URL is none.
    """

    has_connection = True

    def __init__(self, url: str) -> None:
        self._database = Database(Conninfo.parse(url))
        self._notifier = Notifier(self._database)

    def __repr__(self) -> str:
        return f"PostgreSQLStore({self._database.name!r})"

    @asynccontextmanager
    async def receive(self, push: Push) -> AsyncIterator[Receipt]:
        """As `Store.receive`, with the connection of the transaction."""
        database = self._database
        async with database.connection_for_push() as connection, AsyncExitStack() as stack:
            with database.asked(connection, _BODIES_S):
                transaction = await stack.enter_async_context(connection.transaction())
                verdict = await _store(connection, push)
            # Its id may have been inserted, and would be known when it comes again.
            transaction.force_rollback = verdict is Verdict.BUSY
            try:
                async with asyncio.timeout(_RECEIVE_S + _CANCEL_S) as limit:
                    with time_limit(connection, _RECEIVE_S):
                        yield Receipt(verdict, connection if verdict is Verdict.NEW else None)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise StoreFailed(
                    f"{database.name}: on_turn was not done within {_RECEIVE_S:g} s"
                ) from None
            if connection.info.transaction_status != TransactionStatus.INTRANS:
                # COMMIT would roll back what has failed, and say nothing.
                raise StoreFailed(
                    f"{database.name}: the transaction is over or has failed: on_turn has ended "
                    "it, or caught a failed statement's error"
                )
            with database.asked(connection, ANSWER_S):
                await stack.pop_all().aclose()  # COMMIT
        if verdict is Verdict.NEW:
            self._notifier.notify(push.turn)

    async def find(self, turn_ids: Collection[str]) -> Mapping[str, Found]:
        """As `Store.find`."""
        values = {"ids": list(turn_ids)}
        found: dict[str, Found] = {}
        for turn, own_id, body, reply in await self._database.rows(_FIND, values, _BODIES_S):
            push = callback_in(body) if body is not None else None
            # An id that was submitted counts more than one that a host chose.
            for turn_id in {turn, own_id}.intersection(values["ids"]):
                known = found.get(turn_id, Found())
                if turn_id == turn or known.push is None:
                    found[turn_id] = Found(push or known.push, reply or known.reply)
        return found

    async def leave_reply(self, turn_id: str, reply: bytes) -> None:
        """As `Store.leave_reply`."""
        await self._database.rows(_LEAVE_REPLY, {"turn_id": turn_id, "reply": reply}, _BODIES_S)
        self._notifier.notify(turn_id)

    def hints(self, on_hint: Callable[[str | None], None]) -> AbstractAsyncContextManager[None]:
        """As `Store.hints`."""
        return hints(self._database, on_hint)

    async def hold(self, window: Window, ttl_s: float) -> Window:
        """As `Store.hold`."""
        values = _values(window) | {"ttl_s": ttl_s}
        while True:
            for user_id, turn_id, host in await self._database.rows(_HOLD, values, ANSWER_S):
                if user_id != window.user_id or turn_id is not None:
                    return Window(window.name, user_id, turn_id, host)
            # Somebody else made, took or removed it after the statement began, which therefore
            # reads it as it was before, and could not take it.

    async def release(self, window: Window, reply: bytes | None = None) -> None:
        """As `Store.release`."""
        values = _values(window)
        if reply is None:
            await self._database.rows(_RELEASE, values, ANSWER_S)
        else:
            values["reply"] = reply
            await self._database.rows(_RELEASE_AND_LEAVE_REPLY, values, _BODIES_S)
        if window.turn_id is not None:
            self._notifier.notify(window.turn_id)

    async def move(self, window: Window) -> None:
        """As `Store.move`."""
        await self._database.rows(_MOVE, _values(window), ANSWER_S)

    async def prune(self) -> None:
        """As `Store.prune`."""
        await prune(self._database)

    async def aclose(self) -> None:
        """As `Store.aclose`."""
        await self._notifier.aclose()
        await self._database.aclose()


async def _store(connection: Connection, push: Push) -> Verdict:
    """Store `push` in this transaction, if it is new and counts more than what is there."""
    rank = rank_of(push.callback)
    values: dict[str, object] = {
        "turn": push.turn,
        "id": push.webhook_id,
        "limit": f"{_RECEIVE_S:g}s",
    }
    ((is_claimed, is_known, *standing, _, _),) = await run(connection, _CLAIM, values)
    if not is_claimed:
        return Verdict.BUSY
    if is_known:
        return Verdict.KNOWN
    if not outranks(rank, Rank(*standing) if standing[0] is not None else None):
        return Verdict.OUTRANKED
    values |= {
        "turn_id": push.callback.data.turn_id,
        "file": rank.file,
        "answered": rank.answered,
        "revision": rank.revision,
        "body": push.body,
    } | dict(zip(("old_file", "old_answered", "old_revision"), standing, strict=True))
    return Verdict.NEW if await run(connection, _STORE, values) else Verdict.BUSY


def _values(window: Window) -> dict[str, object]:
    # `dataclasses.asdict` copies each value, which takes 15 µs.
    return {
        "name": window.name,
        "user_id": window.user_id,
        "turn_id": window.turn_id,
        "host": window.host,
    }
