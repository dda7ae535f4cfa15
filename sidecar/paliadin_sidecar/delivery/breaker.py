"""The circuit breaker: whether turns may go out, judged by all attempts together. Pure."""

from __future__ import annotations

import math

#: Turns under way at once: enough to hide a slow receiver, few enough not to flood it.
MAX_CONCURRENCY = 8
#: A receiver that comes back does not get the whole backlog at once: two at first, one of them for
#: a turn that failed before, and one more with each acknowledgement.
_MIN_CONCURRENCY = 2
#: Connection failures in a row, over all turns, after which only a ping goes out.
_FAILURES_TO_PAUSE = 5
#: Turns in a row that were postponed and none acknowledged, after which a ping asks: so many at
#: once, or so many over so long. At a receiver that fails nine times in ten, and so still lets
#: turns through, fifty in a row are rare.
_PING_AFTER_POSTPONED = 50
_SLOW_PING_AFTER, _SLOW_PING_S = 10, 30.0
#: Where the ping is acknowledged in spite of that, it is asked again after a while, and what failed
#: before goes out at most this often: the receiver takes pings and no turns.
_PING_INTERVAL_S, _RETRY_INTERVAL_S = 60.0, 1.0
_FIRST_PING_S, _MAX_PING_S = 1.0, 60.0
#: After the machine slept or came to another network, a receiver that cannot be reached is tried
#: every second for so long: routes and name servers come some seconds after an address.
SHORT_DELAYS_S, MAX_SHORT_DELAY_S = 30.0, 1.0


class CircuitBreaker:
    """Whether turns may go out, judged by how the receiver does over all of them.

    Times are monotonic seconds.
    """

    def __init__(self, *, paused: bool = False) -> None:
        self.paused = paused
        self._failures = 0
        self._ping_s = _FIRST_PING_S
        self._concurrency = _MIN_CONCURRENCY if paused else MAX_CONCURRENCY
        self._postponed = 0
        self._postponed_since = 0.0
        self._pinged_at: float | None = None  # by a ping, since the last acknowledgement
        self._retried_at = 0.0
        self._short_delays_until = -math.inf

    @property
    def concurrency_limit(self) -> int:
        """How many turns may be under way at once: few after a pause, more as they pass."""
        return 0 if self.paused else self._concurrency

    @property
    def is_closed(self) -> bool:
        """Whether nothing limits turns, and the last one that was answered was acknowledged."""
        is_limited = self.concurrency_limit < MAX_CONCURRENCY
        return not (is_limited or self._failures or self._postponed)

    def record_response(self, *, acknowledged: bool) -> None:
        """Note that the receiver answered a turn, with whatever status: it can be reached."""
        self._failures = 0
        if acknowledged:
            self._concurrency = min(self._concurrency + 1, MAX_CONCURRENCY)
            self._postponed = 0
            self._pinged_at = None

    def record_postponed(self, now: float) -> bool:
        """Note that the receiver put a turn off. True if a ping is due."""
        self._postponed_since = self._postponed_since if self._postponed else now
        self._postponed += 1
        slowly = self._postponed >= _SLOW_PING_AFTER and now - self._postponed_since >= _SLOW_PING_S
        if self.paused or not (slowly or self._postponed >= _PING_AFTER_POSTPONED):
            return False
        if self._pinged_at is not None and now - self._pinged_at < _PING_INTERVAL_S:
            return False
        self._pinged_at = now
        return True

    @property
    def retries_are_throttled(self) -> bool:
        """Whether turns that failed before go out one by one, since only pings pass."""
        return self._pinged_at is not None

    def retry_in_s(self, now: float) -> float:
        """Seconds until one of those may go out."""
        at = self._retried_at + _RETRY_INTERVAL_S
        return max(0.0, at - now) if self.retries_are_throttled else 0.0

    def record_retry(self, now: float) -> None:
        """Note that a turn that failed before goes out."""
        self._retried_at = now

    def record_failure(self) -> bool:
        """Note a connection failure. True if it is the one that calls for a pause."""
        self._failures += 1
        return not self.paused and self._failures >= _FAILURES_TO_PAUSE

    def pause(self) -> None:
        """Send nothing but pings from here on."""
        self.paused = True
        self._ping_s = _FIRST_PING_S

    def next_ping_s(self, now: float) -> float:
        """How long to wait before the next ping."""
        seconds, self._ping_s = self._ping_s, min(2 * self._ping_s, _MAX_PING_S)
        return min(seconds, self.max_delay_s(now))

    def interrupted(self, now: float) -> None:
        """The machine slept or came to another network: what was known of the receiver is old."""
        self._short_delays_until = now + SHORT_DELAYS_S
        self._ping_s = _FIRST_PING_S

    def max_delay_s(self, now: float) -> float:
        """The longest delay after an attempt that reached nobody."""
        return MAX_SHORT_DELAY_S if now < self._short_delays_until else math.inf

    def resume(self) -> None:
        """A ping was acknowledged: the backlog may go, slowly at first."""
        self.paused = False
        self._failures = 0
        self._postponed = 0
        self._pinged_at = None
        self._concurrency = _MIN_CONCURRENCY
