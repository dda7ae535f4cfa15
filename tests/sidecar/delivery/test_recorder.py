from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support.dispatching import LATER, OK, REFUSED, UNREACHABLE, Harness, ids, try_again

from paliadin_sidecar.delivery import breaker, rate_limiter
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.records import Outcome

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

REFUSED_S = 900.0


# --- and again ------------------------------------------------------------------------------


async def test_retry(harness: Harness) -> None:
    """A failed one goes out again when its delay is over, and its attempts are counted."""
    harness.turn = lambda _: LATER
    harness.accept("a")
    async with harness.open():
        for n in range(1, 4):
            await harness.until_recorded("delivery.retry_scheduled", n)
            await harness.settle()
            assert len(harness.sent) == n
            harness.pass_time(0.25 * 2 ** (n - 1) - 0.001)
            await harness.settle()
            assert len(harness.sent) == n
            harness.pass_time(0.001)
        harness.turn = lambda _: OK
        await harness.until(lambda: len(harness.sent) == 4)
    delays = [fields["delay_ms"] for _, fields in harness.events("delivery.retry")]
    assert delays[:3] == [250, 500, 1000]


async def test_retry_by_itself(tmp_path: Path) -> None:
    """Nobody needs to wake it: it wakes when the next one is due."""
    harness = Harness(tmp_path / FILENAME, time.time)
    outcomes = [LATER, LATER, OK]
    harness.turn = lambda _: outcomes.pop(0)
    harness.accept("a")
    async with harness.open():
        await harness.until(lambda: harness.counts() == {"delivered": 1})
    harness.outbox.close()


async def test_retry_after(harness: Harness) -> None:
    """What the receiver asks for is waited for."""
    harness.turn = lambda _: Outcome(status=429, retry_after="7")
    harness.accept("a")
    async with harness.open():
        await harness.until(lambda: harness.names("delivery.retry_scheduled"))
    assert harness.events("delivery.retry_scheduled")[0][1]["delay_ms"] == 7000


async def test_refused(harness: Harness) -> None:
    """Refused whenever it comes while many others pass, a turn is dead in the end."""
    harness.turn = lambda turn_id: REFUSED if turn_id == "bad" else OK
    harness.accept("bad")
    async with harness.open():
        await harness.until_recorded("delivery.refused", 1)
        await try_again(harness, 4, others=0)
        assert not harness.has_dead()
        await try_again(harness, 6, others=10)
    assert harness.events("delivery.dead")[0][1]["cause"] == "refused"
    assert harness.counts() == {"delivered": 60, "dead": 1}
    assert harness.pings == 0


async def test_one_acknowledgement_arms_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that comes back and takes one turn has not refused the others for good."""
    monkeypatch.setattr(breaker, "_PING_AFTER_POSTPONED", 10_000)
    harness.turn = lambda turn_id: OK if turn_id == "good" else REFUSED
    harness.accept("bad", *ids("t", 7))
    async with harness.open():
        await harness.until_recorded("delivery.refused", 8)
        await try_again(harness, 30, others=0)
        harness.accept("good")
        await try_again(harness, 30, others=0)
        assert harness.counts() == {"delivered": 1, "pending": 8}


@pytest.mark.parametrize("outcome", [LATER, Outcome(status=429), UNREACHABLE], ids=str)
async def test_later_says_nothing_about_a_turn(
    harness: Harness, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put off for a day while others pass, it is still tried."""
    monkeypatch.setattr(rate_limiter, "_MAX_REST_S", 0.001)
    monkeypatch.setattr(rate_limiter, "_MIN_RATE", 1000.0)
    monkeypatch.setattr(breaker, "_PING_AFTER_POSTPONED", 10_000)
    harness.turn = lambda turn_id: outcome if turn_id == "slow" else OK
    harness.accept("slow")
    async with harness.open():
        for n in range(25):
            harness.accept(*ids(f"good-{n}-", 5))
            await harness.until_delivered(5 * n + 5)
            harness.pass_time(3600)
            await harness.until_sent("slow/1", n + 2)
        assert harness.counts() == {"delivered": 125, "pending": 1}


async def test_a_failure_of_its_own(harness: Harness) -> None:
    """A turn that gets 500 whenever it comes, for a day, while others pass, is poison."""
    harness.turn = lambda turn_id: Outcome(status=500) if turn_id == "bad" else OK
    harness.accept("bad")
    async with harness.open():
        n = 0
        while not harness.has_dead():
            n += 1
            assert n < 40
            harness.accept(*ids(f"good-{n}-", 5))
            await harness.until_delivered(5 * n)
            harness.pass_time(3600)
            await harness.until_sent("bad/1", n + 1)
            await harness.settle()
    assert harness.events("delivery.dead")[0][1]["cause"] == "poison"
    assert n > 20


async def test_what_is_known_of_a_turn_outlives_a_restart(harness: Harness) -> None:
    """Attempts, refusals and what they say against a turn are remembered."""
    harness.turn = lambda turn_id: REFUSED if turn_id == "bad" else OK
    harness.accept("bad")
    async with harness.open():
        await harness.until_recorded("delivery.refused", 1)
        await try_again(harness, 5, others=10)
    assert not harness.has_dead()
    harness.dispatcher = harness.make()
    async with harness.open():
        harness.pass_time(REFUSED_S)
        await harness.until(lambda: harness.sent.count("bad/1") == 7)
        await try_again(harness, 1, others=10)
        await harness.until(harness.has_dead)
