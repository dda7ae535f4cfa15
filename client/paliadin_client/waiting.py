"""Knows who waits in this process, and hands them what arrives: here, or in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import anyio

from paliadin_client.errors import BadRequest, StoreFailed
from paliadin_client.store.protocol import Found
from paliadin_contract.callback import TurnCompleted, TurnFailed
from paliadin_contract.rank import outranks, rank_of

TurnCallback = TurnCompleted | TurnFailed

#: Pushes that came before somebody waited. They are few, and are soon asked for or never.
_MAX_EARLY_PUSHES = 64
_EARLY_PUSH_LIFETIME = timedelta(seconds=60)


@dataclass(slots=True, eq=False)
class Waiter:
    """Waits for a turn.

    Attributes:
        push: the one that counts most of those that came; `arrived` is set and `on_push` has been
            called when there is one.
        reply: what another process, or another call, left for the turn in the store.
        changed: set when there is a push, or a reply.
        shared: whether others may wait for the same turn.
        aliases: the ids under which it waits.
        looked: set when the store was asked for what came before it began to wait.
        failed: why the store did not answer then.
    """

    push: TurnCallback | None = None
    reply: bytes | None = field(default=None, repr=False)
    arrived: anyio.Event = field(default_factory=anyio.Event)
    changed: anyio.Event = field(default_factory=anyio.Event)
    on_push: Callable[[], None] = lambda: None
    shared: bool = False
    aliases: list[str] = field(default_factory=list)
    looked: anyio.Event = field(default_factory=anyio.Event)
    failed: StoreFailed | None = None

    def offer(self, callback: TurnCallback) -> None:
        """Keep `callback`, unless what is here outranks it."""
        if _counts_more(callback, self.push):
            self.push = callback
            self.arrived.set()
            self.changed.set()
            self.on_push()


class Waiters:
    """Who waits for which turn, in this process.

    Args:
        now: the clock.
    """

    def __init__(self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._waiters: dict[str, list[Waiter]] = {}
        self._early_pushes: dict[str, tuple[datetime, TurnCallback]] = {}
        #: Called when somebody begins to wait, and nobody did before, or for what may be there.
        self.on_wait: list[Callable[[], None]] = []
        #: Those whose turn may have been there before.
        self._unlooked: list[Waiter] = []
        self._hinted: dict[str, list[anyio.Event]] = {}

    @contextmanager
    def expect(self, turn_id: str, *, shared: bool = False) -> Iterator[Waiter]:
        """Wait for a turn: by the id under which it was submitted, or its own.

        Args:
            turn_id: a `uuid.UUID` is one too.
            shared: whether others may wait for it as well.

        Raises:
            BadRequest: somebody waits for it already, and does not share it either.
        """
        turn_id = str(turn_id)
        if not (shared or all(other.shared for other in self._waiters.get(turn_id, ()))):
            raise BadRequest(f"turn {turn_id} is being waited for already")
        waiter = Waiter(shared=shared)
        if shared:
            self._unlooked.append(waiter)
        self._add(waiter, turn_id)
        try:
            yield waiter
        finally:
            for alias in waiter.aliases:
                self._waiters[alias].remove(waiter)
                if not self._waiters[alias]:
                    del self._waiters[alias]

    def add_alias(self, waiter: Waiter, turn_id: str | None) -> None:
        """Let `waiter` wait for `turn_id` too, unless it is another turn's that is not shared."""
        if turn_id is None or turn_id in waiter.aliases:
            return
        for other in self._waiters.get(turn_id, ()):
            if not other.shared and set(other.aliases).isdisjoint(waiter.aliases):
                return
        self._add(waiter, turn_id)

    def offer(self, callback: TurnCallback) -> None:
        """Hand a push to who waits for its turn, or keep it for who soon will."""
        data = callback.data
        turn = data.submitted_turn_id or data.turn_id
        if waiters := self._waiters.get(turn) or self._waiters.get(data.turn_id):
            for waiter in tuple(waiters):
                waiter.offer(callback)
            return
        _, early = self._early_pushes.pop(turn, (None, None))
        if early is None or _counts_more(callback, early):
            early = callback
        self._early_pushes[turn] = (self._now(), early)
        if len(self._early_pushes) > _MAX_EARLY_PUSHES:
            del self._early_pushes[next(iter(self._early_pushes))]

    def offer_found(self, turn_id: str, found: Found) -> None:
        """Hand what the store has for a turn to who waits for it."""
        for waiter in tuple(self._waiters.get(turn_id, ())):
            # First the reply, so that whoever is woken by the push has both.
            if found.reply is not None:
                waiter.reply = found.reply
                waiter.changed.set()
            if found.push is not None:
                waiter.offer(found.push)

    def unlooked(self) -> list[Waiter]:
        """Who has begun to wait for what may be there: to be notified when it was looked for."""
        waiters, self._unlooked = self._unlooked, []
        return waiters

    @property
    def anybody(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters)

    def lack(self, turn_id: str) -> bool:
        """Whether somebody waits for this turn who has no push yet."""
        return any(waiter.push is None for waiter in self._waiters.get(turn_id, ()))

    def lacking(self) -> set[str]:
        """The ids of all turns for which somebody waits who has no push yet."""
        return {turn_id for turn_id in self._waiters if self.lack(turn_id)}

    @contextmanager
    def hinted(self, turn_id: str) -> Iterator[anyio.Event]:
        """An event that is set at the store's next hint for a turn that belongs to others.

        Whoever queues behind that turn learns by it that the window may be free.
        """
        event = anyio.Event()
        self._hinted.setdefault(turn_id, []).append(event)
        try:
            yield event
        finally:
            self._hinted[turn_id].remove(event)
            if not self._hinted[turn_id]:
                del self._hinted[turn_id]

    def hint(self, turn_id: str | None) -> None:
        """Set the events of who waits for a hint for this turn; None stands for any turn."""
        for each in tuple(self._hinted) if turn_id is None else (turn_id,):
            for event in self._hinted.get(each, ()):
                event.set()

    def _add(self, waiter: Waiter, turn_id: str) -> None:
        is_first = not self._waiters
        self._waiters.setdefault(turn_id, []).append(waiter)
        waiter.aliases.append(turn_id)
        for on_wait in self.on_wait if is_first or waiter.shared else ():
            on_wait()
        for turn, (since, early) in list(self._early_pushes.items()):
            if self._now() - since > _EARLY_PUSH_LIFETIME:
                del self._early_pushes[turn]
            elif turn_id in (early.data.submitted_turn_id, early.data.turn_id):
                del self._early_pushes[turn]
                waiter.offer(early)


def _counts_more(new: TurnCallback, old: TurnCallback | None) -> bool:
    return outranks(rank_of(new), rank_of(old) if old else None)
