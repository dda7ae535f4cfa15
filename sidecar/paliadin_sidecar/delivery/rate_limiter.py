"""How fast turns may go out to a receiver that limits them. Pure: no clock, no I/O.

A limiter says "later", with or without `Retry-After`, and many count what they refuse as well:
whoever goes on asking is never let through. So a "later" is about the receiver, not about the
turn that met it. Nothing is sent while it asks for rest, and after that no more per second than
it let through before, less a fifth; each acknowledgement raises that a little, until the limit
is met again or was gone for a while. A turn that comes alone is never held by the rate, only by
the rest.
"""

from __future__ import annotations

import math
from collections import deque

#: The rest where the receiver names none, doubling for as long as nothing passes: that finds
#: limits that are lower than the least rate.
_MIN_REST_S, _MAX_REST_S = 0.25, 60.0
#: The rate that passes is taken from the acknowledgements of so many seconds.
_MEASURED_S = 60.0
#: Turns per second: at least this, and where nothing has passed yet; and above the other it is
#: no limit any more.
_MIN_RATE, _MAX_RATE = 1.0, 100.0
#: After a "later", this share of what passed. Slowly towards the limit that was met, so that it
#: is met seldom, and fast beyond it, where it proves to be gone.
_DECREASE, _INCREASE, _FAST_INCREASE, _PROBE_MARGIN = 0.8, 1.005, 1.05, 1.2
#: A limit that was not met for so long is forgotten.
_FORGOTTEN_S = 600.0
#: So many turns in a row that were put off without a word of a limit, with some that passed before
#: and one after it, are a limit as well. At a receiver that fails eight times in ten it is rare.
_POSTPONED_IN_A_ROW = 30


class RateLimiter:
    """When the next turn may go out. All times are monotonic seconds."""

    def __init__(self, resting_until: float = 0.0) -> None:
        self.resting_until = resting_until  #: before, nothing goes out
        self.rate = math.inf  #: turns per second that may go out; infinite where no limit is known
        self._limit = math.inf  # the rate at which "later" was said
        self._next_at = 0.0
        self._slowed_at = -math.inf
        self._throttled = 0  # of "later", nothing having passed between
        self._postponed = 0  # in a row, by answers that name no limit
        self._passed: deque[float] = deque(maxlen=int(_MEASURED_S * _MAX_RATE))

    @property
    def is_limited(self) -> bool:
        """Whether turns go out one by one."""
        return self.rate < math.inf

    def rest_s(self, now: float) -> float:
        """Seconds for which the receiver wants nothing, pings neither."""
        return max(0.0, self.resting_until - now)

    def wait_s(self, now: float) -> float:
        """Seconds until a turn may go out; 0 for at once."""
        if now - max(self._slowed_at, self.resting_until) > _FORGOTTEN_S:
            self.rate = math.inf
        paced_at = self._next_at if self.is_limited else 0.0
        return max(self.rest_s(now), paced_at - now)

    def record_slept(self, seconds: float) -> None:
        """Note that the machine slept for so long, a part of the rest and of a limit's age."""
        self.resting_until -= seconds
        self._slowed_at -= seconds

    def record_started(self, now: float) -> None:
        """Note that a turn goes out."""
        self._next_at = now + 1 / self.rate

    def record_acknowledged(self, now: float) -> None:
        """Note that a turn got through."""
        passed_at = self._passed[-1] if self._passed else -math.inf
        if self._postponed >= _POSTPONED_IN_A_ROW and passed_at > now - _MEASURED_S:
            self._slow_down(now, _MIN_REST_S)
        self._postponed = 0
        self._passed.append(now)
        self._throttled = 0
        near = self.rate <= self._limit * _PROBE_MARGIN
        self.rate *= _INCREASE if near else _FAST_INCREASE
        if self.rate > _MAX_RATE:
            self.rate = math.inf

    def record_postponed(self) -> None:
        """Note that a turn was put off by an answer that names no limit, as in an outage."""
        self._postponed += 1

    def record_throttled(self, now: float, *, started_at: float, retry_after_s: float) -> None:
        """Note that the receiver asked for time.

        Args:
            now: when it did.
            started_at: when the attempt that it answered began.
            retry_after_s: what it asked for; 0 where it named nothing.
        """
        rest_s = retry_after_s
        # Those that were under way already say the same once more.
        if started_at >= self._slowed_at:
            in_a_row = min(self._throttled, 16)
            if not retry_after_s or in_a_row:
                rest_s = max(rest_s, min(_MAX_REST_S, _MIN_REST_S * 2.0**in_a_row))
            self._slow_down(now, rest_s)
            self._throttled += 1
        self.resting_until = max(self.resting_until, now + rest_s)

    def _slow_down(self, now: float, rest_s: float) -> None:
        passed = [at for at in self._passed if at > now - _MEASURED_S]
        self._passed.clear()
        self._slowed_at = now
        if passed:
            # What passed in a burst is what passes in the rest that it led to.
            self._limit = min(self.rate, len(passed) / max(now - passed[0], rest_s))
        else:
            self._limit = min(self.rate, _MIN_RATE / _DECREASE)
        self.rate = max(_MIN_RATE, _DECREASE * self._limit)
