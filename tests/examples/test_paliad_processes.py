"""`examples/go/paliad.go` in two processes on one PostgreSQL, with either of them killed."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from support.balancer import balancer
from support.callbacks import MARKER
from support.paliad import TABLE, Paliad, looks, opened, running
from support.pgbouncer import pgbouncer
from support.stalling_proxy import stalling_proxy
from support.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgresql import PostgreSQL

pytestmark = pytest.mark.slow


@pytest.fixture
def here(binary: str, database: PostgreSQL, tmp_path: Path) -> Iterator[Paliad]:
    """The process whose pages are open."""
    with running(database, [binary], tmp_path / "here") as paliad:
        yield paliad


@pytest.fixture
def there(binary: str, database: PostgreSQL, tmp_path: Path) -> Iterator[Paliad]:
    """The process that the callbacks come to."""
    with running(database, [binary], tmp_path / "there") as paliad:
        yield paliad


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(10) as pool:
        yield pool


def heard(paliad: Paliad, pool: ThreadPoolExecutor) -> None:
    """Return when a notification reaches this process: its page looks again for what is not there.

    The look of the process itself cannot do that, for it notifies pages of answered turns alone.
    """
    turn = paliad.ask()
    page = opened(paliad, pool, turn)

    def looks_again() -> bool:
        paliad.database.sql("SELECT pg_notify('paliadin_turns', :'turn')", turn=turn)
        return looks(paliad.database, turn) > 1

    until("a notification", looks_again)
    answer_by_itself(paliad, turn)
    paliad.database.sql("SELECT pg_notify('paliadin_turns', :'turn')", turn=turn)
    assert page.result(PATIENCE_S) == (200, MARKER)


def answer_by_itself(paliad: Paliad, turn: str) -> None:
    """Fill the row and notify nobody, as a process does that is killed between the two."""
    update = f"UPDATE {TABLE} SET response = :'answer' WHERE id = :'turn'"
    paliad.database.sql(update, turn=turn, answer=MARKER)


def test_what_the_other_process_received(
    here: Paliad, there: Paliad, pool: ThreadPoolExecutor
) -> None:
    """A page that is open at one process gets what came to the other: an answer, or a failure."""
    answered, failed = here.ask(), here.ask()
    pages = [opened(here, pool, turn) for turn in (answered, failed)]
    assert there.push(answered, response="eins") == 204
    assert there.push(failed, response=None) == 204
    results = [page.result(PATIENCE_S) for page in pages]
    assert results == [(200, "eins"), (502, "failed: empty\n")]


def test_notified(here: Paliad, there: Paliad, pool: ThreadPoolExecutor) -> None:
    """What is stored is notified in a statement of its own, with the id alone; each listens."""
    for each in (here, there):
        heard(each, pool)
    turn = here.ask()
    assert there.push(turn) == 204
    log = there.database.home / "log"
    sent = rf"execute <unnamed>: SELECT pg_notify\('paliadin_turns', \$1\)\n.* \$1 = '{turn}'\n"
    until("the notification", lambda: re.search(sent, log.read_text()))


def test_a_notification_that_nobody_sent(here: Paliad, pool: ThreadPoolExecutor) -> None:
    """What was stored by a process that died before it notified is found all the same."""
    turn = here.ask()
    page = opened(here, pool, turn)
    answer_by_itself(here, turn)
    assert page.result(PATIENCE_S) == (200, MARKER)


def test_killed_between_commit_and_acknowledgement(
    here: Paliad, there: Paliad, pool: ThreadPoolExecutor
) -> None:
    """What a killed process committed reaches the page, and is there once when it is sent again."""
    turn = here.ask()
    page = opened(here, pool, turn)
    with locked(here, f"SELECT FROM {TABLE} WHERE id = '{turn}' FOR UPDATE"):
        push = pool.submit(there.push, turn)
        until("the update to wait", lambda: waiting_for_locks(here.database))
        there.receiver.process.kill()
        there.receiver.process.wait(PATIENCE_S)
    with pytest.raises((HTTPException, OSError)):
        push.result(PATIENCE_S)
    # The server goes on with what it was asked.
    assert page.result(PATIENCE_S) == (200, MARKER)
    assert here.push(turn) == 204
    assert here.answer(turn) == MARKER


@contextmanager
def locked(paliad: Paliad, lock: str) -> Iterator[None]:
    """What this statement locks is held until the block ends, by no connection."""
    paliad.database.sql(f"BEGIN; {lock}; PREPARE TRANSACTION 'lock'")
    try:
        yield
    finally:
        paliad.database.sql("ROLLBACK PREPARED 'lock'")


def waiting_for_locks(database: PostgreSQL) -> int:
    """How many connections wait for one."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    return int(database.sql(count))


