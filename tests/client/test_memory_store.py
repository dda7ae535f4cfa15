"""What the store in memory forgets, and when."""

from __future__ import annotations

import pytest
from support.pushes import push

from paliadin_client.store import memory as module
from paliadin_client.store.memory import MemoryStore
from paliadin_client.store.protocol import KEEP_BODIES_S, Found, Push, Verdict

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock=clock)


async def receive(store: MemoryStore, one: Push) -> Verdict:
    async with store.receive(one) as receipt:
        return receipt.verdict


async def test_last_turns(store: MemoryStore) -> None:
    """The pushes of the last 10,000 turns are known, each turn with all its revisions."""
    turns = [[push(f"turn-{number}", revision=each) for each in (1, 2)] for number in range(10_001)]
    for pushes in turns:
        assert [await receive(store, each) for each in pushes] == [Verdict.NEW] * 2
    assert [await receive(store, each) for each in turns[1]] == [Verdict.KNOWN] * 2
    assert [await receive(store, each) for each in turns[0]] == [Verdict.NEW] * 2
    assert len(store._turns) == len(store._kept) == 10_000
    assert len(store._webhook_ids) == 20_000
    assert len(store._names) == 10_000


async def test_bytes(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest answers go where all are more than the limit; their pushes stay known."""
    pushes = [push(f"turn-{number}", "x" * 1000) for number in range(5)]
    monkeypatch.setattr(module, "_MAX_KEPT_BYTES", 3 * len(pushes[0].body))
    for each in pushes:
        await receive(store, each)
    turns = [each.turn for each in pushes]
    assert list(await store.find(turns)) == turns[2:]
    assert [await receive(store, each) for each in pushes] == [Verdict.KNOWN] * 5
    await store.leave_reply("turn-2", b"1")  # makes it the newest
    assert list(await store.find(turns)) == ["turn-2", "turn-4"]
    for _ in range(3):  # what takes another's place counts once
        await store.leave_reply("turn-2", b"2")
    assert list(await store.find(turns)) == ["turn-2", "turn-4"]
    await receive(store, push("turn-5", "x" * 4000))
    assert list(await store.find([*turns, "turn-5"])) == []
    assert (store._kept, store._names, store._kept_bytes) == ({}, {}, 0)


async def test_age(store: MemoryStore, clock: Clock) -> None:
    """Nobody finds an answer that is older than anybody can wait; its push stays known."""
    old, new = push("old"), push("new", submitted="submitted")
    await receive(store, old)
    clock.now += 10
    await receive(store, new)
    clock.now += KEEP_BODIES_S - 5
    assert await store.find(["old", "new"]) == {"new": Found(new.callback)}
    clock.now += 10
    await store.prune()
    assert (store._kept, store._names, store._kept_bytes) == ({}, {}, 0)
    assert await receive(store, old) is Verdict.KNOWN
