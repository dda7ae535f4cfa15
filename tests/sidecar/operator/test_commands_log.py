"""`log`: the journal for a person, as the real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest
from support.sidecar import COMMAND, Sidecar
from support.users import NOBODY, root_only
from support.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.receiver import Receiver


@pytest.fixture
def delivered(host: Sidecar, receiver: Receiver) -> Sidecar:
    """A running daemon that delivered t1 and t2."""
    host.start()
    for turn_id in ("t1", "t2"):
        host.answer(turn_id)
        host.wait_event("delivery.delivered", turn_id=turn_id)
    return host


def test_all_events_as_a_person_reads_them(delivered: Sidecar) -> None:
    """Each line of the journal is one here, in its order; into a pipe without colours."""
    lines = delivered.typed("log").stdout.splitlines()
    events = [line for line in delivered.lines if line["event"] != "unreadable"]
    assert len(lines) == len(events)
    for line, event in zip(lines, events, strict=True):
        assert line.startswith(event["timestamp"])
        assert event["event"] in line
    assert "\x1b" not in "".join(lines)
    assert not any(line.startswith("{") for line in lines)


def test_one_turn_or_several(delivered: Sidecar) -> None:
    """By a beginning as well; one that is unknown is exit 1, and never means all."""
    done = delivered.typed("log", "t1")
    assert done.returncode == 0
    assert "turn_id=t1" in done.stdout
    assert "turn_id=t2" not in done.stdout
    assert len(delivered.typed("log", "t2", "t1").stdout.splitlines()) == 6
    done = delivered.typed("log", "t9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No turn 't9' is known" in done.stderr
    ambiguous = delivered.typed("log", "t")
    assert (ambiguous.returncode, "t1, t2" in ambiguous.stderr) == (1, True)
    assert delivered.typed("log", "--follow", "t").returncode == 1


def test_without_a_daemon(delivered: Sidecar) -> None:
    """What happened is told also where nothing happens any more."""
    delivered.stop()
    assert "service.stopped" in delivered.typed("log").stdout


@contextmanager
def following(host: Sidecar, *args: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    with subprocess.Popen(
        [COMMAND, "log", "--follow", *args],
        env=host.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.kill()


def read_until(stream: IO[str], text: str) -> list[str]:
    found = []
    for line in stream:
        found.append(line)
        if text in line:
            return found
    raise AssertionError(f"no {text} in {found}")


def test_it_follows_until_ctrl_c(delivered: Sidecar) -> None:
    """The last ones first, then what comes; Ctrl-C is a good end, without a word."""
    with following(delivered) as (process, stream):
        before = read_until(stream, "delivery.delivered")
        assert len(before) <= 10
        delivered.answer("t3")
        read_until(stream, "turn_id=t3")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors) == (0, "")


def test_it_follows_a_turn_that_has_not_come(delivered: Sidecar) -> None:
    """Whoever has just asked waits by the id; others are not shown."""
    with following(delivered, "t4") as (_, stream):
        delivered.answer("t3")
        delivered.wait_event("delivery.delivered", turn_id="t3")
        delivered.answer("t4")
        assert not any("turn_id=t3" in line for line in read_until(stream, "delivery.delivered"))


def test_it_ends_with_its_reader(delivered: Sidecar) -> None:
    """Also where nothing happens that it would have to print."""
    with following(delivered) as (process, stream):
        read_until(stream, "delivery.delivered")
        stream.close()
        assert process.wait(PATIENCE_S) in {0, -signal.SIGPIPE}


def test_it_ends_with_the_outbox(delivered: Sidecar) -> None:
    """One that was moved aside never changes again, and that is said."""
    delivered.stop()
    with following(delivered) as (process, stream):
        read_until(stream, "service.stopped")
        for path in delivered.state.glob("outbox.db*"):
            path.rename(path.with_name(f"aside-{path.name}"))
        assert process.wait(PATIENCE_S) == 1
        assert process.stderr is not None
        assert "was moved aside" in process.stderr.read()


@root_only
def test_who_may_not_read_it_is_told_the_command(delivered: Sidecar) -> None:
    """One sentence."""
    code = (
        "import sys; from paliadin_sidecar.operator.cli import main;"
        "sys.argv = ['paliadin-sidecar', 'log', '--follow']; main()"
    )
    ordinary = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    done = subprocess.run(
        [*ordinary, COMMAND.replace("paliadin-sidecar", "python"), "-c", code],
        env=delivered.environ | {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""},
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 1
    assert "may not be read by this user. Try: sudo -u root paliadin-sidecar log" in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_answer_is_in_it(host: Sidecar, receiver: Receiver) -> None:
    """It prints what the journal has, and that has none."""
    host.start()
    host.answer("t1", "geheime Antwort")
    host.wait_event("delivery.delivered", turn_id="t1")
    assert "geheim" not in host.typed("log").stdout
    assert json.dumps(host.lines).count("geheim") == 0
    assert os.fspath(host.aichat) in host.typed("log").stdout
