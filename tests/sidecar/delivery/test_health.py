from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime

import anyio
import pytest
from support.dispatching import (
    LATER,
    NOT_FOUND,
    OK,
    REFUSED,
    UNREACHABLE,
    Harness,
    fill,
    ids,
    make_room,
)

from paliadin_contract.callback import Host, Ping, decode
from paliadin_sidecar.delivery import breaker, policy
from paliadin_sidecar.delivery.health import ping_body
from paliadin_sidecar.outbox import queries, transitions
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.records import Outcome

pytestmark = pytest.mark.anyio

#: 2026-11-22, 08:00 UTC.
NOW = 1_795_334_400.0


# --- is the receiver well? ------------------------------------------------------------------


async def test_ping_body() -> None:
    """A ping says who asks and when, under an id of its own each time."""
    id_, body = ping_body("mriver", NOW)
    assert decode(body) == Ping(datetime.fromtimestamp(NOW, UTC), Host("mriver"))
    assert ping_body("mriver", NOW)[0] != id_


async def test_the_turn_s_fault(harness: Harness) -> None:
    """A 404 while the receiver is well refuses the turn, and pauses nothing."""
    harness.turn = lambda turn_id: NOT_FOUND if turn_id == "bad" else OK
    harness.accept("bad")
    async with harness.open():
        await harness.until(lambda: harness.names("delivery.refused"))
        harness.accept("good")
        await harness.until(lambda: harness.counts() == {"delivered": 1, "pending": 1})
    assert harness.pings == 1
    assert harness.names("receiver") == []
    assert harness.events("delivery.refused")[0][1]["status"] == 404


async def test_one_ping_for_all(harness: Harness) -> None:
    """Turns that ask at the same time share a ping."""
    go_on = anyio.Event()

    async def slow() -> Outcome:
        await go_on.wait()
        return OK

    harness.turn = lambda _: NOT_FOUND
    harness.ping = slow
    harness.accept(*ids("t", 8))
    async with harness.open():
        await harness.until(lambda: len(harness.sent) == 8 and not harness.under_way)
        await harness.settle()
        go_on.set()
        await harness.until_recorded("delivery.refused", 8)
    assert harness.pings == 1


async def test_one_pause_for_all(harness: Harness) -> None:
    """Turns that learn it at the same time pause the receiver once."""
    harness.turn = lambda _: NOT_FOUND
    harness.ping = lambda: NOT_FOUND
    harness.accept(*ids("t", 8))
    async with harness.open():
        await harness.until_recorded("delivery.retry_scheduled", 8)
        await harness.until(lambda: harness.names("receiver.paused"))
        await harness.settle()
    assert harness.names("receiver") == ["receiver.paused"]
    assert "delivery.refused" not in harness.names()


@pytest.mark.parametrize("status", [301, 401, 403, 404, 410])
async def test_the_receiver_s_fault(harness: Harness, status: int) -> None:
    """If the ping fails too, the receiver is paused: no turn goes out, and none is to blame."""
    harness.turn = lambda _: Outcome(status=status)
    harness.ping = lambda: Outcome(status=status)
    harness.accept("a")
    async with harness.open():
        await harness.until(lambda: harness.pings >= 4)
        harness.accept("b")
        await harness.until(lambda: harness.pings >= 6)
        assert harness.sent == ["a/1"]
        assert harness.events("receiver") == [("receiver.paused", {"why": f"status_{status}"})]
        assert harness.names("delivery") == ["delivery.attempted", "delivery.retry_scheduled"]
        harness.turn, harness.ping = (lambda _: OK), (lambda: OK)
        harness.pass_time(2.5)
        await harness.until(lambda: harness.counts() == {"delivered": 2})
        await harness.until_recorded("receiver", 2)
    assert harness.events("receiver")[1] == ("receiver.resumed", {"paused_ms": 2500})


async def test_an_outage_that_answers(harness: Harness) -> None:
    """Fifty turns in a row that are put off, and the ping too: only pings go out."""
    harness.turn = lambda _: LATER
    harness.ping = lambda: LATER
    harness.accept(*ids("t", 100))
    async with harness.open():
        await harness.until(lambda: harness.pings >= 4)
        assert harness.events("receiver") == [("receiver.paused", {"why": "status_503"})]
        sent = len(harness.sent)
        assert 50 <= sent <= 50 + 2 * breaker.MAX_CONCURRENCY
        harness.pass_time(100)
        pings = harness.pings
        await harness.until(lambda: harness.pings >= pings + 3)
        assert len(harness.sent) == sent
        harness.turn, harness.ping = (lambda _: OK), (lambda: OK)
        await harness.until(lambda: harness.counts() == {"delivered": 100})


