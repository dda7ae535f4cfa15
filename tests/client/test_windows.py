"""A window's queue here and its lease elsewhere, at the moments between two steps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import pytest

from paliadin_client import StoreFailed, store_writes, windows
from paliadin_client.store.memory import MemoryStore
from paliadin_client.store.protocol import Window
from paliadin_client.store_writes import StoreWrites
from paliadin_client.tasks import Tasks
from paliadin_client.waiting import Waiters
from paliadin_client.windows import Windows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


class Store(MemoryStore):
    """In memory, with a clock of the test's; where `pause` is set, what was asked waits for it."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(clock=lambda: self.now)
        self.asked = anyio.Event()
        self.pause: anyio.Event | None = None

    async def hold(self, window: Window, ttl_s: float) -> Window:
        standing = await super().hold(window, ttl_s)
        await self._paused()
        return standing

    async def release(self, window: Window, reply: bytes | None = None) -> None:
        await self._paused()
        await super().release(window, reply)

    async def _paused(self) -> None:
        if self.pause is not None:
            self.asked.set()
            await self.pause.wait()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def writes() -> AsyncIterator[StoreWrites]:
    tasks = Tasks()
    yield StoreWrites(tasks)
    await tasks.end()


@pytest.fixture
def here(store: Store, writes: StoreWrites) -> Windows:
    return Windows(store, writes, Waiters())


def window(turn_id: str) -> Window:
    return Window("aichat:anna", "0f5c2a44", turn_id, "https://a.example.org")


async def hold(windows: Windows, turn_id: str) -> Window:
    with anyio.fail_after(10):
        return await windows.hold(window(turn_id), lambda _: None)


async def is_free(store: Store) -> bool:
    """Whether another process could have it."""
    store.pause = None
    standing = await store.hold(window("t-other"), 1)
    await store.release(window("t-other"))
    return standing.turn_id == "t-other"


async def test_lost_to_another_process(store: Store, here: Windows, writes: StoreWrites) -> None:
    """A lease that ran out is not renewed over that of another turn, and held up nobody here."""
    elsewhere = Windows(store, writes, Waiters())
    await hold(here, "t-1")
    store.now += windows.LEASE_S + 1
    await hold(elsewhere, "t-2")
    await here._renew_all()
    assert here._leased == {}
    await elsewhere.release(window("t-2"))
    assert (await hold(here, "t-3")).turn_id == "t-3"
    await here.release(window("t-1"))  # too late, and of no effect
    assert not await is_free(store)


async def test_renewed_in_time(store: Store, here: Windows) -> None:
    """Each renewal lets the lease last for its whole time again."""
    await hold(here, "t-1")
    for _ in range(5):
        store.now += windows.RENEW_S
        await here._renew_all()
    store.now += windows.LEASE_S - 1
    assert not await is_free(store)
    store.now += 2
    assert await is_free(store)


async def test_released_while_it_is_renewed(store: Store, here: Windows) -> None:
    """A window that is released while its renewal is under way is free in the end."""
    await hold(here, "t-1")
    store.pause = pause = anyio.Event()
    renewal = asyncio.ensure_future(here._renew_all())
    await store.asked.wait()
    store.pause = None
    await here.release(window("t-1"))
    await store.hold(window("t-1"), 30)  # as the database had it where the renewal came second
    pause.set()
    await renewal
    assert await is_free(store)


async def test_cancelled_while_it_is_granted(store: Store, here: Windows) -> None:
    """Who gives up at the moment in which he gets the window leaves it free."""
    store.pause = anyio.Event()
    waiting = asyncio.ensure_future(hold(here, "t-1"))
    await store.asked.wait()
    store.pause = None
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await is_free(store)
    assert here._queues == {}


async def test_a_write_that_hangs(
    store: Store,
    here: Windows,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who frees a window waits for a store that hangs for a moment only; it is freed afterwards."""
    monkeypatch.setattr(store_writes, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(store_writes, "_RETRY_S", 0.05)
    await hold(here, "t-1")
    store.pause = anyio.Event()
    await here.release(window("t-1"))
    assert "store.write_failed what=release" in caplog.text
    assert here._queues == {}
    store.pause = None
    assert (await hold(here, "t-2")).turn_id == "t-2"


async def test_moved(store: Store, here: Windows) -> None:
    """A window stays where it was moved to, also when its lease is renewed."""
    await hold(here, "t-1")
    await here.move(window("t-1"), "https://b.example.org")
    await here._renew_all()
    await here.release(window("t-1"))
    assert (await hold(here, "t-2")).host == "https://b.example.org"
    looked = await here.look(window("reset-1"))
    assert (looked.turn_id, looked.host) == ("t-2", "https://b.example.org")
    await here.release(window("t-2"))
    assert (await here.look(window("reset-1"))).turn_id is None
    assert await is_free(store)


async def test_renewal_goes_on(
    store: Store,
    here: Windows,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever fails in one renewal, the next one is made; the log holds no text of a fault."""
    monkeypatch.setattr(windows, "RENEW_S", 0.01)
    failures: list[Exception] = [ValueError("marker"), StoreFailed("the store is away")]
    made = anyio.Event()

    async def renew_all() -> None:
        if failures:
            raise failures.pop(0)
        made.set()

    monkeypatch.setattr(here, "_renew_all", renew_all)
    renewal = asyncio.ensure_future(here.renew())
    with anyio.fail_after(10):
        await made.wait()
    renewal.cancel()
    await asyncio.gather(renewal, return_exceptions=True)
    assert "ValueError" in caplog.text
    assert "the store is away" in caplog.text
    assert "marker" not in caplog.text
