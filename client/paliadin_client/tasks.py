"""Ends tasks, also where a cancellation is lost on its way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

#: When a task that goes on is cancelled again. What it does at its end may take a moment.
_AGAIN_S = 2.0


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel these tasks, and return when all of them have ended.

    `asyncio.wait_for` of Python 3.11, by which psycopg and its pool wait, drops a cancellation that
    comes at the moment of what it waits for. The task would go on, and whoever waits for its end
    would wait for ever. So it is cancelled until it has ended.
    """
    import asyncio  # noqa: PLC0415 - a command that only shows its help has no use for it

    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
