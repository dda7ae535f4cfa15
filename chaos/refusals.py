"""A receiver that refuses: some turns or all, for a while, or more than so many a second."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING

from support.receiver import Reply, Request

from chaos.receivers import COUNT, all_meet, once_each, turns
from chaos.world import scenario
from paliadin_sidecar.outbox.database import FILENAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos.world import World

#: Turns that are under way at once, at most, when a receiver turns bad.
_PARALLEL = 8


def a_turn_is_never_the_probe(world: World) -> None:
    """While the receiver was not well, only what was under way went out, and pings."""
    before = [one for one in world.arrived if one.fault and one.turn]
    pings = [one for one in world.arrived if not one.turn]
    world.check(len(before) <= _PARALLEL, f"{len(before)} turns were sent to it meanwhile")
    world.check(pings, "no ping was sent")
    world.check(not world.host.events("delivery.refused"), "a turn was blamed")


@scenario(quick=True)
def receiver_500_then_200(world: World) -> None:
    """Receiver: 500, then 200, for each turn."""
    once_each(world, lambda _: Reply(500))
    world.check(all(one.turn for one in world.arrived), "a ping was sent for a 500")


def pauses(world: World) -> list[float]:
    """Seconds from each turn's first refusal to its next attempt."""
    found = []
    for id_ in {one.id for one in world.arrived if one.fault}:
        at = [one.at for one in world.arrived if one.id == id_]
        found.append(at[1] - at[0])
    return found


@scenario()
def receiver_429_in_seconds(world: World) -> None:
    """Receiver: 429, `Retry-After` of 3 seconds."""
    once_each(world, lambda _: Reply(429, {"retry-after": "3"}))
    world.check(min(pauses(world)) >= 2.9, "it did not wait that long")


@scenario()
def receiver_429_as_a_date(world: World) -> None:
    """Receiver: 429, `Retry-After` as a date in 4 seconds."""

    def reply(_: Request) -> Reply:
        date = datetime.now(UTC) + timedelta(seconds=4)
        return Reply(429, {"retry-after": format_datetime(date, usegmt=True)})

    once_each(world, reply)
    world.check(min(pauses(world)) >= 2.9, "it did not wait that long")  # dates have no fractions


@scenario()
def receiver_429_with_garbage(world: World) -> None:
    """Receiver: 429, `Retry-After` is garbage."""
    values = ["soon", "-5", "1e9", "Fri, 99 Foo 20 99:99:99", "3;4", "0x10"]
    once_each(world, lambda _: Reply(429, {"retry-after": world.rng.choice(values)}))
    world.check(max(pauses(world)) < 30, "garbage was believed")


@scenario()
def receiver_429_for_a_year(world: World) -> None:
    """Receiver: 429, `Retry-After` of a year: an hour is waited (passed by hand)."""
    world.behaviour = lambda _: Reply(429, {"retry-after": "31536000"})
    world.host.start()
    world.write("--count", "5", "--manner", "rename")
    world.accepted(5)
    world.host.wait_event("delivery.retry_scheduled")
    delays = {line["delay_ms"] for line in world.host.events("delivery.retry_scheduled")}
    world.check(delays == {3_600_000.0}, f"it waits {delays}")
    world.check(world.host.stop() == 0, "it did not end well")
    with closing(sqlite3.connect(world.host.state / FILENAME)) as db, db:
        db.execute("UPDATE delivery SET next_attempt_at = next_attempt_at - 3600000")
    world.behaviour = lambda _: Reply()
    world.host.start()


def limited(count: int, seconds: float, bad: Reply) -> Callable[[Request], Reply]:
    """So many requests in so long; what is refused counts as well."""
    came: list[float] = []

    def behaviour(_: Request) -> Reply:
        came.append(time.monotonic())
        return bad if sum(at > came[-1] - seconds for at in came) > count else Reply()

    return behaviour


@scenario()
def receiver_limits(world: World) -> None:
    """Receiver: takes 10 requests in 2 s and counts those that it refuses."""
    world.behaviour = limited(10, 2.0, Reply(429, {"retry-after": "2"}))
    world.host.start()
    world.write("--count", str(3 * COUNT), "--manner", "rename")
    world.delivered()
    refused = sum(one.fault for one in world.arrived)
    world.check(refused < COUNT, f"{refused} were refused")


@scenario()
def receiver_limits_after_an_outage(world: World) -> None:
    """Receiver: 500 to all, then a limit, and every second request fails: none is given up."""
    world.behaviour = lambda _: Reply(500)
    world.host.environ["PALIADIN_REFUSED_S"] = "0"
    world.host.start()
    world.write("--count", str(2 * COUNT), "--manner", "rename")
    world.host.wait_event("receiver.paused", why="status_500")
    world.check(world.host.stop() == 0, "it did not end well")
    with closing(sqlite3.connect(world.host.state / FILENAME)) as db, db:
        db.execute(  # a day of it
            "UPDATE delivery SET attempts = attempts + 1000,"
            " first_attempt_at = first_attempt_at - 90000000 WHERE attempts > 0"
        )
    within, fails = limited(30, 2.0, Reply(429)), cycle([True, False])

    def behaviour(request: Request) -> Reply:
        reply = within(request)
        return Reply(500) if reply.status == 204 and next(fails) else reply

    world.behaviour = behaviour
    world.host.start()
    world.delivered()
    world.check(not world.host.events("delivery.dead"), "a turn was given up")


