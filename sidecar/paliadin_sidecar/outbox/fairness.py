"""Shares: which delivery is sent next, and how much one root may take from the others. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = ["FairShare", "Shares"]

T = TypeVar("T")


@dataclass
class FairShare:
    """Which root's turn it is to send.

    It is the root with the fewest attempts under way, and of those the one whose last start is the
    longest ago. So roots that always have something to send share the places evenly, and one whose
    attempts take long keeps none of the others waiting. A root that has nothing to send leaves its
    share to the others, and does not save it up.

    Attributes:
        both_ends: take the oldest and the newest of a root's queue in turn. What comes after a
            flood then waits for an attempt or two, and an item with `n` older ones before it still
            goes after at most `2 * n` others of its root. Otherwise the oldest goes first.
        under_way: how many attempts of each root are under way.
        started_last: the number of each root's last start.
        newest_next: whether it is the turn of a root's newest item.
        starts: how many starts there were.
    """

    both_ends: bool = False
    under_way: dict[str, int] = field(default_factory=dict)
    started_last: dict[str, int] = field(default_factory=dict)
    newest_next: dict[str, bool] = field(default_factory=dict)
    starts: int = 0

    def started(self, root: str) -> None:
        """Count an attempt of this root that starts."""
        self.starts += 1
        self.started_last[root] = self.starts
        self.under_way[root] = self.under_way.get(root, 0) + 1
        self.newest_next[root] = self.both_ends and not self.newest_next.get(root, False)

    def finished(self, root: str) -> None:
        """Count an attempt of this root that ended."""
        self.under_way[root] -= 1

    def order(self, queues: Mapping[str, Sequence[T]], limit: int) -> list[T]:
        """The next items of these queues, in the order in which they are sent.

        Args:
            queues: the items by root, the oldest first.
            limit: at most so many.
        """
        ahead, found = deepcopy(self), list[T]()
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
        """Roots are taken in ascending order of this."""
        return self.under_way.get(root, 0), self.started_last.get(root, 0)


@dataclass
class Shares:
    """The shares of the roots in each kind of attempt: neither kind takes from the other."""

    first_attempts: FairShare = field(default_factory=lambda: FairShare(both_ends=True))
    retries: FairShare = field(default_factory=FairShare)

    def of(self, attempts: int) -> FairShare:
        """The share that a delivery with so many attempts counts in."""
        return self.retries if attempts else self.first_attempts
