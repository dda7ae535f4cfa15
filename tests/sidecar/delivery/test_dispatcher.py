from __future__ import annotations

import asyncio
import gc
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from support.office import (
    LATER,
    OK,
    REFUSED,
    UNREACHABLE,
    Office,
    arrival,
    fail_once,
    fill,
    ids,
    make_room,
    never,
    try_again,
)
from support.waiting import PATIENCE_S

from paliadin_sidecar.delivery import breaker, dispatcher, rate_limiter, slots
from paliadin_sidecar.errors import Busy, Full
from paliadin_sidecar.outbox import acceptance, queries, queue
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.records import Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from paliadin_sidecar.outbox.records import Delivery

pytestmark = pytest.mark.anyio


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
    go_on = office.hold()
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
    fetch_due = queue.fetch_due

    def counted(outbox: Outbox, *what: Any, **how: Any) -> Any:  # noqa: ANN401 - handed through
        deliveries, next_s = fetch_due(outbox, *what, **how)
        found.append(len(deliveries))
        return deliveries, next_s

    monkeypatch.setattr(queue, "fetch_due", counted)
    return found


async def take(office: Office, *turn_ids: str, content: bytes = b"Yes.") -> list[Delivery]:
    """Accept answers as intake does, in one transaction; they are not offered yet."""

    def accept(outbox: Outbox) -> list[Delivery]:
        taken = [acceptance.accept(outbox, arrival(turn_id, content)) for turn_id in turn_ids]
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


