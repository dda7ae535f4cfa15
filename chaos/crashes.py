"""The process killed: at every named point of its code, and at random moments under load."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from support.receiver import Reply, Request

from chaos.verdict import Fault, append, in_effect
from chaos.world import scenario
from chaos.writers import rename, replaced

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos.world import World

#: The names that `failpoint` is called with, over the daemon's code.
_NAMES = (
    "before a commit",
    "after a commit",
    "before an attempt",
    "after an attempt",
    "before a ping",
    "after a ping",
    "before an acknowledgement is recorded",
    "after an acknowledgement was recorded",
    "before a line is printed",
    "after a line was printed",
)
#: So many processes in a row must end without a crash, as how far one comes is never the same.
_PASSED = 3


@scenario(quick=True)
def killed_at_random(world: World) -> None:
    """SIGKILL at random moments under load, a receiver that stumbles."""
    killed(world, 25 if world.quick else 500)


def stumble(world: World) -> None:
    """Let the receiver fail, or break off, now and then."""

    def stumbles(_: Request) -> Reply:
        x = world.rng.random()
        if x < 0.05:
            return Reply(500)
        if x < 0.1:
            return Reply(how=world.rng.choice(["reset", "then_reset"]))
        return Reply()

    world.behaviour = stumbles


def killed(world: World, times: int) -> None:
    """Kill it so many times while two writers are at work."""
    stumble(world)
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
    """SIGKILL at crash point 1, 2, 3 … until none fires any more, then at each by its name."""
    at_crash_points(world, 13 if world.quick else 1)


def at_crash_points(
    world: World, step: int, after_death: Callable[[], None] = lambda: None
) -> None:
    """Kill it at every so manyth crash point, and at each by its name.

    Args:
        world: whose daemon.
        step: from one number to the next.
        after_death: called before another one mends what it left.
    """
    # Each fires in a process that takes in a turn, a replaced one, and two that are refused at
    # first; a ping asks about one of them. Another has to mend what it left; then comes the next.
    refused: set[str] = set()

    def refuses_once(request: Request) -> Reply:
        if request.is_ping or request.id in refused or "_c" not in request.id:
            return Reply()
        refused.add(request.id)
        return Reply(404 if "_c404" in request.id else 500)

    world.behaviour = refuses_once
    number, passed = 1, 0
    while passed < _PASSED:
        passed = 0 if fired(world, str(number), after_death) else passed + 1
        number += step
    for name in _NAMES:  # how far a process comes is never the same, so none may be left to chance
        world.check(fired(world, name, after_death), f"{name}: it did not die there")
    world.host.start()
    world.delivered()
    numbers = sorted({line["event_id"] for line in world.host.lines if "event_id" in line})
    world.check(numbers == list(range(1, len(numbers) + 1)), "an event's line is missing")


def fired(world: World, point: str, after_death: Callable[[], None]) -> bool:
    """Whether a process died at this crash point; if so, another has mended what it left."""
    word = point.replace(" ", "-")
    mine = {f"legacy/a{word}", f"aichat/b{word}", f"aichat/c404{word}", f"aichat/c500{word}"}
    world.host.environ["PALIADIN_CRASH_AT"] = point
    rename(world.turn(f"a{word}", world.host.legacy))
    world.host.start(wait=False)
    replaced(world.turn(f"b{word}"))
    rename(world.turn(f"c404{word}"))
    rename(world.turn(f"c500{word}"))
    died = crashed(world, point, mine)
    del world.host.environ["PALIADIN_CRASH_AT"]
    if died:
        after_death()
        world.host.start()
        world.until("what it left", partial(came, world, mine))
        world.host.stop()
    return died


def came(world: World, turns: set[str]) -> bool:
    """Whether something of each is in effect."""
    return turns <= in_effect(world.arrived).keys()


def crashed(world: World, point: str, mine: set[str]) -> bool:
    """Whether it died, at the latest while it stopped once it had nothing left to do."""
    process = world.host.process
    assert process is not None

    def over() -> bool:
        return process.poll() is not None or came(world, mine)

    world.until(f"crash point {point}", over)
    if process.poll() is None:
        process.terminate()
    code = world.host.wait()
    if code != -signal.SIGKILL:
        world.check(code in {0, -signal.SIGTERM}, f"crash point {point}: it ended with {code}")
        return False
    append(world.faults, Fault(f"crash point {point}", now := time.monotonic(), now))
    return True
