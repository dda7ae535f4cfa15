"""Brings to the store what must get there: at once, else as soon as the store is back."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio

from paliadin_client.errors import StoreFailed
from paliadin_client.tasks import Tasks

_log = logging.getLogger(__name__)

#: How long, in seconds, the caller waits, and after how long it is tried again.
_PATIENCE_S = 2.0
_RETRY_S = 2.0


class StoreWrites:
    """Writes that nobody undoes: they are made even where the caller is cancelled meanwhile.

    Args:
        tasks: those that try again are among them, and given up when they end.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def write(self, make: Callable[[], Awaitable[None]], what: str) -> None:
        """Make it, for 2 s at most; where that fails it is tried again beside the caller.

        Args:
            make: makes it, and may be called again after it had been made.
            what: names it in the log.
        """
        error = await _try(make)
        if error is not None:
            _log.warning("store.write_failed what=%s error=%s: it is tried again", what, error)
            self._tasks.start(_insist(make), f"paliadin {what}")


async def _insist(make: Callable[[], Awaitable[None]]) -> None:
    while True:
        await anyio.sleep(_RETRY_S)
        if await _try(make) is None:
            return


async def _try(make: Callable[[], Awaitable[None]]) -> str | None:
    with anyio.move_on_after(_PATIENCE_S, shield=True):
        try:
            await make()
        except StoreFailed as exc:
            return str(exc)
        else:
            return None
    return f"no answer within {_PATIENCE_S:g} s"
