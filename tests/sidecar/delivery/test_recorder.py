from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support.office import LATER, OK, REFUSED, UNREACHABLE, Office, ids, try_again

from paliadin_sidecar.delivery import breaker, rate_limiter
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.records import Outcome

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

REFUSED_S = 900.0


# --- and again ------------------------------------------------------------------------------


async def test_retry(office: Office) -> None:
    """A failed one goes out again when its delay is over, and its attempts are counted."""
    office.turn = lambda _: LATER
    office.accept("a")
    async with office.open():
        for n in range(1, 4):
            await office.until_recorded("delivery.retry_scheduled", n)
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


async def test_refused(office: Office) -> None:
    """Refused whenever it comes while many others pass, a turn is dead in the end."""
    office.turn = lambda turn_id: REFUSED if turn_id == "bad" else OK
    office.accept("bad")
    async with office.open():
        await office.until_recorded("delivery.refused", 1)
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
    monkeypatch.setattr(breaker, "_PING_AFTER_POSTPONED", 10_000)
    office.turn = lambda turn_id: OK if turn_id == "good" else REFUSED
    office.accept("bad", *ids("t", 7))
    async with office.open():
        await office.until_recorded("delivery.refused", 8)
        await try_again(office, 30, others=0)
        office.accept("good")
        await try_again(office, 30, others=0)
        assert office.counts() == {"delivered": 1, "pending": 8}


@pytest.mark.parametrize("outcome", [LATER, Outcome(status=429), UNREACHABLE], ids=str)
async def test_later_says_nothing_about_a_turn(
    office: Office, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put off for a day while others pass, it is still tried."""
    monkeypatch.setattr(rate_limiter, "_MAX_REST_S", 0.001)
    monkeypatch.setattr(rate_limiter, "_MIN_RATE", 1000.0)
    monkeypatch.setattr(breaker, "_PING_AFTER_POSTPONED", 10_000)
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
        await office.until_recorded("delivery.refused", 1)
        await try_again(office, 5, others=10)
    assert not office.has_dead()
    office.dispatcher = office.make()
    async with office.open():
        office.pass_time(REFUSED_S)
        await office.until(lambda: office.sent.count("bad/1") == 7)
        await try_again(office, 1, others=10)
        await office.until(office.has_dead)
