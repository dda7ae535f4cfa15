from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from support.waiting import PATIENCE_S

from paliadin_sidecar.errors import Blocked, Busy
from paliadin_sidecar.outbox import event_rows, group_commit, queries
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.group_commit import GroupCommit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


class Oops(Exception):
    pass


def fail(_: Outbox) -> None:
    raise Oops


class Commits:
    """A group commit on a real outbox, and what it did."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outbox = Outbox(path, create=True)
        self.statements: list[str] = []
        self.threads: set[int] = set()
        self.woken = 0
        self.blocked: list[Blocked] = []
        self.blocked_nine_times = anyio.Event()
        self.unblocked = 0
        self.group = GroupCommit(self.outbox, self._wake, self._block, self._unblock)
        self.outbox.connection.set_trace_callback(self._trace)

    def _wake(self) -> None:
        self.woken += 1

    def _block(self, exc: Blocked) -> None:
        self.blocked.append(exc)
        if len(self.blocked) == 9:
            self.blocked_nine_times.set()

    def _unblock(self) -> None:
        self.unblocked += 1

    def _trace(self, statement: str) -> None:
        self.statements.append(statement)
        self.threads.add(threading.get_ident())

    @property
    def count(self) -> int:
        return self.statements.count("COMMIT")

    async def write(self, n: int) -> None:
        """Write one event."""
        await self.group.commit_when_possible(
            event_rows.record_service_event, "service.started", {"n": n}
        )

    async def write_lagging(self, n: int) -> None:
        """Write one event, which can wait."""
        await self.group.commit_with_next(
            event_rows.record_service_event, "service.started", {"n": n}
        )

    def durable(self) -> list[int]:
        """What is durable: read by another connection."""
        with closing(Outbox(self.path)) as other:
            return [event.fields["n"] for event in event_rows.events(other, 0, 1000)]


@pytest.fixture
def commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commits]:
    monkeypatch.setattr(group_commit, "_MAX_LOCK_WAIT_S", 0.02)
    monkeypatch.setattr(group_commit, "BLOCKED_S", 0.01)
    made = Commits(tmp_path / FILENAME)
    yield made
    made.outbox.close()


async def test_one_transaction(commits: Commits) -> None:
    """Calls of one tick share a transaction on the event loop, and each gets its own result."""
    found: dict[int, int] = {}

    def last_event(outbox: Outbox, n: int) -> int:
        event_rows.record_service_event(outbox, "service.started", {"n": n})
        return outbox.last_event

    async def write(n: int) -> None:
        found[n] = await commits.group.commit(last_event, n)

    async with anyio.create_task_group() as callers:
        for n in range(200):
            callers.start_soon(write, n)
    assert commits.count == 1
    assert commits.threads == {threading.get_ident()}
    assert found == {n: n + 1 for n in range(200)}
    assert commits.durable() == list(range(200))


async def test_who_waits_goes_on_after_the_commit(commits: Commits) -> None:
    """When a call returns, and when those who print are woken, the event is durable."""
    seen: list[list[int]] = []
    commits.group._on_event = lambda: seen.append(commits.durable())
    await commits.write(0)
    seen.append(commits.durable())
    assert seen == [[0], [0]]


async def test_a_batch_has_a_bound(commits: Commits) -> None:
    """More calls than one transaction may hold go into several, in order."""
    async with anyio.create_task_group() as callers:
        for n in range(600):
            callers.start_soon(commits.write, n)
    assert commits.durable() == list(range(600))
    assert commits.count == 3


async def test_one_that_fails_costs_no_other(commits: Commits) -> None:
    """Whoever failed gets the error; those who shared the transaction are done all the same."""
    errors: list[Exception] = []

    async def failing() -> None:
        try:
            await commits.group.commit_when_possible(fail)
        except Oops as exc:
            errors.append(exc)

    async with anyio.create_task_group() as callers:
        for n in range(5):
            callers.start_soon(commits.write, n)
            callers.start_soon(failing)
    assert len(errors) == 5
    assert commits.durable() == [0, 1, 2, 3, 4]


async def test_who_is_woken(commits: Commits) -> None:
    """Whoever prints is woken after each transaction with events, and after no other."""
    await commits.group.commit(queries.counts)
    assert commits.woken == 0
    await commits.write(0)
    assert commits.woken == 1


async def test_who_is_woken_after_a_failure(commits: Commits) -> None:
    """An event whose transaction failed, and that is written later, wakes them then."""

    def half(outbox: Outbox) -> None:
        event_rows.record_service_event(outbox, "service.started", {"n": 0})
        fail(outbox)

    with pytest.raises(Oops):
        await commits.group.commit(half)
    assert commits.woken == 0
    await commits.write(1)
    assert commits.woken == 1
    assert commits.durable() == [1]


@pytest.mark.parametrize(
    "call", [fail, lambda outbox: event_rows.record_service_event(outbox, "x", {"n": 1})]
)
async def test_a_caller_that_is_cancelled(commits: Commits, call: Callable[[Outbox], None]) -> None:
    """Who is cancelled while it waits has its call done, once, and takes nobody along."""
    async with anyio.create_task_group() as callers:
        callers.start_soon(commits.group.commit, call)
        callers.start_soon(commits.write, 2)
        await anyio.lowlevel.checkpoint()
        callers.cancel_scope.cancel()
    await commits.group.commit(queries.counts)
    assert commits.durable() == ([2] if call is fail else [1, 2])


async def test_blocked(commits: Commits) -> None:
    """While another holds the lock each call waits, and says so; it is done as soon as it may."""
    other = sqlite3.connect(commits.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with anyio.create_task_group() as callers:
        for n in range(3):
            callers.start_soon(commits.write, n)
        with anyio.fail_after(PATIENCE_S):
            await commits.blocked_nine_times.wait()
        with pytest.raises(Busy):
            await commits.group.commit(queries.counts)
        assert commits.count == 0
        other.close()
    assert {type(one) for one in commits.blocked} == {Busy}
    assert commits.unblocked == 3
    assert sorted(commits.durable()) == [0, 1, 2]


async def test_another_s_lock_does_not_hold_the_event_loop(
    commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a command writes, all else goes on; then the call is done, and nothing is reported."""
    monkeypatch.setattr(group_commit, "_MAX_LOCK_WAIT_S", PATIENCE_S)
    with closing(sqlite3.connect(commits.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as callers:
            callers.start_soon(commits.write, 0)
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            callers.start_soon(commits.write, 1)
            await anyio.lowlevel.checkpoint()
            assert commits.count == 0
            other.execute("COMMIT")
    assert commits.durable() == [0, 1]
    assert commits.count == 1
    assert commits.blocked == []


async def test_under_load_what_comes_meanwhile_shares_a_transaction(
    commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for its time; who is cancelled has it begin at once, and nothing of it is lost."""
    monkeypatch.setattr(group_commit, "_APART_S", 3600.0)
    await commits.write(0)
    later = commits.group.submit(event_rows.record_service_event, "service.started", {"n": 1})
    with anyio.move_on_after(0):
        await commits.write(2)
    await later
    assert commits.durable() == [0, 1, 2]
    assert commits.count == 2


async def test_what_can_wait_is_done_with_the_next_one(
    commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before what comes after it, in one transaction."""
    monkeypatch.setattr(group_commit, "_LAG_S", PATIENCE_S)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commits.write_lagging, 1)
        await anyio.lowlevel.checkpoint()
        await commits.write(2)
    assert commits.durable() == [1, 2]
    assert commits.count == 1


async def test_what_can_wait_does_not_wait_for_ever(commits: Commits) -> None:
    await commits.write_lagging(1)
    assert commits.durable() == [1]


async def test_so_many_that_can_wait_are_enough(
    commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a crash leaves no more of them unrecorded."""
    monkeypatch.setattr(group_commit, "_LAG_S", PATIENCE_S)
    monkeypatch.setattr(group_commit, "_MAX_LAGGING", 3)
    async with anyio.create_task_group() as tasks:
        for n in range(3):
            tasks.start_soon(commits.write_lagging, n)
    assert sorted(commits.durable()) == [0, 1, 2]
    assert commits.count == 1


async def test_what_can_wait_is_done_where_its_caller_is_cancelled(
    commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "_LAG_S", PATIENCE_S)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commits.write_lagging, 1)
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    await anyio.lowlevel.checkpoint()
    assert commits.durable() == [1]
