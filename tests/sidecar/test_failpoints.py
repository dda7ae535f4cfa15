"""Failpoints: they end the process where they are set to, and are nothing otherwise."""

from __future__ import annotations

import signal
import subprocess
import sys
from itertools import starmap
from typing import TYPE_CHECKING

import pytest
from support.receiver import Reply
from support.slow import slow

if TYPE_CHECKING:
    from support.receiver import Receiver
    from support.sidecar import Sidecar

_CALLS = (
    "from paliadin_sidecar.failpoints import failpoint; [failpoint(n) or print(n) for n in 'abc']"
)


def call(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _CALLS]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_it_ends_at_the_point_of_that_number() -> None:
    """By SIGKILL, once it has said which."""
    done = call({"PALIADIN_CRASH_AT": "2"})
    assert done.returncode == -signal.SIGKILL
    assert done.stderr == "crash point 2: b\n"


@pytest.mark.parametrize("environ", [{}, {"PALIADIN_CRASH_AT": ""}, {"PALIADIN_CRASH_AT": "4"}])
def test_otherwise_nothing_happens(environ: dict[str, str]) -> None:
    """Switched off, or with a number that is never reached."""
    done = call(environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\nb\nc\n", "")


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("after a commit", False),
        ("after an attempt", True),
        ("before an acknowledgement is recorded", True),
        ("after a line was printed", None),
        *starmap(
            slow,
            [
                ("before a commit", False),
                ("before an attempt", False),
                ("before a ping", True),
                ("after a ping", True),
                ("after an acknowledgement was recorded", False),
                ("before a line is printed", None),
            ],
        ),
    ],
)
def test_a_daemon_that_dies_there_loses_nothing(
    host: Sidecar, receiver: Receiver, name: str, *, again: bool | None
) -> None:
    """What the receiver has and the outbox does not know goes out again, the same.

    A line is printed beside the attempt, which may have been made by then: None.
    """
    if "ping" in name:
        # It asks whose fault the first answer was.
        receiver.behaviour = lambda _: Reply(204 if receiver.requests else 404)
    host.environ["PALIADIN_CRASH_AT"] = name
    host.answer("t1")
    host.start(wait=False)
    assert host.wait() == -signal.SIGKILL
    assert name.encode() in host.output
    del host.environ["PALIADIN_CRASH_AT"]
    host.start()
    host.wait_event("delivery.delivered", turn_id="t1")
    assert host.stop() == 0
    assert len({(request.id, request.body) for request in receiver.turns}) == 1
    assert len(receiver.turns) in ({1, 2} if again is None else {1 + again})
