"""`submit` and `result`, here and elsewhere, and that a window has one turn at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio
import pytest
from support.client_hosts import ANSWER, HALF, Drops, Fails, until
from support.pushes import push

from paliadin_client import (
    AnswerUnusable,
    BackendTimeout,
    BadRequest,
    Exchange,
    Inbox,
    Paliadin,
    PaliadinError,
    ShimError,
    StoreFailed,
    TurnRequest,
    TurnTimeout,
    User,
    store_writes,
    submission,
    turn,
    windows,
)
from paliadin_client.connection import open_hosts
from paliadin_client.result import TurnResult
from paliadin_client.settings import Settings
from paliadin_client.store.memory import MemoryStore
from paliadin_client.watching import StoreWatcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.client_hosts import Host, Seen, Sidecar

    from paliadin_client.store.protocol import Found, Push, Receipt, Window

pytestmark = pytest.mark.anyio

ANNA = User("0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a11")
BEN = User("7be1d0aa-5f0e-4c59-8a52-2d0a8a5a2a12")
#: For what must be over before a deadline: an ssh connection takes as long as the machine is busy.
over_http = pytest.mark.parametrize("host", ["aichat"], indirect=True)
TEXT = ANSWER.partition("\n\n[paliadin-meta]")[0]


def ask(user: User = ANNA, message: str = "?") -> TurnRequest:
    return TurnRequest(user=user, message=message)


class Gate:
    """A host's script that answers a turn when the test says so."""

    def __init__(self, host: Host) -> None:
        self.at_work: list[str] = []
        self.most = 0
        self.order: list[str] = []
        self._go: dict[str, anyio.Event] = {}
        host.script = self

    async def __call__(self, seen: Seen) -> str:
        self.at_work.append(seen.turn_id)
        self.order.append(seen.turn_id)
        self.most = max(self.most, len(self.at_work))
        try:
            await self._go.setdefault(seen.turn_id, anyio.Event()).wait()
        finally:
            self.at_work.remove(seen.turn_id)
        return ANSWER

    def open(self, request: TurnRequest) -> None:
        self._go.setdefault(request.turn_id, anyio.Event()).set()

    async def has(self, request: TurnRequest) -> None:
        await until(lambda: self.at_work == [request.turn_id])


class AwayStore:
    """A store that can be away; else it is the one in memory."""

    has_connection = False

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.away = False
        self.asked = 0

    def _here(self) -> MemoryStore:
        self.asked += 1
        if self.away:
            raise StoreFailed("the store is away")
        return self.inner

    def receive(self, push: Push) -> AbstractAsyncContextManager[Receipt]:
        return self._here().receive(push)

    async def find(self, turn_ids: Collection[str]) -> Mapping[str, Found]:
        return await self._here().find(turn_ids)

    async def leave_reply(self, turn_id: str, reply: bytes) -> None:
        await self._here().leave_reply(turn_id, reply)

    def hints(self, on_hint: Callable[[str | None], None]) -> AbstractAsyncContextManager[None]:
        return self.inner.hints(on_hint)

    async def hold(self, window: Window, ttl_s: float) -> Window:
        return await self._here().hold(window, ttl_s)

    async def release(self, window: Window, reply: bytes | None = None) -> None:
        await self._here().release(window, reply)

    async def move(self, window: Window) -> None:
        await self._here().move(window)

    async def prune(self) -> None:
        await self._here().prune()

    async def aclose(self) -> None:
        pass


class Apps:
    """Processes of one app, but for the process: each has its own `Paliadin`, all one store."""

    def __init__(self, host: Host, stack: AsyncExitStack) -> None:
        self.host = host
        self.store = AwayStore()
        self._stack = stack

    async def start(self, deadline_s: float = 20) -> Paliadin:
        return await self._stack.enter_async_context(self._app(deadline_s))

    async def push(self, request: TurnRequest, response: str | None = ANSWER) -> None:
        """A push that some process receives."""
        async with self.store.receive(push(request.turn_id, response)):
            pass

    @asynccontextmanager
    async def _app(self, deadline_s: float) -> AsyncIterator[Paliadin]:
        settings = Settings.from_environ(self.host.environ)
        async with open_hosts(settings.backend) as hosts:
            paliadin = Paliadin(hosts, store=self.store, deadline_s=deadline_s)
            watcher = StoreWatcher(paliadin.store, paliadin.waiters)
            async with watcher.running(), paliadin.running():
                yield paliadin


