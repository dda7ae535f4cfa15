"""A clock that is set. In-process: the outbox, the dispatch and the sender take theirs."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio
from support.receiver import Reply, Request

from chaos.verdict import in_effect
from chaos.world import scenario
from chaos.writers import TRAILER
from paliadin_sidecar.delivery.dispatcher import Dispatcher
from paliadin_sidecar.delivery.sender import Sender
from paliadin_sidecar.outbox import acceptance
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.records import Arrival, TurnKey

if TYPE_CHECKING:
    from chaos.world import World

_COUNT = 12
_HOUR_S = 3600.0
#: So many attempts of each turn are put off.
_PUT_OFF = 3


@scenario(quick=True)
def clock_set(world: World) -> None:
    """Clock: set forward and back by an hour between attempts, again and again."""
    anyio.run(_play, world)


async def _play(world: World) -> None:
    shift_s = 0.0

    def wall() -> float:
        return time.time() + shift_s

    attempts: Counter[str] = Counter()

    def stumbles(request: Request) -> Reply:
        # Each turn is put off as often as any other, so that none comes into the long delays.
        nonlocal shift_s
        attempts[request.id] += 1
        shift_s = world.rng.choice([-_HOUR_S, 0.0, _HOUR_S])
        return Reply(503 if attempts[request.id] <= _PUT_OFF else 204)

    world.behaviour = stumbles
    world.host.state.mkdir(mode=0o700)
    # As the daemon opens it: beside the clock that is set it has one that nobody sets.
    path = world.host.state / FILENAME
    outbox = Outbox(path, wall=wall, steady=time.monotonic, create=True)
    group = GroupCommit(outbox, lambda: None, lambda _: None)
    async with (
        Sender(world.receiver.url, [world.host.secret], timeout_s=5.0, wall=wall) as sender,
        anyio.create_task_group() as tasks,
    ):
        dispatcher = Dispatcher(group, sender.attempt, host="mriver", refused_s=900.0, wall=wall)
        tasks.start_soon(dispatcher.run)
        for n in range(_COUNT):
            turn = world.turn(f"t{n}")
            content = turn.text() + TRAILER
            turn.completed(content)
            arrival = _arrival(turn.path.stem, content, wall())
            accepted = await group.commit_when_possible(acceptance.accept, arrival)
            dispatcher.offer([accepted] if accepted else [])
        with anyio.move_on_after(60):
            while len(in_effect(world.arrived)) < _COUNT:  # noqa: ASYNC110 - another thread's list
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    outbox.close()


def _arrival(turn_id: str, content: bytes, at: float) -> Arrival:
    key, digest = TurnKey("aichat", "paliadin", turn_id), hashlib.sha256(content).hexdigest()
    when = datetime.fromtimestamp(at, UTC)
    return Arrival(key, "", when, len(content), data=content, sha256=digest)
