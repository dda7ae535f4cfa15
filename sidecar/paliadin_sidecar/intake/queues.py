"""Which file of a root is inspected next. Pure."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

#: What one root may cost the journal, the outbox and the receiver with files that are no answer:
#: so many at once, then so many a second.
_MAX_EVENT_BURST, _EVENTS_PER_S = 100, 10.0
#: One in so many places of a batch is for what is no answer yet, while answers wait too.
_DEFECTIVE_TURN = 4


class InspectionQueue(Generic[T]):
    """The files of a root that are to be inspected, by the time at which they are due.

    What may be an answer as it is and what is none, or none yet, have a queue each, so that a
    flood of the second never holds up the first.

    Attributes:
        event_budget: how many files that are no answer may have an event of their own.
        defective: those that are no answer as they are.
    """

    def __init__(self) -> None:
        self.event_budget = TokenBucket(_MAX_EVENT_BURST, _EVENTS_PER_S)
        self.defective: DueQueue[T] = DueQueue()
        self._candidates: DueQueue[T] = DueQueue()
        self._turn = 0

    def put(self, item: T, at: float, *, is_defective: bool) -> None:
        """Put an item in, or change the time at which it is due."""
        self.remove(item)
        queue = self.defective if is_defective else self._candidates
        queue.put(item, at)

    def remove(self, item: T) -> None:
        """Take an item out, if it is in."""
        self._candidates.remove(item)
        self.defective.remove(item)

    def pop_due(self, now: float) -> T | None:
        """Take the next one that is due."""
        queues = [self._candidates, self.defective]
        self._turn += 1
        if self._turn % _DEFECTIVE_TURN == 0:
            queues.reverse()
        for queue in queues:
            at = queue.next_at()
            held = queue is self.defective and self.event_budget.wait_s(now) > 0
            if at is not None and at <= now and not held:
                return queue.pop()
        return None

    def due_in(self, now: float) -> float | None:
        """Seconds until one is due, None where nothing waits."""
        waits = [
            max(at - now, rest_s)
            for at, rest_s in (
                (self._candidates.next_at(), 0.0),
                (self.defective.next_at(), self.event_budget.wait_s(now)),
            )
            if at is not None
        ]
        return max(0.0, min(waits)) if waits else None


class DueQueue(Generic[T]):
    """A priority queue of items by the time at which they are due; each is in it once.

    Items are distinguished by their identity, so they must be hashable by it.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._current: dict[T, tuple[float, int]] = {}
        self._order = count()

    def __len__(self) -> int:
        return len(self._current)

    def put(self, item: T, at: float) -> None:
        """Put an item in, or change the time at which it is due."""
        self._current[item] = entry = (at, next(self._order))
        heapq.heappush(self._heap, (*entry, item))
        if len(self._heap) > 2 * len(self._current) + 64:  # drop entries whose time was changed
            self._heap = [(at, n, item) for item, (at, n) in self._current.items()]
            heapq.heapify(self._heap)

    def remove(self, item: T) -> None:
        """Take an item out, if it is in."""
        self._current.pop(item, None)

    def next_at(self) -> float | None:
        """When the first item is due; None where the queue is empty."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self) -> T:
        """Take the first item; the queue must not be empty."""
        self.next_at()
        item = heapq.heappop(self._heap)[2]
        del self._current[item]
        return item

    def _is_current(self, entry: tuple[float, int, T]) -> bool:
        at, n, item = entry
        return self._current.get(item) == (at, n)


class TokenBucket:
    """A token bucket.

    Args:
        burst: how many tokens it holds, and begins with.
        per_s: how many come back each second.
    """

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left = float(burst)
        self._at: float | None = None

    def wait_s(self, now: float) -> float:
        """Seconds until there is a token; 0 where there is one."""
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        # Sums of fractions are not exact; a caller that waited for so long must get a token.
        return 0.0 if self._left >= 1.0 - 1e-6 else (1.0 - self._left) / self._per_s

    def spend(self, now: float) -> bool:
        """Spend a token; False where there is none."""
        if self.wait_s(now) > 0:
            return False
        self._left -= 1.0
        return True