@scenario(quick=True, PALIADIN_REFUSED_S="0")
def receiver_rolls(world: World) -> None:
    """Receiver: 400 for all, then from every second instance: none is given up."""
    all_meet(world, Reply(400), 2)
    pods = cycle([Reply(400), Reply()])
    world.behaviour = lambda _: next(pods)
    world.write("--name", "rolling", "--count", str(COUNT), "--manner", "rename")
    world.delivered()
    world.check(not world.host.events("delivery.dead"), "a turn was given up")


@scenario(quick=True)
def receiver_503_for_all(world: World) -> None:
    """Receiver: 503 for all, which is an outage like any other."""
    world.behaviour = lambda _: Reply(503)
    world.host.start()
    with world.fault("503 for all"):
        world.write("--count", str(3 * COUNT), "--manner", "rename")
        world.host.wait_event("receiver.paused", why="status_503")
        world.accepted(3 * COUNT)
        sent = turns(world)
        time.sleep(3)
        world.check(turns(world) == sent, "a turn was the probe")
        world.check(sent < 3 * COUNT, f"{sent} turns were sent to it")
        world.behaviour = lambda _: Reply()
    world.delivered()


@scenario()
def receiver_503_for_most(world: World) -> None:
    """Receiver: 503 for three of four: all get through, and the journal says little."""
    world.behaviour = lambda _: Reply(503 if world.rng.random() < 0.75 else 204)
    world.host.start()
    world.write("--count", str(COUNT), "--manner", "rename")
    world.delivered()
    world.check(not world.host.events("delivery.dead"), "a turn was given up")
    lines = len(world.host.events("delivery.attempted"))
    world.check(lines <= 8 * COUNT, f"{lines} lines report its attempts")


@scenario()
def receiver_301(world: World) -> None:
    """Receiver: 301 to another place, for all, for 5 seconds."""
    all_meet(world, Reply(301, {"location": "/elsewhere"}), 5)
    a_turn_is_never_the_probe(world)
    world.check({r.path for r in world.receiver.requests} == {"/callback"}, "it followed")


@scenario(quick=True)
def receiver_401_for_a_while(world: World) -> None:
    """Receiver: 401 for all (a rotated secret), then well."""
    all_meet(world, Reply(401), 3)
    a_turn_is_never_the_probe(world)


@scenario(quick=True)
def receiver_404_for_all(world: World) -> None:
    """Receiver: 404 for all for 5 seconds."""
    all_meet(world, Reply(404), 5)
    a_turn_is_never_the_probe(world)


def _tried_or_dead(world: World, tried: int) -> bool:
    return len(world.of("bad0")) > tried or bool(world.host.events("delivery.dead"))


def one_is_refused(world: World, status: int) -> None:
    """One turn gets this until an operator has looked; no other is held by it."""
    mended = False

    def behaviour(request: Request) -> Reply:
        mine = not request.is_ping and "_bad0_" in request.id
        return Reply(status) if mine and not mended else Reply()

    world.behaviour = behaviour
    world.host.start()
    world.write("--name", "bad", "--count", "1", "--manner", "rename")
    world.host.wait_event("delivery.refused")
    # It is compared with those that pass between its attempts.
    for n in range(60):
        tried = len(world.of("bad0"))
        world.write("--name", f"good{n}-", "--count", "10", "--manner", "rename")
        world.until("its next attempt", partial(_tried_or_dead, world, tried))
        if world.host.events("delivery.dead"):
            break
    others = [one for one in world.arrived if one.turn and "bad" not in one.turn]
    world.check(not any(one.fault for one in others), "another turn was refused")
    world.host.wait_event("delivery.dead", turn_id="bad0")
    listed = world.host.command("turns", "--state", "dead").stdout
    world.check("bad0" in listed, "the dead turn is not listed")
    mended = True
    world.host.command("replay", "--dead")
    world.delivered()


@scenario(PALIADIN_REFUSED_S="1")
def receiver_404_for_one(world: World) -> None:
    """Receiver: 404 for one turn only, dead after a while, replayed."""
    one_is_refused(world, 404)
    world.check([one for one in world.arrived if not one.turn], "no ping asked whose fault it is")


@scenario(PALIADIN_REFUSED_S="1")
def receiver_400_for_one(world: World) -> None:
    """Receiver: 400 for one turn only, dead after a while, replayed."""
    one_is_refused(world, 400)
    world.check(all(one.turn for one in world.arrived), "a ping was sent for a 400")


@scenario(PALIADIN_REFUSED_S="1")
def receiver_400_for_all(world: World) -> None:
    """Receiver: 400 for all (a bad deploy), for a minute in the long form."""
    all_meet(world, Reply(400), 5 if world.quick else 60)
    world.check(not world.host.events("delivery.dead"), "a turn was given up")
