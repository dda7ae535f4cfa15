"""A grid of times, so that an idle process wakes once for all that it does regularly. Pure."""

from __future__ import annotations

import math

__all__ = ["next_tick"]


def next_tick(now: float, every_s: float) -> float:
    """The next multiple of `every_s` on the clock that `now` is from.

    Whoever waits for it wakes together with all others that wait for the same multiple.
    """
    return (math.floor(now / every_s) + 1) * every_s
