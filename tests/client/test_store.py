"""One suite over all stores: what each of them promises to the processes that share it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import pytest
from support.client_hosts import until
from support.pushes import push
from support.ranks import RANKS, RankCase

from paliadin_client.store.memory import MemoryStore
from paliadin_client.store.protocol import Found, Push, Receipt, Store, Verdict, Window
from paliadin_client.store.selection import open_store
from paliadin_contract.callback import TurnCompleted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

TURN = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11"
OTHER = "7be1d0aa-5f0e-4c59-8a52-2d0a8a5a2a12"
ANNA, BEN = "0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a11", "7be1d0aa-5f0e-4c59-8a52-2d0a8a5a2a12"


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def stores(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[Store, Store]]:
    """One store as two processes have it; that in memory has only one."""
    if request.param == "memory":
        memory = MemoryStore()
        both: tuple[Store, Store] = memory, memory
    elif request.param == "sqlite":
        both = open_store(tmp_path / "inbox.sqlite3"), open_store(tmp_path / "inbox.sqlite3")
    else:
        url = request.getfixturevalue("database_url")
        both = open_store(url), open_store(url)
    yield both
    for store in both:
        await store.aclose()


async def receive(store: Store, one: Push, *, fails: bool = False) -> Verdict:
    async with store.receive(one) as receipt:
        if fails and receipt.verdict is Verdict.NEW:
            raise ZeroDivisionError
        return receipt.verdict


async def found(store: Store, turn_id: str) -> Found:
    return (await store.find([turn_id])).get(turn_id, Found())


async def response(store: Store, turn_id: str) -> str | None:
    """The answer that is found; None where there is none."""
    one = (await found(store, turn_id)).push
    return one.data.response if isinstance(one, TurnCompleted) else None


# What is received


async def test_new_then_known(stores: tuple[Store, Store]) -> None:
    """A push is new once, for whichever process it comes to."""
    first, second = stores
    assert await receive(first, push(TURN)) is Verdict.NEW
    assert [await receive(each, push(TURN)) for each in stores] == [Verdict.KNOWN] * 2
    assert await receive(second, push(OTHER)) is Verdict.NEW
    assert await receive(first, push(OTHER)) is Verdict.KNOWN


async def test_what_a_later_version_stored(stores: tuple[Store, Store]) -> None:
    """It is known, and what cannot be read of it is not found; in memory nothing is read again."""
    first, second = stores
    later = replace(push(TURN), body=b'{"type": "turn.later", "data": {}}')
    assert await receive(first, later) is Verdict.NEW
    assert await receive(second, push(TURN)) is Verdict.KNOWN
    if not isinstance(first, MemoryStore):
        assert await found(second, TURN) == Found()


async def test_not_stored(stores: tuple[Store, Store]) -> None:
    """What ends with an exception is not stored, and can be at once, by any process."""
    for store in stores:
        with pytest.raises(ZeroDivisionError):
            await receive(store, push(TURN), fails=True)
        assert await found(store, TURN) == Found()
    assert await receive(stores[0], push(TURN)) is Verdict.NEW


async def test_cancelled(stores: tuple[Store, Store]) -> None:
    """What is cancelled while it is being stored is not stored, and can be at once."""
    first, second = stores
    begun = anyio.Event()

    async def store() -> None:
        async with first.receive(push(TURN)):
            begun.set()
            await anyio.sleep_forever()

    task = asyncio.ensure_future(store())
    await begun.wait()
    assert await receive(second, push(TURN)) is Verdict.BUSY
    task.cancel()
    await asyncio.wait([task])
    assert await receive(second, push(TURN)) is Verdict.NEW


async def test_busy(stores: tuple[Store, Store]) -> None:
    """While a push is being stored, its turn and its id are nobody else's, and others' are free."""
    async with stores[0].receive(push(TURN)) as receipt:
        assert receipt.verdict is Verdict.NEW
        for store in stores:
            assert await found(store, TURN) == Found()
            assert await receive(store, push(TURN)) is Verdict.BUSY
            assert await receive(store, push(TURN, revision=2)) is Verdict.BUSY
            assert await receive(store, push(OTHER, submitted=TURN)) is Verdict.BUSY
            assert await receive(store, push(str(uuid4()))) is Verdict.NEW
        same_id = push(str(uuid4()), webhook_id=push(TURN).webhook_id)
        assert await receive(stores[0], same_id) is Verdict.BUSY
    assert [await receive(each, push(TURN)) for each in stores] == [Verdict.KNOWN] * 2


async def test_same_id_of_two_turns(stores: tuple[Store, Store]) -> None:
    """An id that is known is known, whatever comes under it."""
    assert await receive(stores[0], push(TURN)) is Verdict.NEW
    other = push(OTHER, webhook_id=push(TURN).webhook_id)
    assert await receive(stores[1], other) is Verdict.KNOWN


async def test_32_at_once(stores: tuple[Store, Store]) -> None:
    """Of 32 pushes of one id at once exactly one is stored, and none waits for long."""
    verdicts: list[Verdict] = []

    async def one(store: Store) -> None:
        async with store.receive(push(TURN)) as receipt:
            verdicts.append(receipt.verdict)
            await anyio.sleep(0.05)

    async with anyio.create_task_group() as tasks:
        for number in range(32):
            tasks.start_soon(one, stores[number % 2])
    assert verdicts.count(Verdict.NEW) == 1
    assert set(verdicts) <= {Verdict.NEW, Verdict.BUSY, Verdict.KNOWN}


@pytest.mark.parametrize("case", RANKS, ids=lambda case: case.name)
async def test_ranks(stores: tuple[Store, Store], case: RankCase) -> None:
    """What is new, and what is found in the end, is as the table of ranks says."""
    files = {name: str(uuid4()) for name in "AB"}
    stored: str | None = None
    for number, each in enumerate(case.pushes):
        one = push(files[each.file], each.response, submitted=TURN, revision=each.revision)
        async with stores[number % 2].receive(one) as receipt:
            assert receipt.verdict in (Verdict.NEW, Verdict.OUTRANKED)
            if receipt.verdict is Verdict.NEW:
                stored = each.response
    assert stored == case.end
    assert [await response(each, TURN) for each in stores] == [case.end] * 2


async def test_connection(stores: tuple[Store, Store]) -> None:
    """There is a connection where the store says so, and only where something is stored."""
    async with stores[0].receive(push(TURN)) as receipt:
        assert (receipt.connection is not None) == stores[0].has_connection
    async with stores[0].receive(push(TURN)) as receipt:
        assert receipt == Receipt(Verdict.KNOWN)


# What is found


async def test_found(stores: tuple[Store, Store]) -> None:
    """A push is found by the submitted id and by its own, and what is not there is left out."""
    one = push(TURN, submitted=OTHER)
    assert await receive(stores[0], one) is Verdict.NEW
    for store in stores:
        both = await store.find([TURN, OTHER, "nobodys"])
        assert both == {TURN: Found(one.callback), OTHER: Found(one.callback)}
        assert await store.find([]) == {}


async def test_failure_is_found(stores: tuple[Store, Store]) -> None:
    """A failure is found as well, until an answer outranks it."""
    failure, answer = push(TURN, None), push(TURN)
    await receive(stores[0], failure)
    assert await found(stores[1], TURN) == Found(failure.callback)
    await receive(stores[1], answer)
    assert await found(stores[0], TURN) == Found(answer.callback)


@pytest.mark.parametrize(
    "text",
    ["\0", "Frist \U0001f4c5 \u2028\ufffd", "\\x00'\";--%s$1{}", "x" * (24 << 20)],
    ids=["nul", "unicode", "quotes", "24 MiB"],
)
async def test_bodies(stores: tuple[Store, Store], text: str) -> None:
    """Whatever an answer holds is found as it came."""
    one = push(TURN, text)
    assert await receive(stores[0], one) is Verdict.NEW
    assert await found(stores[1], TURN) == Found(one.callback)


async def test_replies(stores: tuple[Store, Store]) -> None:
    """The last reply that was left is found, with and without a push."""
    first, second = stores
    await first.leave_reply(TURN, b"\0 first")
    assert await found(second, TURN) == Found(None, b"\0 first")
    one = push(TURN)
    assert await receive(first, one) is Verdict.NEW
    await second.leave_reply(TURN, b"second")
    assert [await found(each, TURN) for each in stores] == [Found(one.callback, b"second")] * 2
    assert await receive(second, one) is Verdict.KNOWN


async def test_pruned(stores: tuple[Store, Store]) -> None:
    """Pruning removes nothing that somebody can ask for."""
    one, window = push(TURN), Window("pane", ANNA, TURN, "mriver")
    await receive(stores[0], one)
    await stores[0].leave_reply(TURN, b"reply")
    await stores[0].hold(window, 60)
    for store in stores:
        await store.prune()
    assert await found(stores[1], TURN) == Found(one.callback, b"reply")
    assert await receive(stores[1], one) is Verdict.KNOWN
    assert await stores[1].hold(replace(window, turn_id=OTHER), 60) == window


async def test_used_after_its_end(stores: tuple[Store, Store]) -> None:
    """A store that let go of everything is used again as if nothing had been."""
    one = push(TURN)
    await receive(stores[0], one)
    for store in stores:
        await store.aclose()
        await store.aclose()
        assert await receive(store, one) is Verdict.KNOWN
        assert await found(store, TURN) == Found(one.callback)


# Hints


@asynccontextmanager
async def hinted(store: Store) -> AsyncIterator[list[str | None]]:
    """What the store hints at, once it has begun to."""
    hints: list[str | None] = []
    async with store.hints(hints.append):
        await until(lambda: None in hints)
        yield hints


async def until_hinted(hints: list[str | None], *turn_ids: str) -> None:
    """Return when there was a hint for each of these turns, or one for any, beside the first."""
    await until(lambda: {*turn_ids} <= {*hints} or hints.count(None) > 1)


async def test_hints(stores: tuple[Store, Store]) -> None:
    """Each process is notified of what is stored, left or freed by any other, and of itself."""
    first, second = stores
    window = Window("pane", ANNA, "freed", None)
    async with hinted(first) as here, hinted(second) as there:
        await receive(first, push(TURN, submitted="pushed"))
        await first.leave_reply("replied", b"reply")
        await first.hold(window, 60)
        await first.release(window, b"reply")
        await until_hinted(here, "pushed", "replied", "freed")
        await until_hinted(there, "pushed", "replied", "freed")


async def test_no_hint_of_what_is_not_there(stores: tuple[Store, Store]) -> None:
    """By the time that a hint comes, what it is about is found."""
    first, second = stores
    async with hinted(second) as hints:
        hints.clear()
        async with first.receive(one := push(TURN)) as receipt:
            assert receipt.verdict is Verdict.NEW
            assert TURN not in hints
        await until(lambda: bool(hints))
        assert await found(second, TURN) == Found(one.callback)


async def test_hints_end(stores: tuple[Store, Store]) -> None:
    """After its context nobody is called any more."""
    async with hinted(stores[1]) as hints:
        pass
    count = len(hints)
    async with hinted(stores[1]) as later:
        await receive(stores[0], push(TURN))
        await until_hinted(later, TURN)
    assert len(hints) == count


# Windows


async def test_one_turn_at_a_time(stores: tuple[Store, Store]) -> None:
    """A window is one turn's until it is released, for every process."""
    first, second = stores
    window = Window("pane", ANNA, TURN, "mriver")
    assert await first.hold(window, 60) == window
    for store in stores:
        assert await store.hold(replace(window, turn_id=OTHER, host="other"), 60) == window
        assert await store.hold(window, 60) == window  # renewed
    assert (await second.hold(replace(window, name="another pane"), 60)).turn_id == TURN
    await second.release(replace(window, turn_id=OTHER))  # is not its own
    assert (await second.hold(replace(window, turn_id=OTHER), 60)).turn_id == TURN
    await second.release(window)
    await second.release(window)
    assert (await second.hold(replace(window, turn_id=OTHER), 60)).turn_id == OTHER


