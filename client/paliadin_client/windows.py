"""Lets one turn at a time have a window: two questions in one prompt would get one answer.

Within this process turns queue in the order of their arrival. Between processes a window is leased
in the store: the lease of a process that died runs out, and no connection has to be kept for it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import anyio

from paliadin_client.errors import StoreFailed
from paliadin_client.store.protocol import Store, Window
from paliadin_client.store_writes import StoreWrites
from paliadin_client.waiting import Waiters
from paliadin_contract.trace import safe_trace

_log = logging.getLogger(__name__)

#: For how long, in seconds, a window is leased, and how often its lease is renewed.
LEASE_S = 30.0
RENEW_S = 10.0
#: How often, in seconds, a window that another process has is asked for. A hint comes sooner.
LOOK_S = 2.0


class Windows:
    """The windows that turns of this process have or queue for.

    Args:
        store: where windows are leased.
        writes: brings there what must get there.
        waiters: notifies when the turn may be over that has a window.
    """

    def __init__(self, store: Store, writes: StoreWrites, waiters: Waiters) -> None:
        self._store = store
        self._writes = writes
        self._waiters = waiters
        #: By window the turns of this process that want it, each with the event that it waits for.
        #: The first of them has it, or asks for it.
        self._queues: dict[str, OrderedDict[str | None, anyio.Event]] = {}
        #: What this process has leased, by the window's name.
        self._leased: dict[str, Window] = {}

    async def hold(self, window: Window, on_wait: Callable[[StoreFailed | None], None]) -> Window:
        """Wait until `window.turn_id` has the window.

        Where the store is away this waits until it is back: only the store knows whether another
        process has the window.

        Args:
            window: which one, for whom, and its host, if it has none yet.
            on_wait: called while it must wait: with None behind another turn, else with the error.

        Returns:
            The window with the host that it is on. It must be released, unless it is another
            user's, as its `user_id` then says.
        """
        assert window.turn_id is not None
        leased = self._leased.get(window.name)
        if leased is not None and leased.user_id != window.user_id:
            return leased
        queue = self._queues.setdefault(window.name, OrderedDict())
        turn = queue[window.turn_id] = anyio.Event()
        try:
            if len(queue) > 1:
                on_wait(None)
                await turn.wait()
            standing = await self._lease(window, on_wait)
        except BaseException:
            self._leave(window)
            raise
        if standing.user_id == window.user_id:
            self._leased[window.name] = standing
        else:
            self._leave(window)
        return standing

    async def release(self, window: Window, reply: bytes | None = None) -> None:
        """Free the window, if `window.turn_id` has it or waits for it, and notify the next one.

        With a reply it is left for the turn in the same transaction.
        """
        if self._has(window):
            del self._leased[window.name]
        try:
            await self._writes.write(partial(self._store.release, window, reply), "release")
        finally:
            self._leave(window)

    async def end(self, window: Window) -> None:
        """Free a window of the turn that has it in the store, and of the one that has it here."""
        if window.turn_id is not None:
            await self.release(window)
        self._lose(window.name)

    async def look(self, window: Window) -> Window:
        """How the window stands; `window.turn_id` is of nobody's turn, and has it for a moment.

        Raises:
            StoreFailed: the store is away.
        """
        standing = await self._grant(window)
        if standing.turn_id == window.turn_id:
            await self._writes.write(partial(self._store.release, window), "release")
            return replace(standing, turn_id=None)
        return standing

    async def move(self, window: Window, host: str) -> Window:
        """Let the user's turns go to `host` from now on; returns the window as it then stands."""
        moved = replace(window, host=host)
        if self._has(window):
            self._leased[window.name] = moved
        await self._writes.write(partial(self._store.move, moved), "move")
        return moved

    async def renew(self) -> None:
        """Renew the lease of each window that this process has, every 10 s, until cancelled."""
        while True:
            await anyio.sleep(RENEW_S)
            try:
                await self._renew_all()
            except StoreFailed as exc:
                _log.warning("window.not_renewed error=%s", exc)  # there is time for another round
            except Exception as exc:  # noqa: BLE001 - whatever it is, the other windows are renewed
                _log.error("window.not_renewed error=%s", " | ".join(safe_trace(exc)))

    async def _renew_all(self) -> None:
        turns = {window.turn_id: name for name, window in self._leased.items() if window.turn_id}
        for turn_id, found in (await self._store.find(turns)).items():
            if found.reply:  # it was ended elsewhere: its session was reset
                self._lose(turns[turn_id], turn_id)
        for window in list(self._leased.values()):
            if not self._has(window):
                continue  # it was released meanwhile
            standing = await self._store.hold(window, LEASE_S)
            if not self._has(window):
                # It was released while it was being renewed.
                await self._writes.write(partial(self._store.release, window), "release")
            elif standing.turn_id != window.turn_id:
                # Its answer was seen there before it was here, or its lease had run out.
                _log.info("window.lost turn_id=%s: another turn has it", window.turn_id)
                self._lose(window.name, window.turn_id)

    def _has(self, window: Window) -> bool:
        leased = self._leased.get(window.name)
        return leased is not None and leased.turn_id == window.turn_id

    def _lose(self, name: str, turn_id: str | None = None) -> None:
        window = self._leased.get(name)
        if window is not None and turn_id in (None, window.turn_id):
            del self._leased[name]
            self._leave(window)

    async def _lease(self, window: Window, on_wait: Callable[[StoreFailed | None], None]) -> Window:
        while True:
            try:
                standing = await self._grant(window)
                if standing.user_id != window.user_id or standing.turn_id == window.turn_id:
                    return standing
                assert standing.turn_id is not None
                on_wait(None)
                found = (await self._store.find([standing.turn_id])).get(standing.turn_id)
                if found is not None and found.push is not None:
                    # The process that submitted it died before it could free the window.
                    await self._store.release(standing)
                    continue
            except StoreFailed as exc:
                on_wait(exc)
                await anyio.sleep(LOOK_S)
                continue
            with self._waiters.hinted(standing.turn_id) as hint, anyio.move_on_after(LOOK_S):
                await hint.wait()

    async def _grant(self, window: Window) -> Window:
        try:
            return await self._store.hold(window, LEASE_S)
        except StoreFailed:
            raise
        except BaseException:  # cancelled, and it may have been granted all the same
            await self._writes.write(partial(self._store.release, window), "release")
            raise

    def _leave(self, window: Window) -> None:
        queue = self._queues.get(window.name)
        if queue is not None:
            queue.pop(window.turn_id, None)
            if queue:
                next(iter(queue.values())).set()
            else:
                del self._queues[window.name]
