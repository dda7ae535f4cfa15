"""Reports a transaction that takes long, from a thread: the event loop waits for it, too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

#: A disk that needs longer for a flush is in trouble; one that is loaded does not get near it.
_LONG_S, _LOOK_S = 10.0, 5.0


class HeldTransactions:
    """Looks at the outbox's transaction now and then; use it as a context manager.

    Args:
        began_at: when the transaction began that is under way, on the monotonic clock; None where
            there is none.
        on_change: called in the thread with why, once for each transaction that takes long, and
            with None when it has ended.
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
        is_held = False
        while not self._over.wait(_LOOK_S):
            since = self._began_at()
            was_held, is_held = is_held, since is not None and time.monotonic() - since >= _LONG_S
            if is_held and not was_held:
                self._on_change(f"its disk has not answered for {_LONG_S:.0f} s")
            elif was_held and not is_held:
                self._on_change(None)
