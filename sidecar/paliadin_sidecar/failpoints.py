"""Failpoints: named places at which a test ends the process as the loss of power would."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count


def failpoint(name: str) -> None:
    """A place where the process may end. Outside tests, a call that does nothing."""
    if on_failpoint is not None:
        on_failpoint(name)


def _die_at(wanted: str) -> Callable[[str], None]:
    numbers = count(1)  # over all threads

    def die(name: str) -> None:
        number = str(next(numbers))
        if wanted in {number, name}:
            os.write(2, f"crash point {number}: {name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    return die


_at = os.environ.get("PALIADIN_CRASH_AT")
#: What a failpoint calls: with `PALIADIN_CRASH_AT`, it dies by SIGKILL at the failpoint of that
#: number or name.
on_failpoint: Callable[[str], None] | None = _die_at(_at) if _at else None
