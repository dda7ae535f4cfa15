"""Keeps everything in this process, for this process alone."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from paliadin_client.store.protocol import KEEP_BODIES_S, Found, Push, Receipt, Verdict, Window
from paliadin_contract.rank import Rank, outranks, rank_of

_MAX_TURNS = 10_000
#: Of pushes' bodies and replies, as they came. One of the largest that the inbox takes has room.
_MAX_KEPT_BYTES = 32 * 1024 * 1024


@dataclass(slots=True)
class _Kept:
    """What can be found for a turn."""

    found: Found = field(default_factory=Found)
    own_ids: set[str] = field(default_factory=set)
    push_bytes: int = 0
    since: float = 0.0

    @property
    def size(self) -> int:
        return self.push_bytes + len(self.found.reply or b"")


class MemoryStore:
    """Knows the pushes of the last 10,000 turns, and has the last answers, up to 32 MiB.

    A turn is named as its app finds it: by the submitted id, else by its own.

    Args:
        clock: monotonic, in seconds.
    """

    has_connection = False

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._claimed: set[tuple[str, str]] = set()
        # Of a plain dict the oldest is found by passing over all that were removed before it.
        self._turns: OrderedDict[str, tuple[set[str], Rank]] = OrderedDict()
        self._webhook_ids: set[str] = set()
        #: By the turn's name, the oldest first.
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        #: The names of turns by the own ids of their pushes.
        self._names: dict[str, str] = {}
        self._kept_bytes = 0
        self._windows: dict[str, tuple[Window, float]] = {}
        self._listeners: list[Callable[[str | None], None]] = []

    @asynccontextmanager
    async def receive(self, push: Push) -> AsyncIterator[Receipt]:
        """As `Store.receive`; nothing outlives the process."""
        claims = {("turn", push.turn), ("id", push.webhook_id)}
        if claims & self._claimed:
            yield Receipt(Verdict.BUSY)
            return
        self._claimed |= claims
        try:
            rank = rank_of(push.callback)
            _, standing = self._turns.get(push.turn, ((), None))
            if push.webhook_id in self._webhook_ids:
                yield Receipt(Verdict.KNOWN)
            elif not outranks(rank, standing):
                yield Receipt(Verdict.OUTRANKED)
            else:
                yield Receipt(Verdict.NEW)
                self._remember(push, rank)
        finally:
            self._claimed -= claims

    async def find(self, turn_ids: Collection[str]) -> Mapping[str, Found]:
        """As `Store.find`."""
        self._drop_old()
        found = {}
        for turn_id in turn_ids:
            kept = self._kept.get(turn_id) or self._kept.get(self._names.get(turn_id, turn_id))
            if kept:
                found[turn_id] = kept.found
        return found

    async def leave_reply(self, turn_id: str, reply: bytes) -> None:
        """As `Store.leave_reply`."""
        kept = self._take(turn_id) or _Kept()
        kept.found = Found(kept.found.push, reply)
        self._keep(turn_id, kept)

    @asynccontextmanager
    async def hints(self, on_hint: Callable[[str | None], None]) -> AsyncIterator[None]:
        """As `Store.hints`."""
        self._listeners.append(on_hint)
        try:
            on_hint(None)
            yield
        finally:
            self._listeners.remove(on_hint)

    async def hold(self, window: Window, ttl_s: float) -> Window:
        """As `Store.hold`."""
        now = self._clock()
        if window.name in self._windows:
            standing, until = self._windows[window.name]
            if until <= now and standing.turn_id is not None:
                standing = replace(standing, turn_id=None)
            if standing.turn_id not in (None, window.turn_id) or standing.user_id != window.user_id:
                return standing
            window = replace(window, host=standing.host or window.host)
        self._windows[window.name] = window, now + ttl_s
        return window

    async def release(self, window: Window, reply: bytes | None = None) -> None:
        """As `Store.release`."""
        if reply is not None and window.turn_id is not None:
            await self.leave_reply(window.turn_id, reply)
        if standing := self._held(window):
            self._windows[window.name] = replace(standing, turn_id=None), self._clock()
        self._hint(window.turn_id)

    async def move(self, window: Window) -> None:
        """As `Store.move`."""
        if standing := self._held(window):
            _, until = self._windows[window.name]
            self._windows[window.name] = replace(standing, host=window.host), until

    async def prune(self) -> None:
        """As `Store.prune`."""
        self._drop_old()

    async def aclose(self) -> None:
        """There is nothing to let go of, and what is known here stays known."""

    def _remember(self, push: Push, rank: Rank) -> None:
        webhook_ids, _ = self._turns.get(push.turn, (set[str](), None))
        webhook_ids.add(push.webhook_id)
        self._turns[push.turn] = webhook_ids, rank
        self._webhook_ids.add(push.webhook_id)
        if len(self._turns) > _MAX_TURNS:
            _, (forgotten, _) = self._turns.popitem(last=False)
            self._webhook_ids -= forgotten
        kept = self._take(push.turn) or _Kept()
        kept.found = Found(push.callback, kept.found.reply)
        kept.push_bytes = len(push.body)
        kept.own_ids.add(push.callback.data.turn_id)
        self._keep(push.turn, kept)

    def _keep(self, turn: str, kept: _Kept) -> None:
        kept.since = self._clock()
        self._kept[turn] = kept
        self._kept_bytes += kept.size
        self._names.update(dict.fromkeys(kept.own_ids, turn))
        self._drop_old()
        self._hint(turn)

    def _take(self, turn: str) -> _Kept | None:
        kept = self._kept.pop(turn, None)
        if kept:
            self._kept_bytes -= kept.size
            for own_id in kept.own_ids:
                self._names.pop(own_id, None)
        return kept

    def _drop_old(self) -> None:
        oldest = self._clock() - KEEP_BODIES_S
        while self._kept:
            turn, kept = next(iter(self._kept.items()))
            few = self._kept_bytes <= _MAX_KEPT_BYTES and len(self._kept) <= _MAX_TURNS
            if few and kept.since >= oldest:
                return
            self._take(turn)

    def _held(self, window: Window) -> Window | None:
        standing, _ = self._windows.get(window.name, (None, 0.0))
        return standing if standing and standing.turn_id == window.turn_id else None

    def _hint(self, turn_id: str | None) -> None:
        for on_hint in list(self._listeners):
            on_hint(turn_id)