async def test_what_comes_while_it_looks(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake-up after the database was read, and before that is dealt with, makes it look again."""
    fetch_due = queue.fetch_due

    def and_then_one_comes(*what: Any, **how: Any) -> Any:  # noqa: ANN401 - handed through
        monkeypatch.setattr(queue, "fetch_due", fetch_due)
        asyncio.get_running_loop().call_soon(office.accept, "a")
        return fetch_due(*what, **how)

    async with office.open():
        await office.settle()
        monkeypatch.setattr(queue, "fetch_due", and_then_one_comes)
        office.dispatcher.wake()
        await office.until_delivered(1)


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
    go_on = office.hold("a")
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


# --- what is fetched before there is a place ------------------------------------------------


@asynccontextmanager
async def backlog(
    office: Office, monkeypatch: pytest.MonkeyPatch, ahead_s: float, answer: Outcome = OK
) -> AsyncIterator[anyio.Event]:
    """Eight turns are under way and twelve wait, some of them fetched; then nothing is committed.

    Yields:
        The event that lets the attempts be answered.
    """
    monkeypatch.setattr(dispatcher, "_MAX_PREFETCHED_S", ahead_s)
    go_on = office.hold(answer=answer)
    async with office.open():
        await office.settle()
        found = fetches(office, monkeypatch)
        office.dispatcher.offer(await take(office, *ids("t", 20)))
        await office.until_under_way(8)
        await office.group.commit(queries.counts)
        assert set(found) == {8}  # and again, where they may wait for no time at all
        yield go_on


def lock(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another process have the outbox's lock."""

    def locked(_: object) -> None:
        raise Busy(office.path, "is locked")

    monkeypatch.setattr(office.outbox, "transaction", locked)


async def test_the_next_do_not_wait_for_the_commit(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a backlog the next attempts go while what became of the last ones is not committed."""
    transaction = office.outbox.transaction
    async with backlog(office, monkeypatch, PATIENCE_S) as go_on:
        lock(office, monkeypatch)
        go_on.set()
        await office.until(lambda: len(office.sent) == 16)
        assert office.counts() == {"pending": 20}
        monkeypatch.setattr(office.outbox, "transaction", transaction)
        await office.until_delivered(20)
    assert len(set(office.sent)) == 20


@pytest.mark.parametrize("answer", [LATER, REFUSED, UNREACHABLE], ids=str)
async def test_the_next_wait_where_the_last_failed(
    office: Office, monkeypatch: pytest.MonkeyPatch, answer: Outcome
) -> None:
    """A receiver in trouble gets no more than what was under way, until that is recorded."""
    transaction = office.outbox.transaction
    async with backlog(office, monkeypatch, PATIENCE_S, answer) as go_on:
        lock(office, monkeypatch)
        go_on.set()
        await office.until(lambda: not office.under_way)
        assert len(office.sent) == 8
        monkeypatch.setattr(office.outbox, "transaction", transaction)


async def test_recorded_later(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery was acknowledged when its answer came, however much later that is recorded."""
    transaction = office.outbox.transaction

    def acknowledge(_: str) -> Outcome:
        lock(office, monkeypatch)
        return OK

    office.turn = acknowledge
    office.accept("a")
    async with office.open():
        await office.until(lambda: office.sent and not office.under_way)
        answered_at = office.now
        await anyio.lowlevel.checkpoint()
        office.now += 5
        monkeypatch.setattr(office.outbox, "transaction", transaction)
        await office.until_delivered(1)
    (settled_at,) = office.outbox.connection.execute("SELECT settled_at FROM delivery").fetchone()
    assert settled_at == 1000 * answered_at
    ((_, delivered),) = office.events("delivery.delivered")
    assert delivered["since_accepted_ms"] == 0


async def test_what_waited_too_long_is_asked_for_again(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow receiver gets what is fresh next, and not what was fetched long ago."""
    async with backlog(office, monkeypatch, 0.0) as go_on:
        office.dispatcher.offer(await take(office, "fresh"))
        go_on.set()
        await office.until_delivered(21)
    assert "fresh/1" in office.sent[8:16]
    assert len(set(office.sent)) == 21


async def test_what_was_superseded_before_it_went(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was fetched and has a newer revision by now is not sent."""
    async with backlog(office, monkeypatch, PATIENCE_S) as go_on:
        waiting = sorted(set(ids("t", 20)) - set(office.under_way))
        office.dispatcher.offer(await take(office, *waiting, content=b"No."))
        go_on.set()
        await office.until(lambda: office.counts() == {"delivered": 20, "superseded": 12})
    assert sorted(office.sent[8:]) == [f"{turn_id}/2" for turn_id in waiting]


async def test_what_failed_before_is_not_kept_waiting(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What becomes due once more gets its place before what was fetched."""
    await fail_once(office, "old")
    office.now -= 1
    async with backlog(office, monkeypatch, PATIENCE_S) as go_on:
        office.pass_time(1)
        go_on.set()
        await office.until_delivered(21)
    assert "old/1" in office.sent[8:16]


async def test_what_was_fetched_is_no_reason_to_stay(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end what has no place yet is left for the next start."""
    async with backlog(office, monkeypatch, PATIENCE_S) as go_on:
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(office.dispatcher.stop, 10 * PATIENCE_S)
                await anyio.lowlevel.checkpoint()
                go_on.set()
        assert office.counts() == {"delivered": 8, "pending": 12}


# --- half of the places ---------------------------------------------------------------------


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
    """A receiver that answers one turn, the one that came first, each time that it is asked to."""

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
        await office.until_recorded("delivery.retry_scheduled", 41)
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
    go_on = office.hold("a")
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


# --- how fast -------------------------------------------------------------------------------


async def test_the_whole_sender_rests(office: Office) -> None:
    """What one turn is asked for holds for all, also for those that were never sent."""
    office.turn = lambda _: Outcome(status=429, retry_after="3000")
    office.accept("a")
    async with office.open():
        await office.until_recorded("delivery.retry_scheduled", 1)
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
    monkeypatch.setattr(rate_limiter, "_MIN_RATE", 1000.0)
    monkeypatch.setattr(rate_limiter, "_MAX_REST_S", 0.001)
    limited = Outcome(status=429)
    office.turn = lambda turn_id: limited if turn_id == "bad" else OK
    office.accept("bad")
    async with office.open():
        await office.until_recorded("delivery.retry_scheduled", 1)
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
    monkeypatch.setattr(rate_limiter, "_MIN_RATE", 50.0)
    office.turn = lambda _: Outcome(status=429)
    office.accept(*ids("old", 8))
    async with office.open():
        await office.until_recorded("delivery.retry_scheduled", 8)
        office.sent.clear()
        office.turn = lambda _: OK
        office.accept(*ids("new", 8))
        office.pass_time(1)
        await office.until(lambda: office.counts() == {"delivered": 16})
    assert {one[:3] for one in office.sent[:2]} == {one[:3] for one in office.sent[2:4]}
    assert {one[:3] for one in office.sent[:2]} == {"old", "new"}


# --- the end --------------------------------------------------------------------------------


async def test_grace(office: Office) -> None:
    """At the end what is under way may end, and nothing new begins."""
    go_on = office.hold()
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


async def test_the_end_while_it_looks_in_vain(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for in the instant of the end, and failed, is nobody's to complain of."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))
    async with office.open():
        await office.settle()
        office.accept("a")
        monkeypatch.setattr(queue, "newest_delivery", fail)
    await office.group.commit(queries.counts)
    await anyio.lowlevel.checkpoint()
    gc.collect()
    assert complaints == []
    assert office.counts() == {"pending": 1}


def fail(_: Outbox) -> int:
    raise Full(Path("outbox.db"), "has no room")


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


@pytest.mark.parametrize("most", [10, 1000])
async def test_full(office: Office, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """What cannot be written down is not sent again meanwhile, and holds up no other turn.

    But only so many are sent like that: a crash would send them again.
    """
    monkeypatch.setattr(slots, "_MAX_UNRECORDED", most)
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
