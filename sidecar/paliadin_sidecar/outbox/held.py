"""Reports a transaction that takes long, from a thread: the event loop waits for it, too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

#: A disk that needs longer for a flush is in trouble; one that is loaded does not get near it.
_LONG_S, _LOOK_S = 5.0, 3.0
#: One that needs as long each time answers between two flushes, and is well only after a while.
_WELL_S = 30.0


class HeldTransactions:
    """Looks at the outbox's transaction now and then; use it as a context manager.

    Args:
        began_at: when the transaction began that is under way, on the monotonic clock; None where
            there is none.
        on_change: called in the thread with why, once a transaction takes long, and with None once
            none has for a while.
    """

    def __init__(
        self, began_at: Callable[[], float | None], on_change: Callable[[str | None], None]
    ) -> None:
        self._began_at = began_at
        self._on_change = on_change
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="held", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # It may hang in the same disk, so it is not waited for.
        self._over.set()

    def _watch(self) -> None:
        held_at: float | None = None
        while not self._over.wait(_LOOK_S):
            now, began_at = time.monotonic(), self._began_at()
            if began_at is not None and now - began_at >= _LONG_S:
                if held_at is None:
                    self._on_change(f"its disk needs more than {_LONG_S:.0f} s to answer")
                held_at = now
            elif held_at is not None and now - held_at >= _WELL_S:
                held_at = None
                self._on_change(None)
