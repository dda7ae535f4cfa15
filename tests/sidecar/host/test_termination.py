"""How a process that is asked to end does so, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from support.waiting import PATIENCE_S

#: Hangs for ever in a call of the C library, as in the flush of a disk that does not answer.
_PROGRAM = """
import ctypes, signal, sys
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # whatever whoever started the tests had
if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
from paliadin_sidecar.host.termination import Termination
termination = Termination(float(sys.argv[1]))
if "early" not in sys.argv:
    termination.on_signal(lambda: print("signalled", flush=True))
if "done" in sys.argv:
    termination.done(3)
print("waits", flush=True)
ctypes.CDLL(None).pause()
"""


def start(*how: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    return process


def end(process: subprocess.Popen[str]) -> tuple[str, int]:
    output, _ = process.communicate(timeout=PATIENCE_S)
    return output, process.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_main_thread_that_hangs_does_not_hold_the_end(number: signal.Signals) -> None:
    """The signal is heard all the same; when the time is up, it ends as if nothing was wrong."""
    process = start("0.05")
    process.send_signal(number)
    assert end(process) == ("signalled\n", 0)


def test_a_second_signal_ends_it_at_once() -> None:
    """Whatever it is at."""
    process = start("600")
    assert process.stdout is not None
    process.terminate()
    assert process.stdout.readline() == "signalled\n"
    process.send_signal(signal.SIGINT)
    assert end(process) == ("", 128 + signal.SIGINT)


def test_a_second_hangup_is_no_second_wish() -> None:
    """Of a terminal that is closed the shell signals its jobs, and then the kernel does."""
    process = start("600")
    assert process.stdout is not None
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "signalled\n"
    process.send_signal(signal.SIGHUP)
    process.terminate()
    assert end(process) == ("", 128 + signal.SIGTERM)


def test_after_its_work_nothing_holds_it_for_long() -> None:
    """What hangs then is a thread of the interpreter's; its exit code is what it was to be."""
    assert end(start("600", "done")) == ("", 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_before_anybody_wants_to_know_a_signal_has_its_usual_effect(
    number: signal.Signals,
) -> None:
    """Nothing has begun that needs an end."""
    process = start("600", "early")
    process.send_signal(number)
    assert end(process) == ("", -number)


def test_a_hangup_that_was_to_be_ignored_is() -> None:
    """Under nohup, a terminal that is closed means nothing."""
    process = start("0.05", "nohup")
    process.send_signal(signal.SIGHUP)
    process.terminate()
    assert end(process) == ("signalled\n", 0)
