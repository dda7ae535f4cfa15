"""The slots that attempts take: how many there are, and which kinds may have them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from paliadin_sidecar.delivery.breaker import CircuitBreaker
from paliadin_sidecar.delivery.rate_limiter import RateLimiter
from paliadin_sidecar.outbox.bodies import select_fitting
from paliadin_sidecar.outbox.queue import Shares
from paliadin_sidecar.outbox.records import Delivery

#: Sent and not written down, since the disk is full: each would be sent again after a crash.
_MAX_UNRECORDED = 1000


class Slots:
    """The slots of attempts that are under way, and those that are free.

    Args:
        breaker: how many there are.
        limiter: when the next one may be taken.

    Attributes:
        shares: which root's turn it is.
        last_was_retry: the last one was taken by a delivery that was tried before.
    """

    def __init__(self, breaker: CircuitBreaker, limiter: RateLimiter) -> None:
        self._breaker = breaker
        self._limiter = limiter
        self._taken = self._taken_by_retries = 0
        self.shares = Shares()
        self.last_was_retry = False

    def free(self, now: float, unrecorded: int) -> tuple[int, int, float]:
        """How many are free now.

        Args:
            now: seconds.
            unrecorded: turns that were sent, and of which that is not written down yet.

        Returns:
            How many; for how many of them a delivery may have that was tried before; and the
            seconds until there may be more, 0 where no time is known.
        """
        breaker, limiter = self._breaker, self._limiter
        limit = breaker.concurrency_limit
        slots = min(limit - self._taken, _MAX_UNRECORDED - unrecorded)
        if slots <= 0:
            return 0, 0, 0.0  # an attempt that ends gives its slot back
        if (wait_s := limiter.wait_s(now)) > 0:
            return 0, 0, wait_s
        # Turns that failed before get half of the slots: a slow or poisonous one never keeps
        # a fresh one waiting.
        retries = max(0, min(slots, limit // 2 - self._taken_by_retries))
        if limiter.is_limited:
            slots, retries = min(slots, 2), min(retries, 1)  # one of each, to take turns
        if breaker.retries_are_throttled:
            if (wait_s := breaker.retry_in_s(now)) > 0:
                return slots, 0, wait_s
            retries = min(retries, 1)
        return slots, retries, 0.0

    def choose(
        self, deliveries: Sequence[Delivery], slots: int, held: Collection[int]
    ) -> list[Delivery]:
        """Which of these, all of them first attempts, go now: roots by turns, as bodies fit.

        Args:
            deliveries: of turns that have none under way.
            slots: how many are free.
            held: sizes of the bodies that are in memory, in bytes.
        """
        ordered = deliveries
        if len(deliveries) > 1:
            roots: dict[str, list[Delivery]] = {}
            for one in deliveries:
                roots.setdefault(one.root, []).append(one)
            ordered = self.shares.first_attempts.order(roots, slots)
        return [ordered[n] for n in select_fitting([len(one.body) for one in ordered], held)]

    def take(self, delivery: Delivery, now: float) -> None:
        """An attempt of this delivery begins."""
        self.last_was_retry = delivery.attempts > 0
        self._limiter.record_started(now)
        if self.last_was_retry:
            self._breaker.record_retry(now)
            self._taken_by_retries += 1
        self._taken += 1
        self.shares.of(delivery.attempts).started(delivery.root)

    def give_back(self, delivery: Delivery) -> None:
        """It has ended, and is not counted in the delivery yet."""
        self._taken -= 1
        self._taken_by_retries -= delivery.attempts > 0
        self.shares.of(delivery.attempts).finished(delivery.root)
