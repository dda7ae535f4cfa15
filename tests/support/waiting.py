"""Waiting for something to become true, as long as it takes and no longer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: A test that waits this long has failed; one that passes never gets near it.
PATIENCE_S = 30.0


def until(what: str, condition: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """The first true value of `condition`, which nothing announces."""
    end = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {patience_s} s for {what}"
        time.sleep(0.005)
    return value
