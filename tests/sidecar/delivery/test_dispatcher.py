from __future__ import annotations

import asyncio
import gc
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from support.dispatching import (
    LATER,
    OK,
    REFUSED,
    UNREACHABLE,
    Harness,
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


async def test_delivered(harness: Harness) -> None:
    """What is due goes out, before and after the start, and its outcome is written down."""
    harness.accept("a")
    async with harness.open():
        await harness.until(lambda: harness.counts() == {"delivered": 1})
        harness.accept("b")
        await harness.until(lambda: harness.counts() == {"delivered": 2})
    assert harness.sent == ["a/1", "b/1"]
    assert harness.names("delivery") == ["delivery.attempted", "delivery.delivered"] * 2


async def test_window(harness: Harness) -> None:
    """Eight turns are under way at once, and a slot that gets free is taken at once."""
    go_on = harness.hold()
    harness.accept(*ids("t", 20))
    async with harness.open():
        await harness.until_under_way(8)
        await harness.settle()
        assert sorted(harness.under_way) == ["t0", "t1", "t16", "t17", "t18", "t19", "t2", "t3"]
        harness.turn = lambda _: OK
        go_on.set()
        await harness.until(lambda: harness.counts() == {"delivered": 20})
    assert sorted(harness.sent) == sorted(f"{one}/1" for one in ids("t", 20))


async def test_one_that_is_slow(harness: Harness) -> None:
    """A receiver that is slow with one turn delays no other."""
    harness.turn = lambda turn_id: never(turn_id) if turn_id == "slow" else OK
    harness.accept("slow", *ids("t", 50))
    async with harness.open():
        await harness.until(lambda: harness.counts() == {"delivered": 50, "pending": 1})
        assert harness.under_way == ["slow"]


# --- what was just accepted -----------------------------------------------------------------


def fetches(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many deliveries each question to the database found."""
    found: list[int] = []
    fetch_due = queue.fetch_due

    def counted(outbox: Outbox, *what: Any, **how: Any) -> Any:  # noqa: ANN401 - handed through
        deliveries, next_s = fetch_due(outbox, *what, **how)
        found.append(len(deliveries))
        return deliveries, next_s

    monkeypatch.setattr(queue, "fetch_due", counted)
    return found


async def take(harness: Harness, *turn_ids: str, content: bytes = b"Yes.") -> list[Delivery]:
    """Accept answers as intake does, in one transaction; they are not offered yet."""

    def accept(outbox: Outbox) -> list[Delivery]:
        taken = [acceptance.accept(outbox, arrival(turn_id, content)) for turn_id in turn_ids]
        return [one for one in taken if one is not None]

    return await harness.group.commit(accept)


async def test_offered(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was just accepted goes out at once, and the database is not asked for it."""
    async with harness.open():
        await harness.settle()
        found = fetches(harness, monkeypatch)
        for n in range(3):
            harness.dispatcher.offer(await take(harness, f"a{n}", f"b{n}"))
            await harness.until_delivered(2 * n + 2)
        assert found == []


async def test_more_offered_than_places(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no slot stays in the database, which is asked until it has no more."""
    async with harness.open():
        await harness.settle()
        found = fetches(harness, monkeypatch)
        harness.dispatcher.offer(await take(harness, *ids("t", 20)))
        await harness.until_delivered(20)
        assert sum(found) == 12
        asked = len(found)
        harness.dispatcher.offer(await take(harness, "last"))
        await harness.until_delivered(21)
        assert len(found) == asked
    assert len(harness.sent) == len(set(harness.sent)) == 21


async def test_offered_late(harness: Harness) -> None:
    """What the database was asked for meanwhile is not sent twice."""
    async with harness.open():
        await harness.settle()
        deliveries = await take(harness, "a")
        harness.dispatcher.wake()
        await harness.until_delivered(1)
        harness.dispatcher.offer(deliveries)
        await harness.settle()
    assert harness.sent == ["a/1"]


async def test_what_comes_while_it_looks(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake-up after the database was read, and before that is dealt with, makes it look again."""
    fetch_due = queue.fetch_due

    def and_then_one_comes(*what: Any, **how: Any) -> Any:  # noqa: ANN401 - handed through
        monkeypatch.setattr(queue, "fetch_due", fetch_due)
        asyncio.get_running_loop().call_soon(harness.accept, "a")
        return fetch_due(*what, **how)

    async with harness.open():
        await harness.settle()
        monkeypatch.setattr(queue, "fetch_due", and_then_one_comes)
        harness.dispatcher.wake()
        await harness.until_delivered(1)


async def test_two_revisions_offered_at_once(harness: Harness) -> None:
    """The newer one took the place of the older one."""
    async with harness.open():
        await harness.settle()
        older = await take(harness, "a")
        newer = await take(harness, "a", content=b"No.")
        harness.dispatcher.offer([*older, *newer])
        await harness.until(lambda: harness.counts() == {"delivered": 1, "superseded": 1})
    assert harness.sent == ["a/2"]


async def test_a_revision_offered_while_the_older_one_is_under_way(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes when that has ended, and the others do not ask for it before."""
    go_on = harness.hold("a")
    async with harness.open():
        await harness.settle()
        harness.dispatcher.offer(await take(harness, "a"))
        await harness.until_under_way(1)
        found = fetches(harness, monkeypatch)
        harness.dispatcher.offer(await take(harness, "a", content=b"No."))
        harness.dispatcher.offer(await take(harness, "b"))
        await harness.until_delivered(1)
        assert found == []
        go_on.set()
        await harness.until_delivered(3)
    assert harness.sent == ["a/1", "b/1", "a/2"]


# --- what is fetched before there is a slot ------------------------------------------------


@asynccontextmanager
async def backlog(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, ahead_s: float, answer: Outcome = OK
) -> AsyncIterator[anyio.Event]:
    """Eight turns are under way and twelve wait, some of them fetched; then nothing is committed.

    Yields:
        The event that lets the attempts be answered.
    """
    monkeypatch.setattr(dispatcher, "_MAX_PREFETCHED_S", ahead_s)
    go_on = harness.hold(answer=answer)
    async with harness.open():
        await harness.settle()
        found = fetches(harness, monkeypatch)
        harness.dispatcher.offer(await take(harness, *ids("t", 20)))
        await harness.until_under_way(8)
        await harness.group.commit(queries.counts)
        assert set(found) == {8}  # and again, where they may wait for no time at all
        yield go_on


def lock(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another process have the outbox's lock."""

    def locked(_: object) -> None:
        raise Busy(harness.path, "is locked")

    monkeypatch.setattr(harness.outbox, "transaction", locked)


async def test_the_next_do_not_wait_for_the_commit(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a backlog the next attempts go while what became of the last ones is not committed."""
    transaction = harness.outbox.transaction
    async with backlog(harness, monkeypatch, PATIENCE_S) as go_on:
        lock(harness, monkeypatch)
        go_on.set()
        await harness.until(lambda: len(harness.sent) == 16)
        assert harness.counts() == {"pending": 20}
        monkeypatch.setattr(harness.outbox, "transaction", transaction)
        await harness.until_delivered(20)
    assert len(set(harness.sent)) == 20


@pytest.mark.parametrize("answer", [LATER, REFUSED, UNREACHABLE], ids=str)
async def test_the_next_wait_where_the_last_failed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, answer: Outcome
) -> None:
    """A receiver in trouble gets no more than what was under way, until that is recorded."""
    transaction = harness.outbox.transaction
    async with backlog(harness, monkeypatch, PATIENCE_S, answer) as go_on:
        lock(harness, monkeypatch)
        go_on.set()
        await harness.until(lambda: not harness.under_way)
        assert len(harness.sent) == 8
        monkeypatch.setattr(harness.outbox, "transaction", transaction)


async def test_recorded_later(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery was acknowledged when its answer came, however much later that is recorded."""
    transaction = harness.outbox.transaction

    def acknowledge(_: str) -> Outcome:
        lock(harness, monkeypatch)
        return OK

    harness.turn = acknowledge
    harness.accept("a")
    async with harness.open():
        await harness.until(lambda: harness.sent and not harness.under_way)
        answered_at = harness.now
        await anyio.lowlevel.checkpoint()
        harness.now += 5
        monkeypatch.setattr(harness.outbox, "transaction", transaction)
        await harness.until_delivered(1)
    (settled_at,) = harness.outbox.connection.execute("SELECT settled_at FROM delivery").fetchone()
    assert settled_at == 1000 * answered_at
    ((_, delivered),) = harness.events("delivery.delivered")
    assert delivered["since_accepted_ms"] == 0


async def test_what_waited_too_long_is_asked_for_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow receiver gets what is fresh next, and not what was fetched long ago."""
    async with backlog(harness, monkeypatch, 0.0) as go_on:
        harness.dispatcher.offer(await take(harness, "fresh"))
        go_on.set()
        await harness.until_delivered(21)
    assert "fresh/1" in harness.sent[8:16]
    assert len(set(harness.sent)) == 21


async def test_what_was_superseded_before_it_went(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was fetched and has a newer revision by now is not sent."""
    async with backlog(harness, monkeypatch, PATIENCE_S) as go_on:
        waiting = sorted(set(ids("t", 20)) - set(harness.under_way))
        harness.dispatcher.offer(await take(harness, *waiting, content=b"No."))
        go_on.set()
        await harness.until(lambda: harness.counts() == {"delivered": 20, "superseded": 12})
    assert sorted(harness.sent[8:]) == [f"{turn_id}/2" for turn_id in waiting]


async def test_what_failed_before_is_not_kept_waiting(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What becomes due once more gets its slot before what was fetched."""
    await fail_once(harness, "old")
    harness.now -= 1
    async with backlog(harness, monkeypatch, PATIENCE_S) as go_on:
        harness.pass_time(1)
        go_on.set()
        await harness.until_delivered(21)
    assert "old/1" in harness.sent[8:16]


async def test_what_was_fetched_is_no_reason_to_stay(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end what has no slot yet is left for the next start."""
    async with backlog(harness, monkeypatch, PATIENCE_S) as go_on:
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(harness.dispatcher.stop, 10 * PATIENCE_S)
                await anyio.lowlevel.checkpoint()
                go_on.set()
        assert harness.counts() == {"delivered": 8, "pending": 12}


# --- half of the slots ---------------------------------------------------------------------


async def test_half_of_the_places(harness: Harness) -> None:
    """Turns that failed before get half of the slots, whatever else is there."""
    await fail_once(harness, *ids("old", 8))
    harness.turn = never
    harness.accept(*ids("new", 20))
    async with harness.open():
        await harness.until_under_way(8)
        await harness.settle()
        fresh = [one for one in harness.under_way if one.startswith("new")]
        assert len(fresh) == 4
        assert sorted(set(harness.under_way) - set(fresh)) == ids("old", 4)


class Gate:
    """A receiver that answers one turn, the one that came first, each time that it is asked to."""

    def __init__(self, harness: Harness) -> None:
        self._office = harness
        self._waiting: list[anyio.Event] = []
        harness.turn = self._hold

    async def _hold(self, _: str) -> Outcome:
        self._waiting.append(event := anyio.Event())
        await event.wait()
        return OK

    async def answer_one(self) -> None:
        sent = len(self._office.sent)
        self._waiting.pop(0).set()
        await self._office.until(lambda: len(self._office.sent) > sent)


async def test_a_flood_in_another_root(harness: Harness) -> None:
    """Another root's answer takes the next free slot, a new one of the same root the one after."""
    gate = Gate(harness)
    harness.accept(*ids("flood", 100))
    async with harness.open():
        await harness.until_under_way(8)
        harness.accept("other", backend="legacy")
        await gate.answer_one()
        assert harness.sent[-1] == "other/1"
        harness.accept("own")
        for _ in range(2):
            await gate.answer_one()
        assert "own/1" in harness.sent[-2:]
        harness.accept(*ids("more", 20), backend="legacy")
        for _ in range(20):
            await gate.answer_one()
        from_other = [one for one in harness.sent[-20:] if one.startswith("more")]
        assert 9 <= len(from_other) <= 11 + 4  # until it has as many slots as the flood


async def test_a_flood_of_another_roots_retries(harness: Harness) -> None:
    """What failed before takes turns by roots as well, within its half of the slots."""
    harness.turn = lambda _: LATER
    harness.accept(*ids("flood", 40))
    harness.accept("other", backend="legacy")
    async with harness.open():
        await harness.until_recorded("delivery.retry_scheduled", 41)
    harness.sent.clear()
    harness.dispatcher = harness.make()
    harness.now += 1
    harness.turn = never
    async with harness.open():
        await harness.until_under_way(4)
        assert "other/1" in harness.sent


async def test_a_flood_over_a_restart(harness: Harness) -> None:
    """Whose an answer is, is in the outbox: a new start shares the slots as well."""
    harness.turn = never
    harness.accept(*ids("flood", 100))
    harness.accept("other", backend="legacy")
    for _ in range(2):
        harness.sent.clear()
        async with harness.open():
            await harness.until_under_way(8)
            assert "other/1" in harness.sent
        harness.dispatcher = harness.make()


async def test_the_failed_leave_room(harness: Harness) -> None:
    """However many failed ones hang, fresh ones go out at once."""
    await fail_once(harness, *ids("old", 20))
    harness.turn = lambda turn_id: never(turn_id) if turn_id.startswith("old") else OK
    async with harness.open():
        await harness.until(lambda: harness.under_way == ids("old", 4))
        harness.accept(*ids("new", 20))
        await harness.until(lambda: harness.counts() == {"delivered": 20, "pending": 20})
        assert harness.under_way == ids("old", 4)


async def test_never_two_of_one_turn(harness: Harness) -> None:
    """A newer revision waits until the older one's attempt has ended, whatever else goes."""
    go_on = harness.hold("a")
    harness.accept("a")
    async with harness.open():
        await harness.until(lambda: harness.under_way == ["a"])
        harness.accept("a", content=b"No.")
        harness.accept("b")
        await harness.until(lambda: harness.counts().get("delivered") == 1)
        await harness.settle()
        assert harness.sent == ["a/1", "b/1"]
        go_on.set()
        await harness.until(lambda: harness.counts() == {"delivered": 3})
    assert harness.sent == ["a/1", "b/1", "a/2"]


# --- how fast -------------------------------------------------------------------------------


async def test_the_whole_sender_rests(harness: Harness) -> None:
    """What one turn is asked for holds for all, also for those that were never sent."""
    harness.turn = lambda _: Outcome(status=429, retry_after="3000")
    harness.accept("a")
    async with harness.open():
        await harness.until_recorded("delivery.retry_scheduled", 1)
        harness.turn = lambda _: OK
        harness.accept(*ids("t", 20))
        await harness.settle()
        assert harness.sent == ["a/1"]
    harness.dispatcher = harness.make()
    async with harness.open():
        await harness.settle()
        assert harness.sent == ["a/1"]
    harness.now += 3001
    harness.dispatcher = harness.make()
    async with harness.open():
        await harness.until(lambda: harness.counts() == {"delivered": 21})


async def test_a_limiter_that_counts_what_it_refuses(tmp_path: Path) -> None:
    """Forty at once, and so many in each half second: all get through, and few are refused."""
    harness = Harness(tmp_path / FILENAME, time.time)
    came: list[float] = []

    def limited(_: str) -> Outcome:
        now = time.monotonic()
        came.append(now)
        many = sum(at > now - 0.5 for at in came) > 20
        return Outcome(status=429, retry_after="1") if many else OK

    harness.turn = limited
    harness.accept(*ids("t", 50))
    async with harness.open():
        await harness.until(lambda: harness.counts() == {"delivered": 50})
    assert len(harness.sent) < 70
    harness.outbox.close()


async def test_a_limit_of_one_turn_s_own(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put off again and again while others pass, as where each user has a limit: it alone rests."""
    monkeypatch.setattr(rate_limiter, "_MIN_RATE", 1000.0)
    monkeypatch.setattr(rate_limiter, "_MAX_REST_S", 0.001)
    limited = Outcome(status=429)
    harness.turn = lambda turn_id: limited if turn_id == "bad" else OK
    harness.accept("bad")
    async with harness.open():
        await harness.until_recorded("delivery.retry_scheduled", 1)
        await try_again(harness, 3, others=10)
        limited = Outcome(status=429, retry_after="3000")
        await try_again(harness, 1, others=10)
        harness.accept("last")
        await harness.until(lambda: "last/1" in harness.sent)
    assert harness.counts()["pending"] == 1


async def test_retries_and_fresh_ones_take_turns(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they go one by one, a backlog of either holds none of the other."""
    monkeypatch.setattr(rate_limiter, "_MIN_RATE", 50.0)
    harness.turn = lambda _: Outcome(status=429)
    harness.accept(*ids("old", 8))
    async with harness.open():
        await harness.until_recorded("delivery.retry_scheduled", 8)
        harness.sent.clear()
        harness.turn = lambda _: OK
        harness.accept(*ids("new", 8))
        harness.pass_time(1)
        await harness.until(lambda: harness.counts() == {"delivered": 16})
    assert {one[:3] for one in harness.sent[:2]} == {one[:3] for one in harness.sent[2:4]}
    assert {one[:3] for one in harness.sent[:2]} == {"old", "new"}


# --- the end --------------------------------------------------------------------------------


async def test_grace(harness: Harness) -> None:
    """At the end what is under way may end, and nothing new begins."""
    go_on = harness.hold()
    harness.accept(*ids("t", 3))
    async with harness.open():
        await harness.until_under_way(3)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(harness.dispatcher.stop, PATIENCE_S)
            await anyio.lowlevel.checkpoint()
            harness.accept("late")
            await harness.settle()
            go_on.set()
        assert harness.counts() == {"delivered": 3, "pending": 1}
        assert len(harness.sent) == 3


async def test_what_is_written_down_takes_no_place(harness: Harness) -> None:
    """One that was answered makes room at once: the next is asked for as it is written down."""
    answered = {turn_id: anyio.Event() for turn_id in ids("t", breaker.MAX_CONCURRENCY + 1)}

    async def gated(turn_id: str) -> Outcome:
        await answered[turn_id].wait()
        return OK

    harness.turn = gated
    harness.accept(*answered)
    statements: list[str] = []
    async with harness.open():
        await harness.until_under_way(breaker.MAX_CONCURRENCY)
        (last,) = set(answered) - set(harness.under_way)
        harness.outbox.connection.set_trace_callback(statements.append)
        answered[harness.under_way[0]].set()
        await harness.until(lambda: last in harness.under_way)
        harness.outbox.connection.set_trace_callback(None)
        assert statements.count("COMMIT") == 1
        assert harness.names("delivery") == ["delivery.attempted", "delivery.delivered"]


async def test_the_end_while_it_looks(harness: Harness) -> None:
    """What was found due in the instant of the end is left for the next start."""
    async with harness.open():
        await harness.settle()
        harness.accept("a")
        await anyio.lowlevel.checkpoint()  # it has asked, and waits for the transaction
        await harness.dispatcher.stop(0)
        await harness.settle()
    assert harness.counts() == {"pending": 1}
    assert harness.sent == []


async def test_the_end_while_it_looks_in_vain(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for in the instant of the end, and failed, is nobody's to complain of."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))
    async with harness.open():
        await harness.settle()
        harness.accept("a")
        monkeypatch.setattr(queue, "newest_delivery", fail)
    await harness.group.commit(queries.counts)
    await anyio.lowlevel.checkpoint()
    gc.collect()
    assert complaints == []
    assert harness.counts() == {"pending": 1}


def fail(_: Outbox) -> int:
    raise Full(Path("outbox.db"), "has no room")


async def test_grace_that_is_over(harness: Harness) -> None:
    """Who does not answer in time is not waited for: the turn is there for the next start."""
    harness.turn = never
    harness.accept("a")
    async with harness.open():
        await harness.until(lambda: harness.under_way)
        with anyio.fail_after(PATIENCE_S):
            await harness.dispatcher.stop(0.01)
        assert harness.under_way == ["a"]
    assert harness.under_way == []
    assert harness.names("delivery") == []
    harness.turn = lambda _: OK
    harness.dispatcher = harness.make()
    async with harness.open():
        await harness.until(lambda: harness.counts() == {"delivered": 1})


async def test_nothing_under_way(harness: Harness) -> None:
    """With nothing under way the end comes at once."""
    async with harness.open():
        with anyio.fail_after(PATIENCE_S):
            await harness.dispatcher.stop(10 * PATIENCE_S)


async def test_known_at_the_last_moment(harness: Harness) -> None:
    """An outcome that is known when all is cancelled is written down."""
    with anyio.CancelScope() as scope:

        def answer(_: str) -> Outcome:
            scope.cancel()
            return OK

        harness.turn = answer
        harness.accept("a")
        await harness.dispatcher.run()
    assert harness.counts() == {"delivered": 1}


# --- a full disk ----------------------------------------------------------------------------


@pytest.mark.parametrize("most", [10, 1000])
async def test_full(harness: Harness, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """What cannot be written down is not sent again meanwhile, and holds up no other turn.

    But only so many are sent like that: a crash would send them again.
    """
    monkeypatch.setattr(slots, "_MAX_UNRECORDED", most)
    sent = min(most, 20)
    harness.accept(*ids("t", 20))
    fill(harness.outbox)
    async with harness.open():
        await harness.until(lambda: len(harness.sent) == sent)
        blocked = harness.blocked
        await harness.until(lambda: harness.blocked >= blocked + 3 * sent)
        assert harness.counts() == {"pending": 20}
        assert len(harness.sent) == sent
        make_room(harness.outbox)
        await harness.until(lambda: harness.counts() == {"delivered": 20})
        await harness.settle()
    assert len(harness.sent) == 20
