"""What reaches who waits in one process from the store that others fill."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from support.client_hosts import until
from support.pushes import push

from paliadin_client import watching as module
from paliadin_client.errors import StoreFailed
from paliadin_client.store.memory import MemoryStore
from paliadin_client.waiting import Waiters
from paliadin_client.watching import StoreWatcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

    from paliadin_client.store.protocol import Found

pytestmark = pytest.mark.anyio

TURN = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11"


class Shared(MemoryStore):
    """As other processes' store: hints get lost, it goes away, and what is asked is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.hints_fail: BaseException | None = None
        self.hints_lost = False
        self.away = False
        self.finds: list[int] = []

    @asynccontextmanager
    async def hints(self, on_hint: Callable[[str | None], None]) -> AsyncIterator[None]:
        if self.hints_fail:
            raise self.hints_fail
        async with super().hints(_nothing if self.hints_lost else on_hint):
            yield

    async def find(self, turn_ids: Collection[str]) -> Mapping[str, Found]:
        self.finds.append(len(turn_ids))
        if self.away:
            raise StoreFailed("the store example is away")
        return await super().find(turn_ids)

    async def store(self, turn_id: str = TURN) -> None:
        async with self.receive(push(turn_id)):
            pass


def _nothing(_: str | None) -> None:
    pass


@pytest.fixture
def store() -> Shared:
    return Shared()


@pytest.fixture
def waiters() -> Waiters:
    return Waiters()


async def test_hint(store: Shared, waiters: Waiters) -> None:
    """What another process stored is there at the hint: neither sooner nor two seconds later."""
    async with StoreWatcher(store, waiters).running():
        await until(lambda: bool(store._listeners))
        with waiters.expect(TURN) as waiter:
            await store.store("another-turn")
            await anyio.lowlevel.checkpoint()
            assert store.finds == []
            await store.store()
            with anyio.fail_after(module.LOOK_S / 2):
                await waiter.arrived.wait()
    assert store.finds == [1]


async def test_hint_while_it_prunes(
    store: Shared, waiters: Waiters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits until old rows are removed, which may take a while."""
    prunes = anyio.Event()

    async def prune() -> None:
        prunes.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(store, "prune", prune)
    watcher = StoreWatcher(store, waiters)
    monkeypatch.setattr(watcher._pruner, "_due", 0)
    async with watcher.running():
        await until(lambda: bool(store._listeners))
        with waiters.expect(TURN) as waiter, anyio.fail_after(module.LOOK_S / 2):
            with waiters.expect("other"):
                await store.store("other")
                await prunes.wait()
            await store.store()
            await waiter.arrived.wait()


async def test_reply(store: Shared, waiters: Waiters) -> None:
    """A reply that another process left is there as well."""
    async with StoreWatcher(store, waiters).running():
        with waiters.expect(TURN) as waiter, anyio.fail_after(10):
            await store.leave_reply(TURN, b"reply")
            await waiter.changed.wait()
    assert waiter.reply == b"reply"


@pytest.mark.parametrize("hints", ["lost", "refused", "broken"])
async def test_without_hints(
    store: Shared, waiters: Waiters, hints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of hints, who waits has it after the next look."""
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    store.hints_lost = hints == "lost"
    store.hints_fail = {"refused": StoreFailed("no"), "broken": ValueError("x")}.get(hints)
    async with StoreWatcher(store, waiters).running():
        with waiters.expect(TURN) as waiter, anyio.fail_after(10):
            await until(lambda: len(store.finds) > 1)
            await store.store()
            await waiter.arrived.wait()


async def test_while_nobody_waits(
    store: Shared, waiters: Waiters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is asked for nothing until somebody waits, nor afterwards, nor for who has it."""
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    async with StoreWatcher(store, waiters).running():
        await store.store("hinted")
        await anyio.sleep(0.2)
        assert store.finds == []
        with waiters.expect(TURN):
            await until(lambda: len(store.finds) > 2)
            waiters.offer(push(TURN).callback)
            count = len(store.finds)
            await anyio.sleep(0.2)
        await anyio.sleep(0.2)
    assert len(store.finds) <= count + 1  # one may have been under way


async def test_away(
    store: Shared,
    waiters: Waiters,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the store is away people go on waiting; the log says so once, and when it is back."""
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    caplog.set_level(logging.INFO)
    store.away = True
    async with StoreWatcher(store, waiters).running():
        with waiters.expect(TURN) as waiter, anyio.fail_after(10):
            await store.store()
            await until(lambda: len(store.finds) > 3)
            store.away = False
            await waiter.arrived.wait()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "store.away waiting=1 error=store_failed: the store example is away",
        "store.back",
    ]


async def test_when_hints_begin(store: Shared, waiters: Waiters) -> None:
    """What was stored before hints began is looked for when they do."""
    with waiters.expect(TURN) as waiter:
        await store.store()
        async with StoreWatcher(store, waiters).running():
            with anyio.fail_after(module.LOOK_S / 2):
                await waiter.arrived.wait()


async def test_many(store: Shared, waiters: Waiters) -> None:
    """Thousands who wait are looked for in portions."""
    turns = [f"turn-{number}" for number in range(1234)]
    await store.store(turns[-1])
    with waiters.expect(turns[-1]) as waiter:
        await StoreWatcher(store, waiters).look_for(turns)
        assert waiter.push is not None
    assert store.finds == [500, 500, 234]


async def test_two_apps_in_one_process(
    store: Shared, waiters: Waiters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two watch for the same waiters, the end of one leaves the other at work."""
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    store.hints_lost = True
    async with StoreWatcher(store, waiters).running():
        async with StoreWatcher(store, waiters).running():
            pass
        with waiters.expect(TURN) as waiter, anyio.fail_after(10):
            await store.store()
            await waiter.arrived.wait()


async def test_its_end(store: Shared, waiters: Waiters) -> None:
    """It leaves no task behind, and an error of its context comes out as it is."""
    before = asyncio.all_tasks()
    with pytest.raises(ZeroDivisionError):
        async with StoreWatcher(store, waiters).running():
            raise ZeroDivisionError
    assert asyncio.all_tasks() == before
    assert waiters.on_wait == []
    assert store._listeners == []


async def test_begun_and_ended_in_two_tasks(store: Shared, waiters: Waiters) -> None:
    """A framework may end it in another task than the one that began it."""
    context = StoreWatcher(store, waiters).running()
    await asyncio.create_task(context.__aenter__())
    with waiters.expect(TURN) as waiter, anyio.fail_after(10):
        await store.store()
        await waiter.arrived.wait()
    await asyncio.create_task(context.__aexit__(None, None, None))
