"""What is looked at or sent next, and how much one root may ask of the others. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Budget", "DueQueue", "FairShare", "Shares"]

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


@dataclass
class FairShare:
    """Which root's turn it is to send.

    The one with the fewest under way, and of those the one that started last the longest ago. So
    roots that always have something share the places evenly, and one whose attempts take long keeps
    none of the others waiting; one that has nothing leaves its share to the others, and does not
    save it up.

    Attributes:
        both_ends: take from a root's queue its oldest and its newest in turn. A flood holds what
            comes after it for an attempt or two then, and one that has `n` older ones before it
            still goes after at most `2 * n` others of its root. Otherwise the oldest first.
        under_way: how many of each root.
        started_last: the number of the start that was each root's last.
        newest_next: whether it is the turn of a root's newest.
        starts: how many there were.
    """

    both_ends: bool = False
    under_way: dict[str, int] = field(default_factory=dict)
    started_last: dict[str, int] = field(default_factory=dict)
    newest_next: dict[str, bool] = field(default_factory=dict)
    starts: int = 0

    def copy(self) -> FairShare:
        """One that goes on from here by itself."""
        return replace(
            self,
            under_way=self.under_way.copy(),
            started_last=self.started_last.copy(),
            newest_next=self.newest_next.copy(),
        )

    def started(self, root: str) -> None:
        """One of this root goes out."""
        self.starts += 1
        self.started_last[root] = self.starts
        self.under_way[root] = self.under_way.get(root, 0) + 1
        self.newest_next[root] = self.both_ends and not self.newest_next.get(root, False)

    def finished(self, root: str) -> None:
        """One of this root is not under way any more."""
        self.under_way[root] -= 1

    def order(self, queues: Mapping[str, Sequence[T]], limit: int) -> list[T]:
        """The next ones of these, in the order in which they go, and at most so many.

        Args:
            queues: by root, the oldest first.
            limit: how many.
        """
        ahead, found = self.copy(), list[T]()
        left = {root: deque(queue) for root, queue in queues.items() if queue}
        while left and len(found) < limit:
            root = min(left, key=ahead.rank)
            queue = left[root]
            found.append(queue.pop() if ahead.newest_next.get(root) else queue.popleft())
            ahead.started(root)
            if not queue:
                del left[root]
        return found

    def rank(self, root: str) -> tuple[int, int]:
        """The root of the lowest one is next."""
        return self.under_way.get(root, 0), self.started_last.get(root, 0)


@dataclass
class Shares:
    """The turns of the roots at each kind of attempt, so that neither kind takes from the other."""

    first_attempts: FairShare = field(default_factory=lambda: FairShare(both_ends=True))
    retries: FairShare = field(default_factory=FairShare)

    def copy(self) -> Shares:
        """Others that go on from here by themselves."""
        return Shares(self.first_attempts.copy(), self.retries.copy())

    def of(self, attempts: int) -> FairShare:
        """That of a delivery that was tried so often."""
        return self.retries if attempts else self.first_attempts