@pytest.fixture
async def apps(host: Host, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Apps]:
    for module, name in ((windows, "LOOK_S"), (store_writes, "_RETRY_S")):
        monkeypatch.setattr(module, name, 0.05)
    async with AsyncExitStack() as stack:
        yield Apps(host, stack)


@asynccontextmanager
async def running(*works: Awaitable[Any]) -> AsyncIterator[list[asyncio.Future[Any]]]:
    """What runs beside the test, and is over when it ends."""
    futures: list[asyncio.Future[Any]] = [asyncio.ensure_future(work) for work in works]
    try:
        yield futures
    finally:
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)


async def test_submit_then_result(apps: Apps) -> None:
    """What one process submitted another one gets, and any that asks later, again and again."""
    request = replace(ask(), conversation_id="c-1")
    one, other = await apps.start(), await apps.start()
    await one.submit(request)
    for paliadin in (one, other, await apps.start()):
        result = await paliadin.result(request.turn_id, timeout=0)
        assert (result.text, result.via, result.turn_id) == (TEXT, "response", request.turn_id)
        assert (result.conversation_id, result.revision) == ("c-1", None)
        assert result.trailer is not None
        assert result.host is not None
        assert result.timings.health_ms > 0
        assert result.timings.answer_ms > 0
    assert len(apps.host.turns) == 1


