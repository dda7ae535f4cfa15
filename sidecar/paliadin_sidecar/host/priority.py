"""Work that leaves the processor to whoever else wants it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

#: Of 0, which is usual, to 19: a daemon beside it gets three times as much.
_LOW = 5


def at_low_priority(work: Callable[[], T]) -> T:
    """Do this work in a thread of low priority, and return its result.

    On Linux a thread has a priority of its own, and this one ends with its work: a process without
    privileges could not take its own back.
    """
    with ThreadPoolExecutor(1, initializer=_lower) as pool:
        return pool.submit(work).result()


def _lower() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW)
