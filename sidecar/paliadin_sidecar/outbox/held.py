"""Reports a transaction that takes long, from a thread: the event loop waits for it, too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: A disk that needs longer for a flush is in trouble; one that is loaded does not get near it.
_LONG_S, _LOOK_S = 5.0, 3.0
#: One that needs as long each time answers between two flushes, and is well only after a while.
_WELL_S = 30.0


@contextmanager
def held_transactions_reported(
    began_at: Callable[[], float | None], on_change: Callable[[str | None], None]
) -> Iterator[None]:
    """Look at the outbox's transaction now and then meanwhile.

    Args:
        began_at: when the transaction began that is under way, on the monotonic clock; None where
            there is none.
        on_change: called in the thread with why, once a transaction takes long, and with None once
            none has for a while.
    """
    over = threading.Event()

    def watch() -> None:
        held_at: float | None = None
        while not over.wait(_LOOK_S):
            now, began = time.monotonic(), began_at()
            if began is not None and now - began >= _LONG_S:
                if held_at is None:
                    on_change(f"its disk needs more than {_LONG_S:.0f} s to answer")
                held_at = now
            elif held_at is not None and now - held_at >= _WELL_S:
                held_at = None
                on_change(None)

    threading.Thread(target=watch, name="held", daemon=True).start()
    try:
        yield
    finally:
        over.set()  # the thread may hang in the same disk, so it is not waited for