async def test_released_with_a_reply(stores: tuple[Store, Store]) -> None:
    """With the window that is freed a reply is left, whoever has the window by then."""
    first, second = stores
    window = Window("pane", ANNA, TURN, "mriver")
    await first.leave_reply(TURN, b"before")
    await first.hold(window, 60)
    await first.release(window, b"\0 reply")
    assert await found(second, TURN) == Found(None, b"\0 reply")
    other = replace(window, turn_id=OTHER)
    assert await second.hold(other, 60) == other
    await first.release(window, b"later")
    assert [await found(each, TURN) for each in stores] == [Found(None, b"later")] * 2
    assert await first.hold(window, 60) == other


async def test_held_for_a_time(stores: tuple[Store, Store]) -> None:
    """Whoever does not renew it loses the window, and gets no other's by releasing it."""
    window = Window("pane", ANNA, TURN, "mriver")
    other = replace(window, turn_id=OTHER)
    await stores[0].hold(window, 0.05)

    async def taken() -> bool:
        return await stores[1].hold(other, 60) == other

    with anyio.fail_after(10):
        while not await taken():  # noqa: ASYNC110 - time that passes gives no event
            await anyio.sleep(0.01)
    assert await stores[0].hold(window, 60) == other
    await stores[0].release(window)
    assert await stores[0].hold(window, 60) == other


