"""What is looked at next, and how much one root may ask of the others. Pure."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Generic, TypeVar

__all__ = ["Budget", "DueQueue"]

T = TypeVar("T")


class DueQueue(Generic[T]):
    """Items by the time at which they are due, each once, however often that time is changed.

    Items are told apart by their identity, so they must be hashable by it.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._current: dict[T, tuple[float, int]] = {}
        self._order = count()

    def __len__(self) -> int:
        return len(self._current)

    def put(self, item: T, at: float) -> None:
        """This one is due at that time, whatever was said before."""
        self._current[item] = entry = (at, next(self._order))
        heapq.heappush(self._heap, (*entry, item))
        if len(self._heap) > 2 * len(self._current) + 64:  # entries that were overtaken
            self._heap = [(at, n, item) for item, (at, n) in self._current.items()]
            heapq.heapify(self._heap)

    def remove(self, item: T) -> None:
        """This one is not due any more, if it was."""
        self._current.pop(item, None)

    def next_at(self) -> float | None:
        """When the first one is due; None where there is none."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self) -> T:
        """Take the first one; there must be one."""
        self.next_at()
        item = heapq.heappop(self._heap)[2]
        del self._current[item]
        return item

    def _is_current(self, entry: tuple[float, int, T]) -> bool:
        at, n, item = entry
        return self._current.get(item) == (at, n)


class Budget:
    """So many at once, and so many a second from then on.

    Args:
        burst: at most so many at once.
        per_s: so many more in each second.
    """

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left = float(burst)
        self._at: float | None = None

    def wait_s(self, now: float) -> float:
        """Seconds until there is one to spend; 0 where there is."""
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        # Sums of fractions are not exact, and who comes when he was told must not come again.
        return 0.0 if self._left >= 1.0 - 1e-6 else (1.0 - self._left) / self._per_s

    def spend(self, now: float) -> bool:
        """Spend one, if there is one."""
        if self.wait_s(now) > 0:
            return False
        self._left -= 1.0
        return True
