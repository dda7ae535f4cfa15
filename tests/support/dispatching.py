"""A dispatcher on a real outbox, whose clock and receiver are a test's."""

from __future__ import annotations

from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import anyio

from paliadin_contract.callback import Ping, TurnCompleted, decode
from paliadin_sidecar.delivery.dispatcher import Dispatcher
from paliadin_sidecar.errors import Blocked, Full
from paliadin_sidecar.outbox import acceptance, event_rows, queries
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.records import Arrival, Outcome, TurnKey
from support.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

#: 2026-11-22, 08:00 UTC.
NOW = 1_795_334_400.0
REFUSED_S = 900.0

OK = Outcome(status=204, ms=1.0)
LATER = Outcome(status=503, ms=1.0)
REFUSED = Outcome(status=400, ms=1.0)
NOT_FOUND = Outcome(status=404, ms=1.0)
UNREACHABLE = Outcome(error="connect", ms=1.0)


def arrival(turn_id: str, content: bytes, backend: str = "aichat") -> Arrival:
    key, at = TurnKey(backend, "paliadin", turn_id), datetime.fromtimestamp(NOW, UTC)
    digest = sha256(content).hexdigest()
    return Arrival(key, "", at, len(content), data=content, sha256=digest)


class Harness:
    """A dispatcher on a real outbox. Its clock stands still, and the receiver is a function."""

    def __init__(self, path: Path, wall: Callable[[], float] | None = None) -> None:
        self.now = NOW
        self.wall = wall or (lambda: self.now)
        self.path = path
        self.outbox = Outbox(path, wall=self.wall, create=True)
        self.group = GroupCommit(self.outbox, self._move, self._block)
        self.blocked = 0
        self.sent: list[str] = []
        self.pings = 0
        self.under_way: list[str] = []
        #: What a turn and a ping get, at once or after a while.
        self.turn: Callable[[str], Outcome | Awaitable[Outcome]] = lambda _: OK
        self.ping: Callable[[], Outcome | Awaitable[Outcome]] = lambda: OK
        self._moved = anyio.Event()
        self.dispatcher = self.make()

    def make(self) -> Dispatcher:
        return Dispatcher(
            self.group,
            self.attempt,
            host="mriver",
            refused_s=REFUSED_S,
            wall=self.wall,
            steady=self.wall,
            random=lambda: 1.0,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Commit and dispatch until the block ends."""
        async with anyio.create_task_group() as work:
            work.start_soon(self.dispatcher.run)
            yield
            work.cancel_scope.cancel()

    async def attempt(self, webhook_id: str, body: bytes) -> Outcome:
        callback = decode(body)
        if isinstance(callback, Ping):
            assert webhook_id.startswith("ping_")
            self.pings += 1
            self._move()
            found = self.ping()
            return found if isinstance(found, Outcome) else await found
        assert isinstance(callback, TurnCompleted)
        turn_id = callback.data.turn_id
        assert turn_id not in self.under_way
        self.sent.append(f"{turn_id}/{callback.data.revision}")
        self.under_way.append(turn_id)
        self._move()
        try:
            found = self.turn(turn_id)
            return found if isinstance(found, Outcome) else await found
        finally:
            self.under_way.remove(turn_id)
            self._move()

    # --- what the test does -----------------------------------------------------------------

    def hold(self, turn_id: str | None = None, answer: Outcome = OK) -> anyio.Event:
        """Attempts at this turn, or at all, are answered once what this returns is set."""
        go_on = anyio.Event()

        async def slow(attempted: str) -> Outcome:
            if turn_id in {None, attempted}:
                await go_on.wait()
                return answer
            return OK

        self.turn = slow
        return go_on

    def accept(self, *turn_ids: str, content: bytes = b"Yes.", backend: str = "aichat") -> None:
        """Take answers, as intake does from a connection of its own."""
        with closing(Outbox(self.path, wall=self.wall)) as outbox:
            for turn_id in turn_ids:
                acceptance.accept(outbox, arrival(turn_id, content, backend))
        self.dispatcher.wake()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.dispatcher.wake()

    def events(self, prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
        with closing(Outbox(self.path)) as outbox:
            found = event_rows.events(outbox, 0, limit=10_000)
        return [(e.name, e.fields) for e in found if e.name.startswith(prefix)]

    def names(self, prefix: str = "") -> list[str]:
        return [name for name, _ in self.events(prefix)]

    def counts(self) -> dict[str, int]:
        with closing(Outbox(self.path)) as outbox:
            return queries.counts(outbox)

    def has_dead(self) -> bool:
        return "dead" in self.counts()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until this is true; it is asked whenever something was sent or committed."""
        with anyio.fail_after(PATIENCE_S):
            while not condition():
                await self._moved.wait()

    async def until_recorded(self, name: str, count: int) -> None:
        """Wait until there are so many events of this name."""
        await self.until(lambda: len(self.names(name)) >= count)

    async def until_delivered(self, count: int) -> None:
        """Wait until so many were delivered."""
        await self.until(lambda: self.counts().get("delivered", 0) == count)

    async def until_sent(self, what: str, count: int) -> None:
        """Wait until this was sent so often, or something was given up."""
        await self.until(lambda: self.sent.count(what) >= count or self.has_dead())

    async def until_under_way(self, count: int) -> None:
        """Wait until so many turns are under way."""
        await self.until(lambda: len(self.under_way) == count)

    async def settle(self) -> None:
        """Wait until the dispatch has done all that it does without a further call."""
        # A call that is committed now comes after all that were asked for before.
        for _ in range(5):
            self.dispatcher.wake()
            await self.group.commit(queries.counts)

    def _move(self) -> None:
        self._moved.set()
        self._moved = anyio.Event()

    def _block(self, exc: Blocked) -> None:
        self.blocked += 1
        self._move()


async def never(_: str) -> Outcome:
    await anyio.sleep_forever()
    raise AssertionError


def ids(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


async def fail_once(harness: Harness, *turn_ids: str) -> None:
    """Take these, and let each fail."""
    harness.turn = lambda _: LATER
    harness.accept(*turn_ids)
    async with harness.open():
        await harness.until_recorded("delivery.retry_scheduled", len(turn_ids))
    harness.sent.clear()
    harness.dispatcher = harness.make()
    harness.now += 1


def fill(outbox: Outbox) -> None:
    """Leave no room for an event."""
    pages = outbox.pragma("page_count")
    outbox.connection.execute(f"PRAGMA max_page_count = {pages}")
    with suppress(Full):
        while True:
            outbox.transaction([lambda: event_rows.record_service_event(outbox, "x", {})])


def make_room(outbox: Outbox) -> None:
    outbox.connection.execute("PRAGMA max_page_count = 1000000")


async def try_again(harness: Harness, times: int, others: int) -> None:
    """Let `bad` try again so often, a quarter of an hour apart; so many pass each time."""
    for _ in range(times):
        tried = harness.sent.count("bad/1")
        delivered = harness.counts().get("delivered", 0)
        harness.accept(*(f"good-{delivered + n}" for n in range(others)))
        await harness.until_delivered(delivered + others)
        harness.pass_time(REFUSED_S)
        await harness.until_sent("bad/1", tried + 1)
        await harness.settle()
