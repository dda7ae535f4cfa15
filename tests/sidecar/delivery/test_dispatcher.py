from __future__ import annotations

import time
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from support.waiting import PATIENCE_S

from paliadin_contract.callback import Host, Ping, TurnCompleted, decode
from paliadin_sidecar.delivery import breaker, dispatcher, pace, policy
from paliadin_sidecar.delivery.dispatcher import Dispatcher
from paliadin_sidecar.delivery.health import ping_body
from paliadin_sidecar.delivery.sender import Outcome
from paliadin_sidecar.errors import Blocked, Full
from paliadin_sidecar.outbox import group_commit
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.outbox import Outbox
from paliadin_sidecar.outbox.records import Arrival, Delivery, TurnKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

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


class Office:
    """A dispatch on a real outbox. Its clock stands still, and the receiver is a function."""

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

    def accept(self, *turn_ids: str, content: bytes = b"Yes.", backend: str = "aichat") -> None:
        """Take answers, as intake does from a connection of its own."""
        with closing(Outbox(self.path, wall=self.wall)) as outbox:
            for turn_id in turn_ids:
                outbox.accept(arrival(turn_id, content, backend))
        self.dispatcher.wake()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.dispatcher.wake()

    def events(self, prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
        with closing(Outbox(self.path)) as outbox:
            found = outbox.events(0, limit=10_000)
        return [(e.name, e.fields) for e in found if e.name.startswith(prefix)]

    def names(self, prefix: str = "") -> list[str]:
        return [name for name, _ in self.events(prefix)]

    def counts(self) -> dict[str, int]:
        with closing(Outbox(self.path)) as outbox:
            return outbox.counts()

    def has_dead(self) -> bool:
        return "dead" in self.counts()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until this is true; it is asked whenever something was sent or committed."""
        with anyio.fail_after(PATIENCE_S):
            while not condition():
                await self._moved.wait()

    async def until_told(self, name: str, count: int) -> None:
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
        """Wait until the dispatch has done all that it does without being told more."""
        # A call that is committed now comes after all that were asked for before.
        for _ in range(5):
            self.dispatcher.wake()
            await self.group.commit(Outbox.counts)

    def _move(self) -> None:
        self._moved.set()
        self._moved = anyio.Event()

    def _block(self, exc: Blocked) -> None:
        self.blocked += 1
        self._move()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / FILENAME)
    yield office
    office.outbox.close()


@pytest.fixture(autouse=True)
def shrunk_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses and full disks last for instants."""
    monkeypatch.setattr(breaker, "_FIRST_PING_S", 0.01)
    monkeypatch.setattr(breaker, "_MAX_PING_S", 0.02)
    monkeypatch.setattr(group_commit, "BLOCKED_S", 0.01)


async def never(_: str) -> Outcome:
    await anyio.sleep_forever()
    raise AssertionError


def ids(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


# --- which goes when ------------------------------------------------------------------------


async def test_delivered(office: Office) -> None:
    """What is due goes out, before and after the start, and its outcome is written down."""
    office.accept("a")
    async with office.open():
        await office.until(lambda: office.counts() == {"delivered": 1})
        office.accept("b")
        await office.until(lambda: office.counts() == {"delivered": 2})
    assert office.sent == ["a/1", "b/1"]
    assert office.names("delivery") == ["delivery.attempted", "delivery.delivered"] * 2


async def test_window(office: Office) -> None:
    """Eight turns are under way at once, and a place that gets free is taken at once."""
    go_on = anyio.Event()

    async def slow(turn_id: str) -> Outcome:
        await go_on.wait()
        return OK

    office.turn = slow
    office.accept(*ids("t", 20))
    async with office.open():
        await office.until_under_way(8)
        await office.settle()
        assert sorted(office.under_way) == ["t0", "t1", "t16", "t17", "t18", "t19", "t2", "t3"]
        office.turn = lambda _: OK
        go_on.set()
        await office.until(lambda: office.counts() == {"delivered": 20})
    assert sorted(office.sent) == sorted(f"{one}/1" for one in ids("t", 20))


async def test_one_that_is_slow(office: Office) -> None:
    """A receiver that is slow with one turn delays no other."""
    office.turn = lambda turn_id: never(turn_id) if turn_id == "slow" else OK
    office.accept("slow", *ids("t", 50))
    async with office.open():
        await office.until(lambda: office.counts() == {"delivered": 50, "pending": 1})
        assert office.under_way == ["slow"]


# --- what was just accepted -----------------------------------------------------------------


def fetches(office: Office, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many deliveries each question to the database found."""
    found: list[int] = []
    fetch_due = Outbox.fetch_due

    def counted(outbox: Outbox, *what: Any, **how: Any) -> Any:  # noqa: ANN401 - handed through
        deliveries, next_s = fetch_due(outbox, *what, **how)
        found.append(len(deliveries))
        return deliveries, next_s

    monkeypatch.setattr(Outbox, "fetch_due", counted)
    return found


async def take(office: Office, *turn_ids: str, content: bytes = b"Yes.") -> list[Delivery]:
    """Accept answers as intake does, in one transaction; they are not offered yet."""

    def accept(outbox: Outbox) -> list[Delivery]:
        taken = [outbox.accept(arrival(turn_id, content)) for turn_id in turn_ids]
        return [one for one in taken if one is not None]

    return await office.group.commit(accept)


async def test_offered(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was just accepted goes out at once, and the database is not asked for it."""
    async with office.open():
        await office.settle()
        found = fetches(office, monkeypatch)
        for n in range(3):
            office.dispatcher.offer(await take(office, f"a{n}", f"b{n}"))
            await office.until_delivered(2 * n + 2)
        assert found == []


async def test_more_offered_than_places(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no place stays in the database, which is asked until it has no more."""
    async with office.open():
        await office.settle()
        found = fetches(office, monkeypatch)
        office.dispatcher.offer(await take(office, *ids("t", 20)))
        await office.until_delivered(20)
        assert sum(found) == 12
        asked = len(found)
        office.dispatcher.offer(await take(office, "last"))
        await office.until_delivered(21)
        assert len(found) == asked
    assert len(office.sent) == len(set(office.sent)) == 21


async def test_offered_late(office: Office) -> None:
    """What the database was asked for meanwhile is not sent twice."""
    async with office.open():
        await office.settle()
        deliveries = await take(office, "a")
        office.dispatcher.wake()
        await office.until_delivered(1)
        office.dispatcher.offer(deliveries)
        await office.settle()
    assert office.sent == ["a/1"]


async def test_two_revisions_offered_at_once(office: Office) -> None:
    """The newer one took the place of the older one."""
    async with office.open():
        await office.settle()
        older = await take(office, "a")
        newer = await take(office, "a", content=b"No.")
        office.dispatcher.offer([*older, *newer])
        await office.until(lambda: office.counts() == {"delivered": 1, "superseded": 1})
    assert office.sent == ["a/2"]


async def test_a_revision_offered_while_the_older_one_is_under_way(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes when that has ended, and the others do not ask for it before."""
    go_on = anyio.Event()

    async def slow(turn_id: str) -> Outcome:
        if turn_id == "a":
            await go_on.wait()
        return OK

    office.turn = slow
    async with office.open():
        await office.settle()
        office.dispatcher.offer(await take(office, "a"))
        await office.until_under_way(1)
        found = fetches(office, monkeypatch)
        office.dispatcher.offer(await take(office, "a", content=b"No."))
        office.dispatcher.offer(await take(office, "b"))
        await office.until_delivered(1)
        assert found == []
        go_on.set()
        await office.until_delivered(3)
    assert office.sent == ["a/1", "b/1", "a/2"]


# --- half of the places ---------------------------------------------------------------------


async def fail_once(office: Office, *turn_ids: str) -> None:
    """Take these, and let each fail."""
    office.turn = lambda _: LATER
    office.accept(*turn_ids)
    async with office.open():
        await office.until_told("delivery.retry_scheduled", len(turn_ids))
    office.sent.clear()
    office.dispatcher = office.make()
    office.now += 1


async def test_half_of_the_places(office: Office) -> None:
    """Turns that failed before get half of the places, whatever else is there."""
    await fail_once(office, *ids("old", 8))
    office.turn = never
    office.accept(*ids("new", 20))
    async with office.open():
        await office.until_under_way(8)
        await office.settle()
        fresh = [one for one in office.under_way if one.startswith("new")]
        assert len(fresh) == 4
        assert sorted(set(office.under_way) - set(fresh)) == ids("old", 4)


class Gate:
    """A receiver that answers one turn, the one that came first, each time that it is told."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._waiting: list[anyio.Event] = []
        office.turn = self._hold

    async def _hold(self, _: str) -> Outcome:
        self._waiting.append(event := anyio.Event())
        await event.wait()
        return OK

    async def answer_one(self) -> None:
        sent = len(self._office.sent)
        self._waiting.pop(0).set()
        await self._office.until(lambda: len(self._office.sent) > sent)


async def test_a_flood_in_another_root(office: Office) -> None:
    """Another root's answer takes the next free place, a new one of the same root the one after."""
    gate = Gate(office)
    office.accept(*ids("flood", 100))
    async with office.open():
        await office.until_under_way(8)
        office.accept("other", backend="legacy")
        await gate.answer_one()
        assert office.sent[-1] == "other/1"
        office.accept("own")
        for _ in range(2):
            await gate.answer_one()
        assert "own/1" in office.sent[-2:]
        office.accept(*ids("more", 20), backend="legacy")
        for _ in range(20):
            await gate.answer_one()
        from_other = [one for one in office.sent[-20:] if one.startswith("more")]
        assert 9 <= len(from_other) <= 11 + 4  # until it has as many places as the flood


async def test_a_flood_of_another_roots_retries(office: Office) -> None:
    """What failed before takes turns by roots as well, within its half of the places."""
    office.turn = lambda _: LATER
    office.accept(*ids("flood", 40))
    office.accept("other", backend="legacy")
    async with office.open():
        await office.until_told("delivery.retry_scheduled", 41)
    office.sent.clear()
    office.dispatcher = office.make()
    office.now += 1
    office.turn = never
    async with office.open():
        await office.until_under_way(4)
        assert "other/1" in office.sent


async def test_a_flood_over_a_restart(office: Office) -> None:
    """Whose an answer is, is in the outbox: a new start shares the places as well."""
    office.turn = never
    office.accept(*ids("flood", 100))
    office.accept("other", backend="legacy")
    for _ in range(2):
        office.sent.clear()
        async with office.open():
            await office.until_under_way(8)
            assert "other/1" in office.sent
        office.dispatcher = office.make()


async def test_the_failed_leave_room(office: Office) -> None:
    """However many failed ones hang, fresh ones go out at once."""
    await fail_once(office, *ids("old", 20))
    office.turn = lambda turn_id: never(turn_id) if turn_id.startswith("old") else OK
    async with office.open():
        await office.until(lambda: office.under_way == ids("old", 4))
        office.accept(*ids("new", 20))
        await office.until(lambda: office.counts() == {"delivered": 20, "pending": 20})
        assert office.under_way == ids("old", 4)


async def test_never_two_of_one_turn(office: Office) -> None:
    """A newer revision waits until the older one's attempt has ended, whatever else goes."""
    go_on = anyio.Event()

    async def slow(turn_id: str) -> Outcome:
        if turn_id == "a":
            await go_on.wait()
        return OK

    office.turn = slow
    office.accept("a")
    async with office.open():
        await office.until(lambda: office.under_way == ["a"])
        office.accept("a", content=b"No.")
        office.accept("b")
        await office.until(lambda: office.counts().get("delivered") == 1)
        await office.settle()
        assert office.sent == ["a/1", "b/1"]
        go_on.set()
        await office.until(lambda: office.counts() == {"delivered": 3})
    assert office.sent == ["a/1", "b/1", "a/2"]


# --- and again ------------------------------------------------------------------------------


async def test_retry(office: Office) -> None:
    """A failed one goes out again when its delay is over, and its attempts are counted."""
    office.turn = lambda _: LATER
    office.accept("a")
    async with office.open():
        for n in range(1, 4):
            await office.until_told("delivery.retry_scheduled", n)
            await office.settle()
            assert len(office.sent) == n
            office.pass_time(0.25 * 2 ** (n - 1) - 0.001)
            await office.settle()
            assert len(office.sent) == n
            office.pass_time(0.001)
        office.turn = lambda _: OK
        await office.until(lambda: len(office.sent) == 4)
    delays = [fields["delay_ms"] for _, fields in office.events("delivery.retry")]
    assert delays[:3] == [250, 500, 1000]


async def test_retry_by_itself(tmp_path: Path) -> None:
    """Nobody needs to wake it: it wakes when the next one is due."""
    office = Office(tmp_path / FILENAME, time.time)
    outcomes = [LATER, LATER, OK]
    office.turn = lambda _: outcomes.pop(0)
    office.accept("a")
    async with office.open():
        await office.until(lambda: office.counts() == {"delivered": 1})
    office.outbox.close()


async def test_retry_after(office: Office) -> None:
    """What the receiver asks for is waited for."""
    office.turn = lambda _: Outcome(status=429, retry_after="7")
    office.accept("a")
    async with office.open():
        await office.until(lambda: office.names("delivery.retry_scheduled"))
    assert office.events("delivery.retry_scheduled")[0][1]["delay_ms"] == 7000


async def try_again(office: Office, times: int, others: int) -> None:
    """Let `bad` try again so often, a quarter of an hour apart; so many pass each time."""
    for _ in range(times):
        tried = office.sent.count("bad/1")
        delivered = office.counts().get("delivered", 0)
        office.accept(*(f"good-{delivered + n}" for n in range(others)))
        await office.until_delivered(delivered + others)
        office.pass_time(REFUSED_S)
        await office.until_sent("bad/1", tried + 1)
        await office.settle()


async def test_refused(office: Office) -> None:
    """Refused whenever it comes while many others pass, a turn is dead in the end."""
    office.turn = lambda turn_id: REFUSED if turn_id == "bad" else OK
    office.accept("bad")
    async with office.open():
        await office.until_told("delivery.refused", 1)
        await try_again(office, 4, others=0)
        assert not office.has_dead()
        await try_again(office, 6, others=10)
    assert office.events("delivery.dead")[0][1]["cause"] == "refused"
    assert office.counts() == {"delivered": 60, "dead": 1}
    assert office.pings == 0


async def test_one_acknowledgement_arms_nothing(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that comes back and takes one turn has not refused the others for good."""
    monkeypatch.setattr(breaker, "_POSTPONED_TO_ASK", 10_000)
    office.turn = lambda turn_id: OK if turn_id == "good" else REFUSED
    office.accept("bad", *ids("t", 7))
    async with office.open():
        await office.until_told("delivery.refused", 8)
        await try_again(office, 30, others=0)
        office.accept("good")
        await try_again(office, 30, others=0)
        assert office.counts() == {"delivered": 1, "pending": 8}


@pytest.mark.parametrize("outcome", [LATER, Outcome(status=429), UNREACHABLE], ids=str)
async def test_later_says_nothing_about_a_turn(
    office: Office, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put off for a day while others pass, it is still tried."""
    monkeypatch.setattr(pace, "_REST_MOST_S", 0.001)
    monkeypatch.setattr(pace, "_RATE_LEAST", 1000.0)
    monkeypatch.setattr(breaker, "_POSTPONED_TO_ASK", 10_000)
    office.turn = lambda turn_id: outcome if turn_id == "slow" else OK
    office.accept("slow")
    async with office.open():
        for n in range(25):
            office.accept(*ids(f"good-{n}-", 5))
            await office.until_delivered(5 * n + 5)
            office.pass_time(3600)
            await office.until_sent("slow/1", n + 2)
        assert office.counts() == {"delivered": 125, "pending": 1}


async def test_a_failure_of_its_own(office: Office) -> None:
    """A turn that gets 500 whenever it comes, for a day, while others pass, is poison."""
    office.turn = lambda turn_id: Outcome(status=500) if turn_id == "bad" else OK
    office.accept("bad")
    async with office.open():
        n = 0
        while not office.has_dead():
            n += 1
            assert n < 40
            office.accept(*ids(f"good-{n}-", 5))
            await office.until_delivered(5 * n)
            office.pass_time(3600)
            await office.until_sent("bad/1", n + 1)
            await office.settle()
    assert office.events("delivery.dead")[0][1]["cause"] == "poison"
    assert n > 20


async def test_what_is_known_of_a_turn_outlives_a_restart(office: Office) -> None:
    """Attempts, refusals and what they say against a turn are remembered."""
    office.turn = lambda turn_id: REFUSED if turn_id == "bad" else OK
    office.accept("bad")
    async with office.open():
        await office.until_told("delivery.refused", 1)
        await try_again(office, 5, others=10)
    assert not office.has_dead()
    office.dispatcher = office.make()
    async with office.open():
        office.pass_time(REFUSED_S)
        await office.until(lambda: office.sent.count("bad/1") == 7)
        await try_again(office, 1, others=10)
        await office.until(office.has_dead)


# --- how fast -------------------------------------------------------------------------------


async def test_the_whole_sender_rests(office: Office) -> None:
    """What one turn is asked for holds for all, also for those that were never sent."""
    office.turn = lambda _: Outcome(status=429, retry_after="3000")
    office.accept("a")
    async with office.open():
        await office.until_told("delivery.retry_scheduled", 1)
        office.turn = lambda _: OK
        office.accept(*ids("t", 20))
        await office.settle()
        assert office.sent == ["a/1"]
    office.dispatcher = office.make()
    async with office.open():
        await office.settle()
        assert office.sent == ["a/1"]
    office.now += 3001
    office.dispatcher = office.make()
    async with office.open():
        await office.until(lambda: office.counts() == {"delivered": 21})


async def test_a_limiter_that_counts_what_it_refuses(tmp_path: Path) -> None:
    """Forty at once, and so many in each half second: all get through, and few are refused."""
    office = Office(tmp_path / FILENAME, time.time)
    came: list[float] = []

    def limited(_: str) -> Outcome:
        now = time.monotonic()
        came.append(now)
        many = sum(at > now - 0.5 for at in came) > 20
        return Outcome(status=429, retry_after="1") if many else OK

    office.turn = limited
    office.accept(*ids("t", 50))
    async with office.open():
        await office.until(lambda: office.counts() == {"delivered": 50})
    assert len(office.sent) < 70
    office.outbox.close()


async def test_a_limit_of_one_turn_s_own(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put off again and again while others pass, as where each user has a limit: it alone rests."""
    monkeypatch.setattr(pace, "_RATE_LEAST", 1000.0)
    monkeypatch.setattr(pace, "_REST_MOST_S", 0.001)
    limited = Outcome(status=429)
    office.turn = lambda turn_id: limited if turn_id == "bad" else OK
    office.accept("bad")
    async with office.open():
        await office.until_told("delivery.retry_scheduled", 1)
        await try_again(office, 3, others=10)
        limited = Outcome(status=429, retry_after="3000")
        await try_again(office, 1, others=10)
        office.accept("last")
        await office.until(lambda: "last/1" in office.sent)
    assert office.counts()["pending"] == 1


async def test_retries_and_fresh_ones_take_turns(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they go one by one, a backlog of either holds none of the other."""
    monkeypatch.setattr(pace, "_RATE_LEAST", 50.0)
    office.turn = lambda _: Outcome(status=429)
    office.accept(*ids("old", 8))
    async with office.open():
        await office.until_told("delivery.retry_scheduled", 8)
        office.sent.clear()
        office.turn = lambda _: OK
        office.accept(*ids("new", 8))
        office.pass_time(1)
        await office.until(lambda: office.counts() == {"delivered": 16})
    assert {one[:3] for one in office.sent[:2]} == {one[:3] for one in office.sent[2:4]}
    assert {one[:3] for one in office.sent[:2]} == {"old", "new"}


# --- is the receiver well? ------------------------------------------------------------------


async def test_ping_body() -> None:
    """A ping says who asks and when, under an id of its own each time."""
    id_, body = ping_body("mriver", NOW)
    assert decode(body) == Ping(datetime.fromtimestamp(NOW, UTC), Host("mriver"))
    assert ping_body("mriver", NOW)[0] != id_


async def test_the_turn_s_fault(office: Office) -> None:
    """A 404 while the receiver is well refuses the turn, and pauses nothing."""
    office.turn = lambda turn_id: NOT_FOUND if turn_id == "bad" else OK
    office.accept("bad")
    async with office.open():
        await office.until(lambda: office.names("delivery.refused"))
        office.accept("good")
        await office.until(lambda: office.counts() == {"delivered": 1, "pending": 1})
    assert office.pings == 1
    assert office.names("receiver") == []
    assert office.events("delivery.refused")[0][1]["status"] == 404


async def test_one_ping_for_all(office: Office) -> None:
    """Turns that ask at the same time share a ping."""
    go_on = anyio.Event()

    async def slow() -> Outcome:
        await go_on.wait()
        return OK

    office.turn = lambda _: NOT_FOUND
    office.ping = slow
    office.accept(*ids("t", 8))
    async with office.open():
        await office.until(lambda: len(office.sent) == 8 and not office.under_way)
        await office.settle()
        go_on.set()
        await office.until_told("delivery.refused", 8)
    assert office.pings == 1


async def test_one_pause_for_all(office: Office) -> None:
    """Turns that learn it at the same time pause the receiver once."""
    office.turn = lambda _: NOT_FOUND
    office.ping = lambda: NOT_FOUND
    office.accept(*ids("t", 8))
    async with office.open():
        await office.until_told("delivery.retry_scheduled", 8)
        await office.until(lambda: office.names("receiver.paused"))
        await office.settle()
    assert office.names("receiver") == ["receiver.paused"]
    assert "delivery.refused" not in office.names()


@pytest.mark.parametrize("status", [301, 401, 403, 404, 410])
async def test_the_receiver_s_fault(office: Office, status: int) -> None:
    """If the ping fails too, the receiver is paused: no turn goes out, and none is to blame."""
    office.turn = lambda _: Outcome(status=status)
    office.ping = lambda: Outcome(status=status)
    office.accept("a")
    async with office.open():
        await office.until(lambda: office.pings >= 4)
        office.accept("b")
        await office.until(lambda: office.pings >= 6)
        assert office.sent == ["a/1"]
        assert office.events("receiver") == [("receiver.paused", {"why": f"status_{status}"})]
        assert office.names("delivery") == ["delivery.attempted", "delivery.retry_scheduled"]
        office.turn, office.ping = (lambda _: OK), (lambda: OK)
        office.pass_time(2.5)
        await office.until(lambda: office.counts() == {"delivered": 2})
        await office.until_told("receiver", 2)
    assert office.events("receiver")[1] == ("receiver.resumed", {"paused_ms": 2500})


async def test_an_outage_that_answers(office: Office) -> None:
    """Fifty turns in a row that are put off, and the ping too: only pings go out."""
    office.turn = lambda _: LATER
    office.ping = lambda: LATER
    office.accept(*ids("t", 100))
    async with office.open():
        await office.until(lambda: office.pings >= 4)
        assert office.events("receiver") == [("receiver.paused", {"why": "status_503"})]
        sent = len(office.sent)
        assert 50 <= sent <= 50 + 2 * breaker.MAX_CONCURRENCY
        office.pass_time(100)
        pings = office.pings
        await office.until(lambda: office.pings >= pings + 3)
        assert len(office.sent) == sent
        office.turn, office.ping = (lambda _: OK), (lambda: OK)
        await office.until(lambda: office.counts() == {"delivered": 100})


async def test_a_receiver_that_takes_pings_and_no_turns(office: Office) -> None:
    """It is not paused: what is fresh still goes out at once, what failed one by one."""
    office.turn = lambda turn_id: OK if turn_id == "good" else LATER
    office.accept(*ids("t", 60))
    async with office.open():
        await office.until(lambda: office.pings)
        await office.settle()
        sent = len(office.sent)
        office.pass_time(100)
        await office.until(lambda: len(office.sent) > sent)
        await office.settle()
        assert len(office.sent) == sent + 1
        office.accept("fresh")
        await office.until(lambda: "fresh/1" in office.sent)
        assert office.names("receiver") == []
        office.accept("good")
        office.turn = lambda _: OK
        await office.settle()
        office.pass_time(100)
        await office.until(lambda: office.counts() == {"delivered": 62})


@pytest.mark.slow
async def test_what_an_outage_leaves(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its first attempts a turn has an event a minute, which says how many there were."""
    monkeypatch.setattr(breaker, "_POSTPONED_TO_ASK", 10_000)
    monkeypatch.setattr(breaker, "_SLOWLY_S", 1e9)
    monkeypatch.setattr(policy, "MAX_BACKOFF_S", 0.1)
    office.turn = lambda _: LATER
    office.accept("a")
    async with office.open():
        for n in range(1, 1001):
            await office.until_sent("a/1", n)
            await office.settle()
            office.pass_time(0.6)
    told = [fields for _, fields in office.events("delivery.attempted")]
    assert 5 + 9 <= len(told) <= 5 + 11
    assert sum(1 + fields.get("untold", 0) for fields in told) == told[-1]["attempt"]
    assert len(office.names("delivery.retry_scheduled")) == 5


async def test_five_failures(office: Office) -> None:
    """Five connection failures in a row, over all turns, and only pings go out."""
    office.turn = lambda _: UNREACHABLE
    office.ping = lambda: UNREACHABLE
    office.accept(*ids("t", 4))
    async with office.open():
        await office.until_told("delivery.retry_scheduled", 4)
        assert office.names("receiver") == []
        office.accept(*ids("u", 20))
        await office.until(lambda: office.pings >= 3)
        assert office.events("receiver") == [("receiver.paused", {"why": "connect"})]
        # Those that were under way may still end; nothing new begins.
        sent = len(office.sent)
        assert sent <= 4 + 8
        office.pass_time(1)
        pings = office.pings
        await office.until(lambda: office.pings >= pings + 3)
        assert len(office.sent) == sent


@pytest.mark.parametrize("answer", [OK, LATER, REFUSED, NOT_FOUND], ids=lambda o: str(o.status))
async def test_an_answer_ends_the_row(office: Office, answer: Outcome) -> None:
    """Any answer between the failures proves that the receiver can be reached."""
    office.turn = lambda turn_id: answer if turn_id.startswith("answered") else UNREACHABLE
    async with office.open():
        for n in range(3):
            for turn_id in (*ids(f"t{n}-", 4), f"answered{n}"):
                office.accept(turn_id)
                attempts = len(office.names("delivery.attempted"))
                await office.until_told("delivery.attempted", attempts + 1)
    assert office.names("receiver") == []


async def test_slow_start(office: Office) -> None:
    """After a pause two go out at once, and one more with each acknowledgement."""
    office.turn = lambda _: UNREACHABLE
    office.ping = lambda: UNREACHABLE
    office.accept(*ids("t", 5))
    async with office.open():
        await office.until(lambda: office.names("receiver.paused"))
        office.accept(*ids("u", 20))
        gate = anyio.Semaphore(0)

        async def slow(turn_id: str) -> Outcome:
            await gate.acquire()
            return OK

        office.turn, office.ping = slow, lambda: OK
        office.pass_time(60)
        for n in range(2, 9):
            await office.until_under_way(n)
            await office.settle()
            assert len(office.under_way) == n
            gate.release()
        for _ in range(25):
            gate.release()
        await office.until(lambda: office.counts() == {"delivered": 25})


async def test_paused_before_the_start(office: Office) -> None:
    """A pause outlives a restart: a turn is never the probe."""
    office.outbox.pause("connect")
    office.accept("a")
    office.now += 60
    office.ping = lambda: LATER
    async with office.open():
        await office.until(lambda: office.pings >= 3)
        assert office.sent == []
        office.ping = lambda: OK
        await office.until(lambda: office.counts() == {"delivered": 1})
        await office.until_told("receiver", 2)
    assert office.events("receiver")[1] == ("receiver.resumed", {"paused_ms": 60_000})
    with closing(Outbox(office.path)) as outbox:
        assert outbox.service()["paused_at"] is None


# --- the end --------------------------------------------------------------------------------


async def test_grace(office: Office) -> None:
    """At the end what is under way may end, and nothing new begins."""
    go_on = anyio.Event()

    async def slow(turn_id: str) -> Outcome:
        await go_on.wait()
        return OK

    office.turn = slow
    office.accept(*ids("t", 3))
    async with office.open():
        await office.until_under_way(3)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(office.dispatcher.stop, PATIENCE_S)
            await anyio.lowlevel.checkpoint()
            office.accept("late")
            await office.settle()
            go_on.set()
        assert office.counts() == {"delivered": 3, "pending": 1}
        assert len(office.sent) == 3


async def test_what_is_written_down_takes_no_place(office: Office) -> None:
    """One that was answered makes room at once: the next is asked for as it is written down."""
    answered = {turn_id: anyio.Event() for turn_id in ids("t", breaker.MAX_CONCURRENCY + 1)}

    async def gated(turn_id: str) -> Outcome:
        await answered[turn_id].wait()
        return OK

    office.turn = gated
    office.accept(*answered)
    statements: list[str] = []
    async with office.open():
        await office.until_under_way(breaker.MAX_CONCURRENCY)
        (last,) = set(answered) - set(office.under_way)
        office.outbox.connection.set_trace_callback(statements.append)
        answered[office.under_way[0]].set()
        await office.until(lambda: last in office.under_way)
        office.outbox.connection.set_trace_callback(None)
        assert statements.count("COMMIT") == 1
        assert office.names("delivery") == ["delivery.attempted", "delivery.delivered"]


async def test_the_end_while_it_looks(office: Office) -> None:
    """What was found due in the instant of the end is left for the next start."""
    async with office.open():
        await office.settle()
        office.accept("a")
        await anyio.lowlevel.checkpoint()  # it has asked, and waits for the transaction
        await office.dispatcher.stop(0)
        await office.settle()
    assert office.counts() == {"pending": 1}
    assert office.sent == []


async def test_grace_that_is_over(office: Office) -> None:
    """Who does not answer in time is not waited for: the turn is there for the next start."""
    office.turn = never
    office.accept("a")
    async with office.open():
        await office.until(lambda: office.under_way)
        with anyio.fail_after(PATIENCE_S):
            await office.dispatcher.stop(0.01)
        assert office.under_way == ["a"]
    assert office.under_way == []
    assert office.names("delivery") == []
    office.turn = lambda _: OK
    office.dispatcher = office.make()
    async with office.open():
        await office.until(lambda: office.counts() == {"delivered": 1})


async def test_nothing_under_way(office: Office) -> None:
    """With nothing under way the end comes at once."""
    async with office.open():
        with anyio.fail_after(PATIENCE_S):
            await office.dispatcher.stop(10 * PATIENCE_S)


async def test_no_ping_after_the_end(office: Office) -> None:
    """Once it stops, not even a ping goes out."""
    office.outbox.pause("connect")
    office.ping = lambda: LATER
    async with office.open():
        await office.until(lambda: office.pings >= 2)
        await office.dispatcher.stop(1)
        before = office.pings
        await anyio.sleep(0.05)  # several times as long as between two of them
        assert office.pings <= before + 1  # one was perhaps under way


async def test_known_at_the_last_moment(office: Office) -> None:
    """An outcome that is known when all is cancelled is written down."""
    with anyio.CancelScope() as scope:

        def answer(_: str) -> Outcome:
            scope.cancel()
            return OK

        office.turn = answer
        office.accept("a")
        await office.dispatcher.run()
    assert office.counts() == {"delivered": 1}


# --- a full disk ----------------------------------------------------------------------------


def fill(outbox: Outbox) -> None:
    """Leave no room for an event."""
    pages = outbox.pragma("page_count")
    outbox.connection.execute(f"PRAGMA max_page_count = {pages}")
    with suppress(Full):
        while True:
            outbox.transaction([lambda: outbox.record_service_event("x", {})])


def make_room(outbox: Outbox) -> None:
    outbox.connection.execute("PRAGMA max_page_count = 1000000")


@pytest.mark.parametrize("most", [10, 1000])
async def test_full(office: Office, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """What cannot be written down is not sent again meanwhile, and holds up no other turn.

    But only so many are sent like that: a crash would send them again.
    """
    monkeypatch.setattr(dispatcher, "_MAX_UNRECORDED", most)
    sent = min(most, 20)
    office.accept(*ids("t", 20))
    fill(office.outbox)
    async with office.open():
        await office.until(lambda: len(office.sent) == sent)
        blocked = office.blocked
        await office.until(lambda: office.blocked >= blocked + 3 * sent)
        assert office.counts() == {"pending": 20}
        assert len(office.sent) == sent
        make_room(office.outbox)
        await office.until(lambda: office.counts() == {"delivered": 20})
        await office.settle()
    assert len(office.sent) == 20


async def test_full_and_paused(office: Office) -> None:
    """A full disk holds no ping, and a pause that was never on record is not ended on it."""
    office.turn = lambda _: UNREACHABLE
    office.ping = lambda: UNREACHABLE
    office.accept(*ids("t", 5))
    fill(office.outbox)
    async with office.open():
        await office.until(lambda: office.pings >= 3)
        office.turn, office.ping = (lambda _: OK), (lambda: OK)
        pings = office.pings
        await office.until(lambda: office.pings > pings)
        make_room(office.outbox)
        await office.until_told("delivery.retry_scheduled", 5)
        office.pass_time(60)
        await office.until(lambda: office.counts() == {"delivered": 5})
    assert office.names("receiver") == []


async def test_room_during_a_pause(office: Office) -> None:
    """A pause that could not be recorded is, as soon as there is room."""
    office.turn = lambda _: UNREACHABLE
    office.ping = lambda: UNREACHABLE
    office.accept(*ids("t", 5))
    fill(office.outbox)
    async with office.open():
        await office.until(lambda: office.pings >= 2)
        make_room(office.outbox)
        await office.until(lambda: office.names("receiver.paused"))
        office.ping = lambda: OK
        await office.until(lambda: office.names("receiver.resumed"))
    assert office.names("receiver") == ["receiver.paused", "receiver.resumed"]
