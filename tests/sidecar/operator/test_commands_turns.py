"""`turns`, `show`, `log` and `replay`, as the real command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING

import pytest
from support.sidecar import COMMAND, Sidecar
from support.users import NOBODY, root_only
from support.waiting import PATIENCE_S

from paliadin_sidecar.outbox import maintenance
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.records import ANY_TIME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.receiver import Receiver


def test_turns_lists_what_was_accepted(delivered: Sidecar) -> None:
    """The newest first; by state, by age, so many; a table or JSON."""
    rows = json.loads(delivered.typed("turns", "--json").stdout)
    found = [(r["turn_id"], r["revision"], r["state"]) for r in rows]
    assert found[0] == ("t2", 2, "delivered")
    # These two were written at once: which was accepted first is chance.
    assert sorted(found[1:]) == [("t1", 1, "delivered"), ("t2", 1, "delivered")]
    assert all(r["accepted_at"].endswith("Z") and r["settled_at"] for r in rows)
    assert json.loads(delivered.typed("turns", "--state", "dead", "--json").stdout) == []
    assert len(json.loads(delivered.typed("turns", "--limit", "1", "--json").stdout)) == 1
    assert len(json.loads(delivered.typed("turns", "--since", "1h", "--json").stdout)) == 3
    assert json.loads(delivered.typed("turns", "--since", "2100-01-01", "--json").stdout) == []
    table = delivered.typed("turns").stdout
    assert "t1" in table
    assert "aichat/paliadin" in table


@pytest.mark.parametrize(
    "since",
    [
        *("yesterday", "5", "-1h", "9999999999d", ""),
        *("9999-12-31T23:59-12:00", "0001-01-01T00:00+14:00"),  # which no clock shows
    ],
)
def test_a_time_that_is_none_is_wrong_usage(host: Sidecar, since: str) -> None:
    """Exit 2, and what would be right."""
    done = host.typed("turns", "--since", since)
    assert done.returncode == 2
    assert "12h" in done.stderr


@pytest.mark.parametrize("since", ["999999d", "999999999d"])
def test_an_age_beyond_all_dates(host: Sidecar, since: str) -> None:
    """Nothing is as old, so it is all that there is."""
    host.start()
    host.stop()
    done = host.command("turns", "--since", since, TZ="UTC")
    assert done.stdout == "No deliveries accepted since 1970-01-01 00:00:00+00:00\n"


def test_show_tells_one_turn_s_story(delivered: Sidecar) -> None:
    """Every event in order, by its own id; exit 1 for one that is not known."""
    (turn,) = json.loads(delivered.typed("show", "t2", "--json").stdout)
    assert [e["event"] for e in turn["events"]] == [
        "turn.accepted", "delivery.attempted", "delivery.delivered",
        "turn.revised", "delivery.attempted", "delivery.delivered",
    ]  # fmt: skip
    assert [d["state"] for d in turn["deliveries"]] == ["delivered", "delivered"]
    assert "turn.revised" in delivered.typed("show", "t2").stdout
    unknown = delivered.typed("show", "t9")
    assert unknown.returncode == 1
    assert "No turn 't9' is known" in unknown.stderr


def test_replay_sends_the_same_id_and_body_again(delivered: Sidecar, receiver: Receiver) -> None:
    """The newest revision of a turn goes again, also while the daemon runs."""
    done = delivered.typed("replay", "t2")
    assert done.stdout == "1 will be sent again\n"
    again = receiver.wait("t2", 3)
    assert (again.id, again.body) == (receiver.of("t2")[1].id, receiver.of("t2")[1].body)
    delivered.wait_event("delivery.replayed", turn_id="t2", revision=2)
    delivered.wait_event("delivery.delivered", count=2, turn_id="t2", revision=2)
    assert delivered.typed("replay", "--since", "1h").stdout == "2 will be sent again\n"
    receiver.wait("t1", 2)


def test_replay_without_a_daemon_waits_for_one(delivered: Sidecar, receiver: Receiver) -> None:
    """It says so, and the next start sends."""
    delivered.stop()
    done = delivered.typed("replay", "t1")
    assert done.stdout == "1 will be sent again as soon as the daemon runs\n"
    delivered.start()
    receiver.wait("t1", 2)


def test_replay_names_what_is_not_kept_any_more(delivered: Sidecar) -> None:
    """After a restore, somebody must know whose answers the receiver lacks for good."""
    delivered.stop()
    with Outbox(delivered.state / FILENAME) as outbox:
        outbox.transaction([partial(maintenance.purge_bodies, outbox, ANY_TIME)])
    done = delivered.typed("replay", "--since", "1h")
    assert done.returncode == 1
    assert re.match(r"2 cannot be \(t(1, t2|2, t1)\): bodies are let go", done.stderr)


def test_replay_says_what_it_cannot(delivered: Sidecar) -> None:
    """An unknown turn is exit 1, no choice or a mixed one is exit 2."""
    done = delivered.typed("replay", "t1", "t9")
    assert done.returncode == 1
    assert "t9: not known" in done.stderr
    twice = delivered.typed("replay", "t2", "t2")
    assert (twice.returncode, twice.stdout) == (0, "1 will be sent again\n")
    assert delivered.typed("replay").returncode == 2
    assert delivered.typed("replay", "t1", "--dead").returncode == 2


# --- log -----------------------------------------------------------------------------------------


@pytest.fixture
def answered(host: Sidecar, receiver: Receiver) -> Sidecar:
    """A running daemon that delivered t1 and t2."""
    host.start()
    for turn_id in ("t1", "t2"):
        host.answer(turn_id)
        host.wait_event("delivery.delivered", turn_id=turn_id)
    return host


def test_all_events_as_a_person_reads_them(answered: Sidecar) -> None:
    """Each line of the journal is one here, in its order; into a pipe without colours."""
    lines = answered.typed("log").stdout.splitlines()
    events = [line for line in answered.lines if line["event"] != "unreadable"]
    assert len(lines) == len(events)
    for line, event in zip(lines, events, strict=True):
        assert line.startswith(event["timestamp"])
        assert event["event"] in line
    assert "\x1b" not in "".join(lines)
    assert not any(line.startswith("{") for line in lines)


def test_one_turn_or_several(answered: Sidecar) -> None:
    """By a beginning as well; one that is unknown is exit 1, and never means all."""
    done = answered.typed("log", "t1")
    assert done.returncode == 0
    assert "turn_id=t1" in done.stdout
    assert "turn_id=t2" not in done.stdout
    assert len(answered.typed("log", "t2", "t1").stdout.splitlines()) == 6
    done = answered.typed("log", "t9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No turn 't9' is known" in done.stderr
    ambiguous = answered.typed("log", "t")
    assert (ambiguous.returncode, "t1, t2" in ambiguous.stderr) == (1, True)
    assert answered.typed("log", "--follow", "t").returncode == 1


def test_without_a_daemon(answered: Sidecar) -> None:
    """What happened is printed also where nothing happens any more."""
    answered.stop()
    assert "service.stopped" in answered.typed("log").stdout


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


def test_it_follows_until_ctrl_c(answered: Sidecar) -> None:
    """The last ones first, then what comes; Ctrl-C is a good end, without a word."""
    with following(answered) as (process, stream):
        before = read_until(stream, "delivery.delivered")
        assert len(before) <= 10
        answered.answer("t3")
        read_until(stream, "turn_id=t3")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors) == (0, "")


def test_it_follows_a_turn_that_has_not_come(answered: Sidecar) -> None:
    """Whoever has just asked waits by the id; others are not shown."""
    with following(answered, "t4") as (_, stream):
        answered.answer("t3")
        answered.wait_event("delivery.delivered", turn_id="t3")
        answered.answer("t4")
        assert not any("turn_id=t3" in line for line in read_until(stream, "delivery.delivered"))


def test_it_ends_with_its_reader(answered: Sidecar) -> None:
    """Also where nothing happens that it would have to print."""
    with following(answered) as (process, stream):
        read_until(stream, "delivery.delivered")
        stream.close()
        assert process.wait(PATIENCE_S) in {0, -signal.SIGPIPE}


def test_it_ends_with_the_outbox(answered: Sidecar) -> None:
    """One that was moved aside never changes again, and that is said."""
    answered.stop()
    with following(answered) as (process, stream):
        read_until(stream, "service.stopped")
        for path in answered.state.glob("outbox.db*"):
            path.rename(path.with_name(f"aside-{path.name}"))
        assert process.wait(PATIENCE_S) == 1
        assert process.stderr is not None
        assert "was moved aside" in process.stderr.read()


@root_only
def test_who_may_not_read_it_is_told_the_command(answered: Sidecar) -> None:
    """One sentence."""
    code = (
        "import sys; from paliadin_sidecar.operator.cli import main;"
        "sys.argv = ['paliadin-sidecar', 'log', '--follow']; main()"
    )
    ordinary = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    done = subprocess.run(
        [*ordinary, COMMAND.replace("paliadin-sidecar", "python"), "-c", code],
        env=answered.environ | {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""},
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