async def test_a_receiver_that_takes_pings_and_no_turns(harness: Harness) -> None:
    """It is not paused: what is fresh still goes out at once, what failed one by one."""
    harness.turn = lambda turn_id: OK if turn_id == "good" else LATER
    harness.accept(*ids("t", 60))
    async with harness.open():
        await harness.until(lambda: harness.pings)
        await harness.settle()
        sent = len(harness.sent)
        harness.pass_time(100)
        await harness.until(lambda: len(harness.sent) > sent)
        await harness.settle()
        assert len(harness.sent) == sent + 1
        harness.accept("fresh")
        await harness.until(lambda: "fresh/1" in harness.sent)
        assert harness.names("receiver") == []
        harness.accept("good")
        harness.turn = lambda _: OK
        await harness.settle()
        harness.pass_time(100)
        await harness.until(lambda: harness.counts() == {"delivered": 62})


@pytest.mark.slow
async def test_what_an_outage_leaves(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its first attempts a turn has an event a minute, which says how many there were."""
    monkeypatch.setattr(breaker, "_PING_AFTER_POSTPONED", 10_000)
    monkeypatch.setattr(breaker, "_SLOW_PING_S", 1e9)
    monkeypatch.setattr(policy, "MAX_BACKOFF_S", 0.1)
    harness.turn = lambda _: LATER
    harness.accept("a")
    async with harness.open():
        for n in range(1, 1001):
            await harness.until_sent("a/1", n)
            await harness.settle()
            harness.pass_time(0.6)
    reported = [fields for _, fields in harness.events("delivery.attempted")]
    assert 5 + 9 <= len(reported) <= 5 + 11
    assert sum(1 + fields.get("untold", 0) for fields in reported) == reported[-1]["attempt"]
    assert len(harness.names("delivery.retry_scheduled")) == 5


async def test_five_failures(harness: Harness) -> None:
    """Five connection failures in a row, over all turns, and only pings go out."""
    harness.turn = lambda _: UNREACHABLE
    harness.ping = lambda: UNREACHABLE
    harness.accept(*ids("t", 4))
    async with harness.open():
        await harness.until_recorded("delivery.retry_scheduled", 4)
        assert harness.names("receiver") == []
        harness.accept(*ids("u", 20))
        await harness.until(lambda: harness.pings >= 3)
        assert harness.events("receiver") == [("receiver.paused", {"why": "connect"})]
        # Those that were under way may still end; nothing new begins.
        sent = len(harness.sent)
        assert sent <= 4 + 8
        harness.pass_time(1)
        pings = harness.pings
        await harness.until(lambda: harness.pings >= pings + 3)
        assert len(harness.sent) == sent


@pytest.mark.parametrize("answer", [OK, LATER, REFUSED, NOT_FOUND], ids=lambda o: str(o.status))
async def test_an_answer_ends_the_row(harness: Harness, answer: Outcome) -> None:
    """Any answer between the failures proves that the receiver can be reached."""
    harness.turn = lambda turn_id: answer if turn_id.startswith("answered") else UNREACHABLE
    async with harness.open():
        for n in range(3):
            for turn_id in (*ids(f"t{n}-", 4), f"answered{n}"):
                harness.accept(turn_id)
                attempts = len(harness.names("delivery.attempted"))
                await harness.until_recorded("delivery.attempted", attempts + 1)
    assert harness.names("receiver") == []


async def test_slow_start(harness: Harness) -> None:
    """After a pause two go out at once, and one more with each acknowledgement."""
    harness.turn = lambda _: UNREACHABLE
    harness.ping = lambda: UNREACHABLE
    harness.accept(*ids("t", 5))
    async with harness.open():
        await harness.until(lambda: harness.names("receiver.paused"))
        harness.accept(*ids("u", 20))
        gate = anyio.Semaphore(0)

        async def slow(turn_id: str) -> Outcome:
            await gate.acquire()
            return OK

        harness.turn, harness.ping = slow, lambda: OK
        harness.pass_time(60)
        for n in range(2, 9):
            await harness.until_under_way(n)
            await harness.settle()
            assert len(harness.under_way) == n
            gate.release()
        for _ in range(25):
            gate.release()
        await harness.until(lambda: harness.counts() == {"delivered": 25})


async def test_paused_before_the_start(harness: Harness) -> None:
    """A pause outlives a restart: a turn is never the probe."""
    transitions.pause(harness.outbox, "connect")
    harness.accept("a")
    harness.now += 60
    harness.ping = lambda: LATER
    async with harness.open():
        await harness.until(lambda: harness.pings >= 3)
        assert harness.sent == []
        harness.ping = lambda: OK
        await harness.until(lambda: harness.counts() == {"delivered": 1})
        await harness.until_recorded("receiver", 2)
    assert harness.events("receiver")[1] == ("receiver.resumed", {"paused_ms": 60_000})
    with closing(Outbox(harness.path)) as outbox:
        assert queries.service(outbox)["paused_at"] is None


# --- and the disk is full ---------------------------------------------------------------------


async def test_full_and_paused(harness: Harness) -> None:
    """A full disk holds no ping, and a pause that was never on record is not ended on it."""
    harness.turn = lambda _: UNREACHABLE
    harness.ping = lambda: UNREACHABLE
    harness.accept(*ids("t", 5))
    fill(harness.outbox)
    async with harness.open():
        await harness.until(lambda: harness.pings >= 3)
        harness.turn, harness.ping = (lambda _: OK), (lambda: OK)
        pings = harness.pings
        await harness.until(lambda: harness.pings > pings)
        make_room(harness.outbox)
        await harness.until_recorded("delivery.retry_scheduled", 5)
        harness.pass_time(60)
        await harness.until(lambda: harness.counts() == {"delivered": 5})
    assert harness.names("receiver") == []


async def test_room_during_a_pause(harness: Harness) -> None:
    """A pause that could not be recorded is, as soon as there is room."""
    harness.turn = lambda _: UNREACHABLE
    harness.ping = lambda: UNREACHABLE
    harness.accept(*ids("t", 5))
    fill(harness.outbox)
    async with harness.open():
        await harness.until(lambda: harness.pings >= 2)
        make_room(harness.outbox)
        await harness.until(lambda: harness.names("receiver.paused"))
        harness.ping = lambda: OK
        await harness.until(lambda: harness.names("receiver.resumed"))
    assert harness.names("receiver") == ["receiver.paused", "receiver.resumed"]


async def test_no_ping_after_the_end(harness: Harness) -> None:
    """Once it stops, not even a ping goes out."""
    transitions.pause(harness.outbox, "connect")
    harness.ping = lambda: LATER
    async with harness.open():
        await harness.until(lambda: harness.pings >= 2)
        await harness.dispatcher.stop(1)
        before = harness.pings
        await anyio.sleep(0.05)  # several times as long as between two of them
        assert harness.pings <= before + 1  # one was perhaps under way


# --- a machine that slept, or is in another network -----------------------------------------------


async def test_a_long_pause_is_cut_short(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens the lid does not wait for the rest of a minute."""
    monkeypatch.setattr(breaker, "_FIRST_PING_S", 3600.0)
    monkeypatch.setattr(breaker, "_MAX_PING_S", 3600.0)
    harness.turn = lambda _: UNREACHABLE
    harness.accept(*ids("t", 8))
    async with harness.open():
        await harness.until_recorded("receiver.paused", 1)
        await harness.settle()
        assert harness.pings == 0
        harness.turn = lambda _: OK
        harness.dispatcher.interrupted(0.0)
        await harness.until_delivered(8)


async def test_pings_while_the_network_comes(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address comes before its route: in the seconds after it pings come often."""
    monkeypatch.setattr(breaker, "_FIRST_PING_S", 3600.0)
    monkeypatch.setattr(breaker, "_MAX_PING_S", 3600.0)
    monkeypatch.setattr(breaker, "MAX_SHORT_DELAY_S", 0.01)
    harness.turn = lambda _: UNREACHABLE
    harness.ping = lambda: UNREACHABLE if harness.pings < 5 else OK
    harness.accept(*ids("t", 5))
    async with harness.open():
        await harness.until_recorded("receiver.paused", 1)
        harness.turn = lambda _: OK
        harness.dispatcher.interrupted(0.0)
        await harness.until_delivered(5)
    assert harness.pings == 5


async def test_a_rest_that_was_slept_through(harness: Harness) -> None:
    """What the receiver asked for is kept, and the sleep is a part of it."""
    harness.turn = lambda _: Outcome(status=429, retry_after="3600")
    harness.accept("a")
    async with harness.open():
        await harness.until_recorded("delivery.retry_scheduled", 1)
        harness.turn = lambda _: OK
        harness.dispatcher.interrupted(0.0)
        await harness.settle()
        assert harness.sent == ["a/1"]
        harness.now += 3600
        harness.dispatcher.interrupted(3600.0)
        await harness.until_delivered(1)


async def test_a_delay_is_cut_short(harness: Harness) -> None:
    """Turns that wait for their next attempt go now."""
    harness.turn = lambda _: UNREACHABLE
    harness.accept("a")
    async with harness.open():
        for n in range(3):
            await harness.until_recorded("delivery.retry_scheduled", n + 1)
            harness.dispatcher.interrupted(0.0)
        await harness.until_recorded("delivery.retry_scheduled", 4)
        harness.turn = lambda _: OK
        harness.dispatcher.interrupted(0.0)
        await harness.until_delivered(1)
