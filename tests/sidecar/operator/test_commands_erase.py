"""`erase`, as the real command beside the real daemon."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from support.receiver import Reply
from support.sidecar import COMMAND, TRAILER, Sidecar
from support.tokens import unsigned_token
from support.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from support.receiver import Receiver, Request

ANSWER, USER, ASKED = "geheime Antwort", "5f3c0a7e-planted-user", "asked-planted"


def ask(host: Sidecar, turn_id: str, user: str = USER) -> None:
    """A turn of a user, with its token."""
    token = unsigned_token(jti=f"{ASKED}-{turn_id}", sub=user)
    (host.aichat / f"{turn_id}.jwt").write_text(token)
    host.answer(turn_id, f"{ANSWER} {turn_id}")


@pytest.fixture
def asked(host: Sidecar, receiver: Receiver) -> Sidecar:
    """A running daemon that delivered t1 and t2 of one user, and t3 of another."""
    host.start()
    for turn_id, user in (("t1", USER), ("t2", USER), ("t3", "0b6f1f8e-another-user")):
        ask(host, turn_id, user)
        host.wait_event("delivery.delivered", turn_id=turn_id, user=user[:8])
    return host


def holds(host: Sidecar, text: str) -> bool:
    """Whether any file of the state directory has it."""
    paths = [path for path in host.state.rglob("*") if path.is_file()]
    return any(text.encode() in path.read_bytes() for path in paths)


def traces(host: Sidecar) -> list[str]:
    """What is left of t1 and t2, and of who asked."""
    planted = (f"{ANSWER} t1", f"{ANSWER} t2", USER, USER[:8], f"{ASKED}-t1", f"{ASKED}-t2")
    return [text for text in planted if holds(host, text)]


def test_a_person_leaves_no_trace_and_nothing_else_is_disturbed(
    asked: Sidecar, receiver: Receiver
) -> None:
    """While the daemon runs; it records who erased, and files that are there are not sent again."""
    assert len(traces(asked)) == 6
    done = asked.typed("erase", "--user", USER[:8], "--yes", SUDO_USER="")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 turns erased\n")
    for name in ("t1", "t2"):
        assert f"{asked.aichat}/{name}.txt" in done.stdout
    for place in ("the journal", "the receiver", "moved aside"):
        assert place in done.stdout
    assert traces(asked) == []
    assert holds(asked, f"{ASKED}-t3")
    said = asked.wait_event("turn.erased", turn_id="t1")
    assert said["by"] == pwd.getpwuid(os.geteuid()).pw_name
    assert (said["undelivered"], "user" in said) == (0, False)

    number = len(receiver.requests)
    (asked.aichat / "t1.txt").write_text(f"{ANSWER} t1, geändert{TRAILER}")
    os.utime(asked.aichat / "t2.txt")
    asked.kill()
    asked.start()
    (asked.aichat / "t2.txt").write_text(f"{ANSWER} t2, geändert{TRAILER}")
    ask(asked, "t4", "another")
    asked.wait_event("delivery.delivered", turn_id="t4")
    assert len(receiver.requests) == number + 1
    assert traces(asked) == []
    assert asked.stop() == 0


def test_it_asks_before_it_does(asked: Sidecar) -> None:
    """Where nobody answers, or says no, nothing is erased."""
    for typed, number in (("", 1), ("n\n", 1), ("y\n", 0)):
        done = subprocess.run(
            [COMMAND, "erase", "t1", "asked-planted-t2"],
            env=asked.environ,
            input=typed,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == number
        assert "Erase 2 turns (t1, t2)?" in done.stderr
        assert ("Nothing was erased; --yes does not ask" in done.stderr) == bool(number)
        assert bool(traces(asked)) == bool(number)


def test_what_it_cannot_find(asked: Sidecar) -> None:
    """Wrong usage is exit 2; an unknown turn or user, or one that is not one alone, is exit 1."""
    for wrong in ([], ["t1", "--user", USER]):
        assert asked.typed("erase", "--yes", *wrong).returncode == 2
    ask(asked, "t5", f"{USER}-2")
    asked.wait_event("delivery.delivered", turn_id="t5")
    for typed, why in (
        (["t9"], "No turn 't9' is known"),
        (["--user", "x"], "No turn of a user 'x' is known"),
        (["--user", ""], "No turn of a user '' is known"),
        (["--user", "5f3c"], "'5f3c' is the beginning of several users' ids, name more of one"),
    ):
        done = asked.typed("erase", "--yes", *typed)
        assert (done.returncode, done.stdout) == (1, "0 turns erased\n")
        assert why in done.stderr
    # One that is all of an id is that one's, and what is known of several is erased.
    assert asked.typed("erase", "--yes", "--user", USER).stdout.startswith("2 turns erased\n")
    done = asked.typed("erase", "--yes", "t3", "t9")
    assert (done.returncode, done.stdout[:14]) == (1, "1 turn erased\n")


def test_what_is_undelivered_is_refused(asked: Sidecar, receiver: Receiver) -> None:
    """The others are erased; with --undelivered it goes, and is never sent."""
    receiver.behaviour = lambda request: Reply(204 if request.is_ping else 503)
    ask(asked, "late")
    asked.wait_event("delivery.attempted", turn_id="late")
    done = asked.typed("erase", "--user", USER, "--yes")
    assert done.returncode == 1
    assert done.stdout.startswith("2 turns erased\n")
    assert "1 turn undelivered, and kept: late. With --undelivered" in done.stderr
    done = asked.typed("erase", "late", "--yes", "--undelivered")
    assert (done.returncode, done.stderr) == (0, "")
    receiver.behaviour = lambda _: Reply()
    ask(asked, "next", "another")
    asked.wait_event("delivery.delivered", turn_id="next")
    asked.wait_event("turn.erased", turn_id="late", undelivered=1)
    assert asked.typed("status").returncode == 0
    assert not receiver.of("late")[-1].is_ping
    until("nothing is left", lambda: not traces(asked) and not holds(asked, f"{ANSWER} late"))


def test_what_is_on_its_way_leaves_no_trace_either(asked: Sidecar, receiver: Receiver) -> None:
    """Its answer is awaited, and nothing of it is written down."""
    came, release = threading.Event(), threading.Event()

    def hold(_: Request) -> Reply:
        came.set()
        release.wait(PATIENCE_S)
        return Reply(400, {}, b"planted reason")

    receiver.behaviour = hold
    ask(asked, "t5")
    assert came.wait(PATIENCE_S)
    done = asked.typed("erase", "--user", USER, "--yes", "--undelivered")
    assert (done.returncode, done.stdout[:15]) == (0, "3 turns erased\n")
    receiver.behaviour = lambda _: Reply()
    release.set()
    ask(asked, "next", "another")
    asked.wait_event("delivery.delivered", turn_id="next")
    assert asked.stop() == 0
    assert traces(asked) == []
    assert not holds(asked, "planted reason")
    recorded = [each["event"] for each in asked.lines if each.get("turn_id") == "t5"]
    assert recorded[-1] == "turn.erased"
    assert not [name for name in recorded if name.startswith("delivery.")]


@pytest.mark.parametrize("name", ["before a commit", "after a commit", "before the log is emptied"])
def test_killed_in_the_middle_it_is_typed_again(asked: Sidecar, name: str) -> None:
    """Each turn is whole or erased, the same command does the rest, and the daemon goes on."""
    typed = ("erase", "--user", USER, "--yes")
    done = asked.command(*typed, PALIADIN_CRASH_AT=name)
    assert done.returncode == -signal.SIGKILL
    asked.typed(*typed)
    assert traces(asked) == []
    asked.wait_event("turn.erased", 2)
    ask(asked, "next", "another")
    asked.wait_event("delivery.delivered", turn_id="next")
    assert len(asked.events("turn.erased")) == 2
    assert holds(asked, f"{ASKED}-t3")
