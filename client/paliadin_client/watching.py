"""Brings to who waits in this process what other processes left for them in the store.

The store's hints say when to look, and what counts is what is found. So a hint that was lost costs
two seconds, and never an answer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

import anyio

from paliadin_client.errors import StoreFailed
from paliadin_client.store.protocol import Store
from paliadin_client.store.pruning import Pruner
from paliadin_client.tasks import Tasks
from paliadin_client.waiting import Waiters
from paliadin_contract.trace import safe_trace

_log = logging.getLogger(__name__)

#: How long, in seconds, a hint that was lost delays an answer.
LOOK_S = 2.0
#: How many turns are looked for at a time.
_MAX_IDS = 500


class StoreWatcher:
    """Looks in `store` for the turns that `waiters` wait for.

    Args:
        store: where other processes put pushes and replies.
        waiters: who waits in this one.
    """

    def __init__(self, store: Store, waiters: Waiters) -> None:
        self._store = store
        self._waiters = waiters
        self._pruner = Pruner(store)
        #: The turns to look for now; None stands for all.
        self._hinted: set[str | None] = set()
        self._wake = anyio.Event()
        self._looked = anyio.Event()
        self._is_away = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look, while the context lasts: after each hint, and every 2 s while somebody waits.

        While nobody waits the store is asked for nothing.
        """
        tasks = Tasks()
        for run in (self._listen, self._look, self._prune):
            tasks.start(_for_ever(run), f"paliadin {run.__name__}")
        self._waiters.on_wait.append(self._wake_up)
        try:
            yield
        finally:
            self._waiters.on_wait.remove(self._wake_up)
            await tasks.end()

    async def look_for(self, turn_ids: Collection[str]) -> StoreFailed | None:
        """Hand what the store has for these turns to who waits for them.

        Returns:
            Why it did not answer, where it did not.
        """
        ids = list(turn_ids)
        try:
            for start in range(0, len(ids), _MAX_IDS):
                found = await self._store.find(ids[start : start + _MAX_IDS])
                for turn_id, each in found.items():
                    self._waiters.offer_found(turn_id, each)
        except StoreFailed as exc:
            if not self._is_away:
                _log.warning("store.away waiting=%d error=%s", len(ids), exc)
            self._is_away = True
            return exc
        if self._is_away:
            _log.info("store.back")
        self._is_away = False
        return None

    async def _listen(self) -> None:
        async with self._store.hints(self._on_hint):
            await anyio.sleep_forever()

    async def _look(self) -> None:
        next_look = math.inf
        while True:
            with anyio.CancelScope(deadline=next_look):
                await self._wake.wait()
            self._wake = anyio.Event()
            now = anyio.current_time()
            hinted, self._hinted = self._hinted, set()
            unlooked = self._waiters.unlooked()
            if not self._waiters.anybody:
                next_look = math.inf
                continue
            if None in hinted or now >= next_look:
                wanted = self._waiters.lacking()
                next_look = now + LOOK_S
            else:
                wanted = {each for each in hinted if each and self._waiters.lack(each)}
                next_look = min(next_look, now + LOOK_S)
            wanted.update(*(waiter.aliases for waiter in unlooked))
            if wanted:
                try:
                    failed = await self.look_for(wanted)
                finally:
                    for waiter in unlooked:
                        waiter.looked.set()
                for waiter in unlooked:
                    waiter.failed = failed
                self._looked.set()
                # Hints of any turn may come by the hundred in a second. However many people wait,
                # looking takes no more than half of the time.
                await anyio.sleep(min(anyio.current_time() - now, LOOK_S))

    async def _prune(self) -> None:
        # Beside the looks: a step that removes large bodies takes seconds, and people wait.
        while True:
            await self._looked.wait()
            self._looked = anyio.Event()
            await self._pruner.prune_if_due()

    def _on_hint(self, turn_id: str | None) -> None:
        self._waiters.hint(turn_id)
        if turn_id is None or self._waiters.lack(turn_id):
            self._hinted.add(turn_id)
            self._wake_up()

    def _wake_up(self) -> None:
        self._wake.set()


async def _for_ever(run: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await run()
        except Exception as exc:  # noqa: BLE001 - whatever it is, others wait for what this brings
            _log.error("store.watch_failed error=%s", " | ".join(safe_trace(exc)))
        await anyio.sleep(LOOK_S)
