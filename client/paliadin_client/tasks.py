"""Ends tasks, also where a cancellation is lost on its way."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    import asyncio

#: When a task that goes on is cancelled again. What it does at its end may take a moment.
_AGAIN_S = 2.0


class Tasks:
    """Tasks that are ended together.

    A task group would not do: some frameworks begin and end an app in two tasks.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do `work`, in a task of this name."""
        import asyncio  # noqa: PLC0415 - whoever only imports the client has no use for it

        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Cancel them, and return when all of them have ended, also where this is cancelled.

        `asyncio.wait_for` of Python 3.11, by which psycopg and its pool wait, drops a cancellation
        that comes at the moment of what it waits for. The task would go on, and whoever waits for
        its end would wait for ever. So it is cancelled until it has ended.
        """
        import asyncio  # noqa: PLC0415 - whoever only imports the client has no use for it

        with anyio.CancelScope(shield=True):
            while self._tasks:
                for task in self._tasks:
                    task.cancel()
                await asyncio.wait(self._tasks, timeout=_AGAIN_S)
