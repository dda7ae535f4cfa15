"""Tasks end, also where a cancellation is lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import anyio
import pytest

from paliadin_client import tasks
from paliadin_client.tasks import Tasks

pytestmark = pytest.mark.anyio


async def test_nothing_to_end() -> None:
    """It returns."""
    await Tasks().end()


async def test_a_cancellation_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes again, until the task has ended."""
    monkeypatch.setattr(tasks, "_AGAIN_S", 0.01)
    ever, losing = asyncio.Event(), Tasks()

    async def loses() -> None:
        with suppress(asyncio.CancelledError):
            await ever.wait()
        await ever.wait()

    losing.start(loses(), "loses")
    [task] = losing._tasks
    await asyncio.sleep(0)
    await losing.end()
    assert task.cancelled()


async def test_a_task_that_fails() -> None:
    """Its failure is its own."""
    failing = Tasks()

    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError

    failing.start(fails(), "fails")
    [task] = failing._tasks
    await asyncio.sleep(0)
    await failing.end()
    assert isinstance(task.exception(), ZeroDivisionError)


async def test_a_task_that_starts_another() -> None:
    """What is started while the others end is ended, too, also where the end is cancelled."""
    both, ended = Tasks(), []

    async def waits(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append(name)
            if name == "first":
                both.start(waits("second"), "second")
                await asyncio.sleep(0)

    both.start(waits("first"), "first")
    await asyncio.sleep(0)
    with anyio.CancelScope() as ending:
        ending.cancel()
        await both.end()
    assert ended == ["first", "second"]