async def test_left_with_the_window(apps: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a turn ended is left for others as its window is freed, and not before that by itself."""

    async def fails(_: Seen) -> str:
        raise Fails("bootstrap_failed")

    monkeypatch.setattr(apps.store, "leave_reply", None)
    one, other = await apps.start(), await apps.start()
    answered, failed = ask(), ask()
    await one.run_turn(answered)
    assert (await other.result(answered.turn_id, timeout=0)).text == TEXT
    apps.host.script = fails
    with pytest.raises(PaliadinError):
        await one.run_turn(failed)
    with pytest.raises(PaliadinError):
        await other.result(failed.turn_id)


async def test_half_a_character(apps: Apps) -> None:
    """A conversation's id that no UTF-8 can hold costs no answer: it is what the backend got."""
    app, request = await apps.start(), replace(ask(), conversation_id="c-\ud800")
    for result in (await app.run_turn(request), await app.result(request.turn_id)):
        assert result.conversation_id == "c-?"


async def test_reloaded_page(apps: Apps) -> None:
    """Whoever asks for a turn while it runs gets its answer with the one who submitted it."""
    gate, request = Gate(apps.host), ask()
    one, other = await apps.start(), await apps.start()
    async with running(
        one.run_turn(request),
        one.result(request.turn_id),
        other.result(UUID(request.turn_id)),  # type: ignore[arg-type]  # taken, not wanted
    ) as waiting:
        await gate.has(request)
        gate.open(request)
        for each in waiting:
            result = await each
            assert isinstance(result, TurnResult)
            assert result.text == TEXT
    assert len(apps.host.turns) == 1


async def test_push_for_another_process(apps: Apps) -> None:
    """A push that any process receives is the answer in each."""
    gate, request = Gate(apps.host), ask()
    one, other = await apps.start(), await apps.start()
    async with running(one.run_turn(request), other.result(request.turn_id)) as waiting:
        await gate.has(request)
        await apps.push(request)
        for each in waiting:
            result = await each
            assert isinstance(result, TurnResult)
            assert (result.text, result.via, result.host) == (TEXT, "push", "mriver")
    assert (await other.result(request.turn_id, 0)).timings.completed_at is not None


async def test_failure_for_another_process(apps: Apps) -> None:
    """How a submit failed is known elsewhere too, without what the backend said."""

    async def fails(_: Seen) -> str:
        raise Fails("bootstrap_failed")

    apps.host.script = fails
    one, other = await apps.start(), await apps.start()
    request = ask()
    with pytest.raises(PaliadinError) as here:
        await one.submit(request)
    with pytest.raises(PaliadinError) as there:
        await other.result(request.turn_id)
    assert type(there.value) is type(here.value)
    assert (str(there.value), there.value.retryable) == (str(here.value), here.value.retryable)
    assert "words of" in here.value.detail
    assert "words of" not in there.value.detail


async def test_asked_anew(apps: Apps) -> None:
    """A turn that failed and is submitted again is waited for again, in each process."""

    async def fails(_: Seen) -> str:
        raise Fails("bootstrap_failed")

    apps.host.script = fails
    one, other = await apps.start(), await apps.start()
    request = ask()
    with pytest.raises(PaliadinError):
        await one.run_turn(request)
    gate = Gate(apps.host)
    async with running(other.submit(request)):
        await gate.has(request)
        async with running(one.result(request.turn_id)) as [waiting]:
            await anyio.sleep(0.1)
            assert not waiting.done()
            gate.open(request)
            await waiting


async def test_pushed_failure(apps: Apps) -> None:
    """A turn whose file cannot become an answer ends each wait with the reason."""
    request = ask()
    one = await apps.start()
    await apps.push(request, None)
    for call in (one.run_turn(request), one.result(request.turn_id)):
        with pytest.raises(AnswerUnusable) as caught:
            await call
        assert caught.value.reason == "empty"
    assert apps.host.turns == []


async def test_half_a_response(apps: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a file is the result only where the whole one does not come in time."""
    monkeypatch.setattr(submission, "_PUSH_GRACE_S", 0.2)

    async def half(_: Seen) -> str:
        return HALF

    apps.host.script = half
    one, other = await apps.start(), await apps.start()
    alone, pushed = ask(), ask()
    await one.submit(alone)
    assert (await other.result(alone.turn_id)).text == HALF
    assert (await other.result(alone.turn_id, 0)).text == HALF
    monkeypatch.setattr(submission, "_PUSH_GRACE_S", 20)
    await one.submit(pushed)
    async with running(other.result(pushed.turn_id, 0)) as [waiting]:
        await anyio.sleep(0.05)
        await apps.push(pushed)
        result = await waiting
    assert isinstance(result, TurnResult)
    assert (result.text, result.via) == (TEXT, "push")


async def test_no_result(apps: Apps) -> None:
    """For a turn that nobody knows the wait ends in time, and says which turn."""
    one = await apps.start()
    for seconds in (0, 0.1):
        with pytest.raises(TurnTimeout, match=f"no answer to turn t-1 within {seconds:g} s"):
            await one.result("t-1", seconds)
    with pytest.raises(BadRequest, match="the turn id is no id"):
        await one.result("../x")


async def test_many_results(apps: Apps) -> None:
    """Pages that come back at once are looked for together, and each has its answer."""
    app, requests = await apps.start(), [ask() for _ in range(1_200)]
    for request in requests:
        await apps.push(request)
    apps.store.asked = 0
    results = await asyncio.gather(*(app.result(each.turn_id, timeout=0) for each in requests))
    assert [each.turn_id for each in results] == [each.turn_id for each in requests]
    assert apps.store.asked < 10


async def test_result_of_a_store_that_hangs(apps: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the store takes, who asked for a result has an end to it."""
    monkeypatch.setattr(turn, "_LOOK_S", 0.1)
    app = await apps.start()

    async def find(_: object) -> Mapping[str, Found]:
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(apps.store, "find", find)
    with pytest.raises(TurnTimeout):
        await app.result(ask().turn_id, timeout=0)


async def test_one_turn_at_a_time(apps: Apps) -> None:
    """Turns of one user go one after the other, in the order of their arrival; others' at once."""
    gate = Gate(apps.host)
    requests, other = [ask() for _ in range(4)], ask(BEN)
    one = await apps.start()
    async with running(*map(one.run_turn, requests), one.run_turn(other)) as turns:
        await until(lambda: set(gate.at_work) == {requests[0].turn_id, other.turn_id})
        gate.open(other)
        for request in requests:
            await gate.has(request)
            gate.open(request)
        await asyncio.gather(*turns)
    assert [each for each in gate.order if each != other.turn_id] == [r.turn_id for r in requests]


async def test_one_turn_at_a_time_across_processes(apps: Apps) -> None:
    """In other processes too a turn of the same user waits until the first one is answered."""
    gate = Gate(apps.host)
    requests = [ask() for _ in range(6)]
    processes = [await apps.start() for _ in range(3)]
    async with running(
        *(processes[n % 3].run_turn(request) for n, request in enumerate(requests))
    ) as turns:
        for request in requests:
            gate.open(request)
        await asyncio.gather(*turns)
    assert (gate.most, len(gate.order)) == (1, 6)


@pytest.mark.parametrize("is_same_process", [True, False])
async def test_queued_until_the_deadline(apps: Apps, *, is_same_process: bool) -> None:
    """Waiting behind another turn counts against the deadline, and the error says so, anywhere."""
    gate, first, second, third = Gate(apps.host), ask(), ask(), ask()
    one, other = await apps.start(), await apps.start(deadline_s=0.3)
    async with running(one.run_turn(first)):
        await gate.has(first)
        if is_same_process:
            other = one
            one._deadline_s = 0.3  # of the turns that follow
        for request in (second, third):
            with pytest.raises(TurnTimeout) as caught:
                await (other.run_turn if request is second else other.submit)(request)
            said = "within 0.3 s: it was never sent, since it was queued behind another turn"
            assert said in str(caught.value)
            assert caught.value.queued_s > caught.value.deadline_s / 2
            with pytest.raises(TurnTimeout, match="queued behind another turn"):
                await one.result(request.turn_id)
        gate.open(first)
    assert gate.order == [first.turn_id]


@over_http
async def test_queued_for_a_part(apps: Apps) -> None:
    """A turn that was sent after others, and is not answered, says how long it had queued."""
    gate, first, second = Gate(apps.host), ask(), ask()
    one, other = await apps.start(), await apps.start(deadline_s=4)
    async with running(one.run_turn(first), other.run_turn(second)) as [_, late]:
        await gate.has(first)
        await until(lambda: first.turn_id in other.waiters._hinted)
        await anyio.sleep(0.1)
        gate.open(first)
        said = r"within 4 s, for [0-3]\.[0-9] s of which it was queued behind another turn"
        with pytest.raises(TurnTimeout, match=said):
            await late
    assert gate.order == [first.turn_id, second.turn_id]


async def test_pushed_while_queued(apps: Apps) -> None:
    """A turn that is answered while it queues need not be sent."""
    gate, first, second = Gate(apps.host), ask(), ask()
    one, other = await apps.start(), await apps.start()
    for process in (one, other):
        async with running(one.run_turn(first), process.run_turn(second)) as [_, queued]:
            await gate.has(first)
            await apps.push(second)
            result = await queued
            assert isinstance(result, TurnResult)
            assert result.via == "push"
        first = ask()
    assert second.turn_id not in gate.order


async def test_cancelled_turns_free_the_window(apps: Apps) -> None:
    """Who gives up his turn, at work or queued, holds up nobody."""
    gate = Gate(apps.host)
    requests = [ask() for _ in range(5)]
    one, other = await apps.start(), await apps.start()
    async with running(
        *((one, other)[n % 2].run_turn(request) for n, request in enumerate(requests))
    ) as turns:
        await gate.has(requests[0])
        for each in turns[:4]:
            each.cancel()
        await gate.has(requests[4])
        gate.open(requests[4])
        await turns[4]
    assert not one._windows._queues
    assert not other._windows._queues


async def test_reset_frees_the_window(apps: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset does not wait for a turn that hangs, and the next one does not either."""
    monkeypatch.setattr(windows, "RENEW_S", 0.05)
    gate, requests = Gate(apps.host), [ask() for _ in range(4)]
    one, other = await apps.start(), await apps.start()
    async with running(*map(one.run_turn, requests)):
        await gate.has(requests[0])
        for n, process in enumerate((one, other, one)):
            await process.reset_session(ANNA)
            with pytest.raises(ShimError, match="its session was reset"):
                await other.result(requests[n].turn_id)
            await until(lambda: gate.order == [each.turn_id for each in requests[: n + 2]])  # noqa: B023 - called here
        gate.open(requests[3])


async def test_renewal_after_a_reset(apps: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn whose session was reset elsewhere does not get its window again by a renewal."""
    monkeypatch.setattr(windows, "RENEW_S", 0.05)
    gate, first, second = Gate(apps.host), ask(), ask()
    one, other = await apps.start(), await apps.start()
    async with running(one.run_turn(first)):
        await gate.has(first)
        await other.reset_session(ANNA)
        await anyio.sleep(0.2)
        gate.open(second)
        await other.run_turn(second)


async def test_lost_submit(apps: Apps) -> None:
    """A submit that is lost is over; the turn has its window until a push, and has it renewed."""

    async def drops(_: Seen) -> str:
        raise Drops

    apps.host.script = drops
    one, other = await apps.start(), await apps.start()
    first, second = ask(), ask()
    await one.submit(first)
    gate = Gate(apps.host)
    gate.open(second)
    async with running(other.run_turn(second), other.result(first.turn_id)) as [queued, waiting]:
        await anyio.sleep(0.2)
        assert (queued.done(), waiting.done(), gate.order) == (False, False, [])
        await apps.push(first)
        await asyncio.gather(queued, waiting)
    await until(lambda: not one._windows._leased)


@over_http
async def test_lost_submit_until_the_deadline(apps: Apps) -> None:
    """A lost turn for which no push comes has its window until its deadline."""

    async def drops(_: Seen) -> str:
        raise Drops

    apps.host.script = drops
    one, other = await apps.start(deadline_s=2), await apps.start()
    await one.submit(ask())
    second = ask()
    gate = Gate(apps.host)
    gate.open(second)
    await other.run_turn(second)
    assert gate.order == [second.turn_id]


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_lost_submit_at_the_end(
    apps: Apps, monkeypatch: pytest.MonkeyPatch, *, is_cancelled: bool
) -> None:
    """A process that ends frees the window of a turn that it left open, however it is ended."""
    freed: list[str | None] = []

    async def drops(_: Seen) -> str:
        raise Drops

    async def release(window: Window, _: bytes | None) -> None:
        await anyio.sleep(0.05)
        freed.append(window.turn_id)

    apps.host.script = drops
    monkeypatch.setattr(apps.store, "release", release)
    request = ask()
    with anyio.CancelScope() as process:
        async with apps._app(20) as one:
            await one.submit(request)
            if is_cancelled:
                process.cancel()
                await anyio.sleep_forever()
    assert freed == [request.turn_id]


async def test_lost_without_a_store(host: Host) -> None:
    """Where no push can come a lost submit is the end, and `result` says so."""

    async def fails(_: Seen) -> str:
        raise Fails("timeout")

    host.script = fails
    request = ask()
    async with open_hosts(Settings.from_environ(host.environ).backend) as hosts:
        paliadin = Paliadin(hosts, deadline_s=20)
        async with StoreWatcher(paliadin.store, paliadin.waiters).running():
            for call in (paliadin.submit(request), paliadin.result(request.turn_id)):
                with pytest.raises(BackendTimeout):
                    await call


async def test_killed_process(apps: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window of a process that died is free when its lease runs out, or its push is there."""
    gate = Gate(apps.host)
    other = await apps.start()
    window = other._hosts.window(ANNA, "t-dead")
    monkeypatch.setattr(windows, "LEASE_S", 0.3)
    for killed in ("leased", "pushed"):
        await apps.store.hold(window, 0.3 if killed == "leased" else 3600)
        request = ask()
        gate.open(request)
        async with running(other.run_turn(request)) as [queued]:
            await until(lambda: "t-dead" in other.waiters._hinted)
            if killed == "pushed":
                await apps.push(replace(request, turn_id="t-dead"))
            await queued


async def test_renewed(apps: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that takes longer than a lease keeps its window, also after the store was away."""
    monkeypatch.setattr(windows, "LEASE_S", 0.4)
    monkeypatch.setattr(windows, "RENEW_S", 0.05)
    gate, first, second = Gate(apps.host), ask(), ask()
    one, other = await apps.start(), await apps.start()
    async with running(one.run_turn(first), other.run_turn(second)) as turns:
        await until(lambda: len(gate.at_work) == 1)
        at_work = gate.at_work[0]
        apps.store.away = True
        await anyio.sleep(0.2)
        apps.store.away = False
        await anyio.sleep(0.6)
        assert gate.at_work == [at_work]
        gate.open(first)
        gate.open(second)
        await asyncio.gather(*turns)
    assert gate.most == 1


async def test_store_away_before_the_turn(apps: Apps, caplog: pytest.LogCaptureFixture) -> None:
    """A turn waits for the store, which alone knows whether its window is free."""
    apps.store.away = True
    request = ask()
    one, hasty = await apps.start(), await apps.start(deadline_s=0.2)
    with pytest.raises(TurnTimeout, match="never sent, since the store did not answer"):
        await hasty.run_turn(ask())
    async with running(one.run_turn(request)) as [waiting]:
        await until(lambda: "turn.store_away" in caplog.text)
        assert apps.host.turns == []
        apps.store.away = False
        await waiting


async def test_store_away_after_the_turn(apps: Apps, caplog: pytest.LogCaptureFixture) -> None:
    """An answer is not held up by a store that is away, and is there when it is back."""
    gate, request, second = Gate(apps.host), ask(), ask()
    one, other = await apps.start(), await apps.start()
    async with running(one.run_turn(request)) as [waiting]:
        await gate.has(request)
        apps.store.away = True
        gate.open(request)
        await waiting
    assert "store.write_failed" in caplog.text
    async with running(other.result(request.turn_id), other.run_turn(second)) as [result, queued]:
        apps.store.away = False
        await result
        gate.open(second)
        await queued


async def test_store_away_before_the_result(apps: Apps) -> None:
    """Who asks while the store is away waits until it is back, or hears why there is nothing."""
    one, request = await apps.start(), ask()
    apps.store.away = True
    with pytest.raises(TurnTimeout) as caught:
        await one.result(request.turn_id, 0)
    assert isinstance(caught.value.__cause__, StoreFailed)
    async with running(one.result(request.turn_id)) as [waiting]:
        await anyio.sleep(0.05)
        apps.store.away = False
        await apps.push(request)
        await waiting


async def test_another_users_window(apps: Apps) -> None:
    """A user whose window another one has used in another process is refused, before it is sent."""
    alike = User(ANNA.user_id[:9] + "0000-4000-8000-000000000000")
    one, other = await apps.start(), await apps.start()
    await one.run_turn(ask())
    for _ in range(2):
        with pytest.raises(BadRequest, match="another user's"):
            await other.run_turn(ask(alike))
        with pytest.raises(BadRequest, match="another user's"):
            await other.reset_session(alike)
    assert (len(apps.host.turns), apps.host.resets) == (1, [])
    # Who was refused there first has not made the window his in that process.
    await other.run_turn(ask())
    gate, held = Gate(apps.host), ask()
    async with running(other.run_turn(held)) as [waiting]:
        await gate.has(held)
        with pytest.raises(BadRequest, match="another user's"):
            await other.run_turn(ask(alike))
        gate.open(held)
        await waiting


async def test_a_lost_turn_knows_the_primer(apps: Apps) -> None:
    """A turn that a push answers has shown the agent what was said before."""

    async def drops(_: Seen) -> str:
        raise Drops

    apps.host.script = drops
    one = await apps.start()
    for _ in range(2):
        request = replace(ask(), primer=[Exchange("Frage", "Antwort")])
        await one.submit(request)
        await apps.push(request)
        await until(lambda: not one._windows._leased)
    assert [bool(seen.primer) for seen in apps.host.turns] == [True, False]


async def test_the_end_of_an_app(apps: Apps) -> None:
    """An app that ends leaves no task, and frees the windows of turns that were open."""

    async def drops(_: Seen) -> str:
        raise Drops

    apps.host.script = drops
    before = len(asyncio.all_tasks())
    other = await apps.start()
    there = len(asyncio.all_tasks())
    async with apps._app(20) as one:
        await one.submit(ask())
    assert len(asyncio.all_tasks()) == there > before
    gate, request = Gate(apps.host), ask()
    gate.open(request)
    await other.run_turn(request)


async def test_inbox_and_its_store(host: Host, inbox: Inbox, sidecar: Sidecar) -> None:
    """With an inbox alone, what it received is a result for as long as it is remembered."""
    request = ask()
    async with open_hosts(Settings.from_environ(host.environ).backend) as hosts:
        paliadin = Paliadin(hosts, inbox=inbox, deadline_s=20)
        await sidecar.push(request.turn_id)
        async with StoreWatcher(paliadin.store, paliadin.waiters).running():
            for _ in range(2):
                assert (await paliadin.result(request.turn_id)).via == "push"
            assert (await paliadin.run_turn(request)).via == "push"
    assert host.turns == []


async def test_nothing_is_logged(apps: Apps, caplog: pytest.LogCaptureFixture) -> None:
    """What is left for others is in no log and no `repr`."""
    caplog.set_level(logging.DEBUG)
    one, other = await apps.start(), await apps.start()
    request = ask(message="marker-question")
    await one.submit(request)
    shown = repr(await other.result(request.turn_id))
    with other.waiters.expect(request.turn_id, shared=True) as waiter:
        await waiter.looked.wait()
        assert waiter.reply
        shown += repr(waiter)
    for marker in ("marker", "Frist", "used_tools"):
        assert marker not in caplog.text + shown