async def test_of_32_one_holds_it(stores: tuple[Store, Store]) -> None:
    """Of 32 turns that want a window at once exactly one has it."""
    held: list[str | None] = []

    async def hold(number: int) -> None:
        window = Window("pane", ANNA, f"turn-{number}", "mriver")
        held.append((await stores[number % 2].hold(window, 60)).turn_id)

    async with anyio.create_task_group() as tasks:
        for number in range(32):
            tasks.start_soon(hold, number)
    assert len(set(held)) == 1


async def test_whose_it_is(stores: tuple[Store, Store]) -> None:
    """A window stays its first user's, free or not, and another gets neither it nor its host."""
    window = Window("pane", ANNA, TURN, "mriver")
    other = Window("pane", BEN, OTHER, "other")
    await stores[0].hold(window, 60)
    assert await stores[1].hold(other, 60) == window
    await stores[0].release(window)
    for store in stores:
        assert await store.hold(other, 60) == replace(window, turn_id=None)
    assert await stores[1].hold(window, 60) == window


async def test_where_it_is(stores: tuple[Store, Store]) -> None:
    """A window keeps its host, until the turn that has it moves it."""
    first, second = stores
    window = Window("pane", ANNA, TURN, None)
    assert (await first.hold(window, 60)).host is None
    assert (await second.hold(replace(window, host="mriver"), 60)).host == "mriver"
    await first.move(replace(window, turn_id=OTHER, host="not its own"))
    assert (await second.hold(window, 60)).host == "mriver"
    await first.move(replace(window, host="moved"))
    await second.release(window)
    other = replace(window, turn_id=OTHER, host="mriver")
    assert await second.hold(other, 60) == replace(other, host="moved")
