"""Tasks end, also where a cancellation is lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from paliadin_client import tasks

pytestmark = pytest.mark.anyio


async def test_nothing_to_end() -> None:
    """It returns."""
    await tasks.end([])


async def test_a_cancellation_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes again, until the task has ended."""
    monkeypatch.setattr(tasks, "_AGAIN_S", 0.01)
    ever = asyncio.Event()

    async def loses() -> None:
        with suppress(asyncio.CancelledError):
            await ever.wait()
        await ever.wait()

    losing = asyncio.create_task(loses())
    await asyncio.sleep(0)
    await tasks.end([losing])
    assert losing.cancelled()


async def test_a_task_that_fails() -> None:
    """Its failure is its own."""

    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError

    failing = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await tasks.end([failing])
    assert isinstance(failing.exception(), ZeroDivisionError)
