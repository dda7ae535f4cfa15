from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime

import anyio
import pytest
from support.office import LATER, NOT_FOUND, OK, REFUSED, UNREACHABLE, Office, fill, ids, make_room

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
        await office.until_recorded("delivery.refused", 8)
    assert office.pings == 1


async def test_one_pause_for_all(office: Office) -> None:
    """Turns that learn it at the same time pause the receiver once."""
    office.turn = lambda _: NOT_FOUND
    office.ping = lambda: NOT_FOUND
    office.accept(*ids("t", 8))
    async with office.open():
        await office.until_recorded("delivery.retry_scheduled", 8)
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
        await office.until_recorded("receiver", 2)
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
    monkeypatch.setattr(breaker, "_PING_AFTER_POSTPONED", 10_000)
    monkeypatch.setattr(breaker, "_SLOW_PING_S", 1e9)
    monkeypatch.setattr(policy, "MAX_BACKOFF_S", 0.1)
    office.turn = lambda _: LATER
    office.accept("a")
    async with office.open():
        for n in range(1, 1001):
            await office.until_sent("a/1", n)
            await office.settle()
            office.pass_time(0.6)
    reported = [fields for _, fields in office.events("delivery.attempted")]
    assert 5 + 9 <= len(reported) <= 5 + 11
    assert sum(1 + fields.get("untold", 0) for fields in reported) == reported[-1]["attempt"]
    assert len(office.names("delivery.retry_scheduled")) == 5


async def test_five_failures(office: Office) -> None:
    """Five connection failures in a row, over all turns, and only pings go out."""
    office.turn = lambda _: UNREACHABLE
    office.ping = lambda: UNREACHABLE
    office.accept(*ids("t", 4))
    async with office.open():
        await office.until_recorded("delivery.retry_scheduled", 4)
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
                await office.until_recorded("delivery.attempted", attempts + 1)
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
    transitions.pause(office.outbox, "connect")
    office.accept("a")
    office.now += 60
    office.ping = lambda: LATER
    async with office.open():
        await office.until(lambda: office.pings >= 3)
        assert office.sent == []
        office.ping = lambda: OK
        await office.until(lambda: office.counts() == {"delivered": 1})
        await office.until_recorded("receiver", 2)
    assert office.events("receiver")[1] == ("receiver.resumed", {"paused_ms": 60_000})
    with closing(Outbox(office.path)) as outbox:
        assert queries.service(outbox)["paused_at"] is None


# --- and the disk is full ---------------------------------------------------------------------


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
        await office.until_recorded("delivery.retry_scheduled", 5)
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


async def test_no_ping_after_the_end(office: Office) -> None:
    """Once it stops, not even a ping goes out."""
    transitions.pause(office.outbox, "connect")
    office.ping = lambda: LATER
    async with office.open():
        await office.until(lambda: office.pings >= 2)
        await office.dispatcher.stop(1)
        before = office.pings
        await anyio.sleep(0.05)  # several times as long as between two of them
        assert office.pings <= before + 1  # one was perhaps under way


# --- a machine that slept, or is in another network -----------------------------------------------


async def test_a_long_pause_is_cut_short(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens the lid does not wait for the rest of a minute."""
    monkeypatch.setattr(breaker, "_FIRST_PING_S", 3600.0)
    monkeypatch.setattr(breaker, "_MAX_PING_S", 3600.0)
    office.turn = lambda _: UNREACHABLE
    office.accept(*ids("t", 8))
    async with office.open():
        await office.until_recorded("receiver.paused", 1)
        await office.settle()
        assert office.pings == 0
        office.turn = lambda _: OK
        office.dispatcher.interrupted(0.0)
        await office.until_delivered(8)


async def test_pings_while_the_network_comes(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address comes before its route: in the seconds after it pings come often."""
    monkeypatch.setattr(breaker, "_FIRST_PING_S", 3600.0)
    monkeypatch.setattr(breaker, "_MAX_PING_S", 3600.0)
    monkeypatch.setattr(breaker, "MAX_SHORT_DELAY_S", 0.01)
    office.turn = lambda _: UNREACHABLE
    office.ping = lambda: UNREACHABLE if office.pings < 5 else OK
    office.accept(*ids("t", 5))
    async with office.open():
        await office.until_recorded("receiver.paused", 1)
        office.turn = lambda _: OK
        office.dispatcher.interrupted(0.0)
        await office.until_delivered(5)
    assert office.pings == 5


async def test_a_rest_that_was_slept_through(office: Office) -> None:
    """What the receiver asked for is kept, and the sleep is a part of it."""
    office.turn = lambda _: Outcome(status=429, retry_after="3600")
    office.accept("a")
    async with office.open():
        await office.until_recorded("delivery.retry_scheduled", 1)
        office.turn = lambda _: OK
        office.dispatcher.interrupted(0.0)
        await office.settle()
        assert office.sent == ["a/1"]
        office.now += 3600
        office.dispatcher.interrupted(3600.0)
        await office.until_delivered(1)


async def test_a_delay_is_cut_short(office: Office) -> None:
    """Turns that wait for their next attempt go now."""
    office.turn = lambda _: UNREACHABLE
    office.accept("a")
    async with office.open():
        for n in range(3):
            await office.until_recorded("delivery.retry_scheduled", n + 1)
            office.dispatcher.interrupted(0.0)
        await office.until_recorded("delivery.retry_scheduled", 4)
        office.turn = lambda _: OK
        office.dispatcher.interrupted(0.0)
        await office.until_delivered(1)
