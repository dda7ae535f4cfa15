"""How the process ends when it is asked to, whatever hangs in it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

#: What the interpreter gets to end: a name that does not resolve can hold a thread, and with it
#: the end of the process, for half a minute.
_INTERPRETER_S = 2.0


class Termination:
    """Waits for SIGTERM, SIGINT or SIGHUP, in a thread that is there from the start.

    The event loop may be held, by a disk that does not answer; so it is not what hears a signal.
    The first one asks the daemon to end and starts the clock. Who is late ends with exit code 0,
    as what is undelivered is kept; a second signal ends the process at once. A second SIGHUP does
    not: of one terminal that is closed the shell signals its jobs, and then the kernel does.

    To be made in the main thread before there are others, which inherit its mask of signals.

    Args:
        seconds: what the daemon gets to end by itself.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._code = 0
        self._on_signal: Callable[[], object] | None = None
        self._signals = {signal.SIGTERM, signal.SIGINT}
        # A terminal that was closed, unless whoever started us said that it does not matter.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._signals.add(signal.SIGHUP)
        # The alarm clock is the kernel's: at the end there may be no room for another thread.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals | {signal.SIGALRM})
        threading.Thread(target=self._wait, name="termination", daemon=True).start()

    def on_signal(self, call: Callable[[], object]) -> None:
        """From now on the first signal calls this, in another thread; before, each has its effect.

        Args:
            call: asks the daemon to end.
        """
        self._on_signal = call

    def done(self, code: int) -> None:
        """Nothing is left but the interpreter's own end, with this exit code."""
        self._code = code
        signal.setitimer(signal.ITIMER_REAL, _INTERPRETER_S)

    def _wait(self) -> None:
        is_ending = False
        while True:
            number = signal.sigwait(self._signals | {signal.SIGALRM})
            if number == signal.SIGALRM:
                os._exit(self._code)
            if is_ending and number == signal.SIGHUP:
                continue
            if is_ending:
                os._exit(128 + number)
            if self._on_signal is None:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
                os.kill(os.getpid(), number)
                signal.pthread_sigmask(signal.SIG_BLOCK, {number})
                continue
            is_ending = True
            signal.setitimer(signal.ITIMER_REAL, self._seconds)
            self._on_signal()
