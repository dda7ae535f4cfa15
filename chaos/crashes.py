"""The process killed: at every named point of its code, and at random moments under load."""

from __future__ import annotations

import re
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from support.receiver import Reply, Request

from chaos.verdict import Fault, append, in_effect
from chaos.world import scenario
from chaos.writers import rename, replaced

if TYPE_CHECKING:
    from chaos.world import World

#: How many names `crash.point` is called with, over the daemon's code.
_NAMES = 10
#: So many processes in a row must end without a crash, as how far one comes is never the same.
_PASSED = 3


@scenario(quick=True)
def killed_at_random(world: World) -> None:
    """SIGKILL at random moments under load, a receiver that stumbles."""
    killed(world, 25 if world.quick else 500)


def killed(world: World, times: int) -> None:
    """Kill it so many times while two writers are at work."""

    def stumbles(_: Request) -> Reply:
        x = world.rng.random()
        if x < 0.05:
            return Reply(500)
        if x < 0.1:
            return Reply(how=world.rng.choice(["reset", "then_reset"]))
        return Reply()

    world.behaviour = stumbles
    world.host.start()
    writers = [
        world.start_writer("--rate", "15", root=root)
        for root in (world.host.aichat, world.host.legacy)
    ]
    for _ in range(times):
        time.sleep(world.rng.random() * 0.9)
        world.kill()
        world.host.start(wait=False)
    for writer in writers:
        writer.terminate()
    world.delivered()
    world.behaviour = lambda _: Reply()


@scenario(quick=True)
def crash_points(world: World) -> None:
    """SIGKILL at crash point 1, 2, 3 … until none fires any more."""
    # Each fires in a process that takes in a turn, a replaced one, and one that is refused at
    # first, for which a ping goes out. Another has to mend what it left; then comes the next.
    refused: set[str] = set()

    def refuses_once(request: Request) -> Reply:
        if request.is_ping or request.id in refused or "_c" not in request.id:
            return Reply()
        refused.add(request.id)
        return Reply(404 if len(refused) % 2 else 500)

    world.behaviour = refuses_once
    number, passed = 1, 0
    while passed < _PASSED:
        mine = {f"legacy/a{number}", f"aichat/b{number}", f"aichat/c{number}"}
        world.host.environ["PALIADIN_CRASH_AT"] = str(number)
        rename(world.turn(f"a{number}", world.host.legacy))
        world.host.start(wait=False)
        replaced(world.turn(f"b{number}"))
        rename(world.turn(f"c{number}"))
        fired = crashed(world, number, mine)
        del world.host.environ["PALIADIN_CRASH_AT"]
        passed = 0 if fired else passed + 1
        if fired:
            world.host.start()
            world.until("what it left", partial(came, world, mine))
            world.host.stop()
        number += 7 if world.quick else 1
    world.host.start()
    world.delivered()
    names = re.findall(rb"crash point \d+: (.+)", world.host.output)
    world.check(world.quick or len(set(names)) == _NAMES, f"points that fired: {set(names)}")
    numbers = sorted({line["event_id"] for line in world.host.lines if "event_id" in line})
    world.check(numbers == list(range(1, len(numbers) + 1)), "an event's line is missing")


def came(world: World, turns: set[str]) -> bool:
    """Whether something of each is in effect."""
    return turns <= in_effect(world.arrived).keys()


def crashed(world: World, number: int, mine: set[str]) -> bool:
    """Whether it died, at the latest while it stopped once it had nothing left to do."""
    process = world.host.process
    assert process is not None

    def over() -> bool:
        return process.poll() is not None or came(world, mine)

    world.until(f"crash point {number}", over)
    if process.poll() is None:
        process.terminate()
    code = world.host.wait()
    if code != -signal.SIGKILL:
        world.check(code in {0, -signal.SIGTERM}, f"crash point {number}: it ended with {code}")
        return False
    append(world.faults, Fault(f"crash point {number}", now := time.monotonic(), now))
    return True