def test_behind_one_address(here: Paliad, there: Paliad, pool: ThreadPoolExecutor) -> None:
    """One of the two is killed: each page has its answer, at the latest when it is loaded again."""
    with balancer(here.receiver.port, there.receiver.port) as address:
        receiver = replace(here.receiver, port=address.port)
        both = replace(here, receiver=receiver)
        turns = [both.ask() for _ in range(8)]
        pages = [opened(both, pool, turn) for turn in turns]
        assert [both.push(turn, response=turn) for turn in turns[:2]] == [204, 204]
        there.receiver.process.kill()
        there.receiver.process.wait(PATIENCE_S)
        assert [both.push(turn, response=turn) for turn in turns[2:]] == [204] * 6
        results = []
        for turn, page in zip(turns, pages, strict=True):
            try:
                results.append(page.result(PATIENCE_S))
            except (HTTPException, OSError):
                results.append(both.page(turn))
        assert results == [(200, turn) for turn in turns]


def test_the_server_ends_the_listening_connection(
    here: Paliad, there: Paliad, pool: ThreadPoolExecutor
) -> None:
    """It is made anew, listens again, and what came meanwhile is found."""
    heard(here, pool)
    turn, later = here.ask(), here.ask()
    pages = [opened(here, pool, each) for each in (turn, later)]
    ended = here.database.sql("""
        SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE application_name = 'paliad-listener'
    """)
    assert int(ended) >= 1
    assert there.push(turn) == 204
    assert pages[0].result(PATIENCE_S) == (200, MARKER)
    heard(here, pool)
    assert there.push(later) == 204
    assert pages[1].result(PATIENCE_S) == (200, MARKER)
    said = [each for each in here.receiver.lines(0) if each.startswith("notifications: ")]
    assert any("terminating connection" in each for each in said)
    assert said[-1] == "notifications: connected"


def test_the_server_is_away(here: Paliad, there: Paliad, pool: ThreadPoolExecutor) -> None:
    """Whoever waits while it is down gets the answer when it is back; notifications come again."""
    turn = here.ask()
    page = opened(here, pool, turn)
    with here.database.down():
        assert there.push(turn) == 503
    assert there.push(turn) == 204
    assert page.result(PATIENCE_S) == (200, MARKER)
    heard(here, pool)


def test_a_connection_that_is_forgotten(
    binary: str, database: PostgreSQL, there: Paliad, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """Connections that are neither answered nor closed are given up, and made anew."""
    with stalling_proxy(database) as proxy:
        way = {"PGHOST": "127.0.0.1", "PGPORT": str(proxy.port)}
        with running(database, [binary], tmp_path / "here", **way) as here:
            heard(here, pool)
            turn = here.ask()
            page = opened(here, pool, turn)
            proxy.forget()
            assert there.push(turn) == 204
            assert page.result(PATIENCE_S) == (200, MARKER)
            heard(here, pool)


def test_through_a_pooler(
    binary: str, database: PostgreSQL, there: Paliad, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """In transaction mode a pooler swallows notifications, and neither answers nor statements."""
    with pgbouncer(database, "postgres", "transaction") as url:
        directory = unquote(url.partition("host=")[2])
        way = {"PGHOST": directory, "PGPORT": "6432"}
        with running(database, [binary], tmp_path / "here", **way) as here:
            turns = [here.ask() for _ in range(8)]
            pages = [opened(here, pool, turn) for turn in turns]
            for turn in turns[:4]:
                assert there.push(turn, response=turn) == 204
            own = [pool.submit(here.push, turn, response=turn) for turn in turns[4:]]
            assert [push.result(PATIENCE_S) for push in own] == [204] * 4
            results = [page.result(PATIENCE_S) for page in pages]
    assert results == [(200, turn) for turn in turns]


def test_more_pages_than_connections(here: Paliad) -> None:
    """More pages than the server takes connections look at once, and each gets its own answer."""
    insert = f"""
        INSERT INTO {TABLE} (id, user_id) SELECT gen_random_uuid(), :'user'
        FROM generate_series(1, 120) RETURNING id
    """
    turns = here.database.sql(insert, user=here.user).split()
    with ExitStack() as stack:
        pages = [stack.enter_context(closing(here.receiver.connect())) for _ in turns]
        with locked(here, f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE"):
            for turn, page in zip(turns, pages, strict=True):
                page.request("GET", f"/turns/{turn}", headers=here.cookie)
            until("pages to look", lambda: waiting_for_locks(here.database) >= 10)
        here.database.sql(f"UPDATE {TABLE} SET response = id WHERE response IS NULL")
        results = [page.getresponse().read().decode() for page in pages]
    assert results == turns
