"""The way of a turn through the whole sidecar, in this process, where time is ours.

The clock moves only when the event loop has nothing left to do but to wait for a timer. So a turn
that needs a timer on its way, since a wake-up came before its commit, shows by the clock.
"""

from __future__ import annotations

import asyncio
import io
import types
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from chaos.virtual import Clock, Daemon, FileEvents
from support.sidecar import new_secret
from support.ways import content

from paliadin_contract.callback import TurnCompleted, decode
from paliadin_sidecar.intake.events import record_events
from paliadin_sidecar.intake.service import IntakeService
from paliadin_sidecar.outbox.records import Outcome
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterator
    from pathlib import Path

    from paliadin_sidecar.delivery.dispatcher import Dispatcher
    from paliadin_sidecar.intake.events import IntakeEvent

#: What reading the clock adds to it; a timer on the way would add far more.
NO_TIMER_S = 0.01
TIMER_S = 0.05


@types.coroutine
def _slowed(coro: Coroutine[Any, Any, Any], extra: int) -> Generator[Any, Any, Any]:
    # Passes on what the coroutine awaits; after each it lets the loop come around so often.
    step = partial(coro.send, None)
    while True:
        try:
            awaited = step()
        except StopIteration as end:
            return end.value
        try:
            yield awaited
            for _ in range(extra):
                yield None
        except BaseException as exc:  # noqa: BLE001 - the coroutine's own, to judge
            step = partial(coro.throw, exc)
        else:
            step = partial(coro.send, None)


def slow_tasks(extra: int) -> Any:  # noqa: ANN401 - a task factory
    """Makes tasks that come around so many iterations late after each `await`."""

    def factory(
        loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], *, name: str | None = None
    ) -> asyncio.Task[Any]:
        async def run() -> Any:  # noqa: ANN401 - the coroutine's
            return await _slowed(coro, extra)

        return asyncio.Task(run(), loop=loop, name=name)

    return factory


class World:
    """One daemon with one root, whose receiver acknowledges at once."""

    def __init__(self, path: Path, extra: int) -> None:
        self.clock = Clock(1000.0)
        self.root = path / "root"
        self.root.mkdir(mode=0o700)
        self.sent: dict[str, float] = {}
        self._moved = asyncio.Event()
        self.file_events = FileEvents("scripted")
        settings = Settings.from_environment(
            {
                "PALIADIN_CALLBACK_URL": "http://127.0.0.1:1/",
                "PALIADIN_CALLBACK_SECRET": new_secret(),
                "PALIADIN_WATCH": f"aichat/paliadin={self.root}",
                "PALIADIN_STATE_DIR": str(path / "state"),
                "PALIADIN_RESCAN_S": "60",
            }
        )
        self.daemon = Daemon(
            settings, io.StringIO(), self.attempt, self.file_events, clock=self.clock
        )
        self.daemon._loop.set_task_factory(slow_tasks(extra))
        self.daemon.start()
        self.daemon.advance(5.0)

    async def attempt(self, webhook_id: str, body: bytes) -> Outcome:
        callback = decode(body)
        assert isinstance(callback, TurnCompleted)
        assert callback.data.turn_id not in self.sent
        self.sent[callback.data.turn_id] = self.clock.now
        self._moved.set()
        return Outcome(status=204, ms=1.0)

    def push(self, *turn_ids: str) -> float:
        """Let these answers appear; how long it takes until the last one is sent."""
        began = self.clock.now
        for turn_id in turn_ids:
            path = self.root / f"{turn_id}.txt"
            path.write_bytes(content(path))
            self.file_events.notify(path)
        self.daemon._loop.run_until_complete(self._until_sent(turn_ids))
        return max(self.sent[turn_id] for turn_id in turn_ids) - began

    async def _until_sent(self, turn_ids: tuple[str, ...]) -> None:
        while not self.sent.keys() >= set(turn_ids):
            self._moved.clear()
            await self._moved.wait()


@pytest.fixture(params=[0, 1, 7])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, request.param)
    yield world
    world.daemon.close()


def test_no_timer_is_on_the_way(world: World) -> None:
    """However late each task comes around, a turn waits for nothing but the commit."""
    assert world.push("a") < NO_TIMER_S
    assert world.push("b") < NO_TIMER_S


def test_no_timer_is_on_the_way_of_many(world: World) -> None:
    """More than there are slots: each slot that gets free is taken at once."""
    assert world.push(*(f"t{n}" for n in range(40))) < NO_TIMER_S


@pytest.mark.parametrize("extra", [0, 1, 7])
@pytest.mark.parametrize("early", [True, False])
def test_a_wake_up_before_the_commit_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int, *, early: bool
) -> None:
    """The same where the dispatcher has to ask: before the commit it finds nothing."""

    async def commit(intake: Any, events: list[IntakeEvent]) -> None:  # noqa: ANN401 - an IntakeService
        dispatcher: Dispatcher = intake._on_accepted.__self__
        if early:
            dispatcher.wake()
        await intake._group.commit(record_events, events)
        if not early:
            dispatcher.wake()

    monkeypatch.setattr(IntakeService, "commit", commit)
    world = World(tmp_path, extra)
    try:
        assert (world.push("a") > TIMER_S) is early
    finally:
        world.daemon.close()
