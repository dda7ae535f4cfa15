"""Prunes a store now and then, while it is in use."""

from __future__ import annotations

import logging
import time

from paliadin_client.errors import StoreFailed
from paliadin_client.store.protocol import Store

_log = logging.getLogger(__name__)

#: A process prunes at most once in so many seconds.
_EVERY_S = 10.0


class Pruner:
    """Prunes `store`, whenever it is asked to and it is time.

    Args:
        store: what is pruned.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # Not at once: a command lives for one turn, and has nothing to do with it.
        self._due = time.monotonic() + _EVERY_S

    async def prune_if_due(self) -> None:
        """Prune, if the last time is long enough ago. A store that fails is tried again later."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _EVERY_S
        try:
            await self._store.prune()
        except StoreFailed as exc:
            _log.warning("store.not_pruned error=%s", exc)
