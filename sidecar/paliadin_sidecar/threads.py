"""Threads that are there before they are needed, so that no limit of threads is met later."""

from __future__ import annotations

import os
import threading
import time

__all__ = ["Deadline"]

#: What the interpreter gets to end: a name that does not resolve can hold a thread, and with it
#: the end of the process, for half a minute.
_INTERPRETER_S = 2.0


class Deadline:
    """Ends the process some time after it was told to end, whatever still hangs in it.

    Its thread waits from the start: at the end there may be no room for another one, and what
    hangs may be the event loop.

    Args:
        seconds: what the process gets to end by itself.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun, self._done = threading.Event(), threading.Event()
        self._code = 0
        threading.Thread(target=self._watch, name="deadline", daemon=True).start()

    def begin(self) -> None:
        """From now on the seconds count; who is late ends with exit code 0."""
        self._begun.set()

    def done(self, code: int) -> None:
        """Nothing is left but the interpreter's own end, with this exit code."""
        self._code = code
        self._done.set()
        self._begun.set()

    def _watch(self) -> None:
        self._begun.wait()
        if self._done.wait(self._seconds):
            time.sleep(_INTERPRETER_S)
        os._exit(self._code)
