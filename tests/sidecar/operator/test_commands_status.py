"""`status`: what it finds wrong, and its exit code."""

from __future__ import annotations

import json
import random
import resource
import sqlite3
import time
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from support.receiver import Receiver, Reply
from support.waiting import until

from paliadin_sidecar.host.report import Reporter
from paliadin_sidecar.outbox import queries
from paliadin_sidecar.outbox.database import FILENAME, Outbox

if TYPE_CHECKING:
    from support.sidecar import Sidecar


def test_status_of_a_healthy_daemon(delivered: Sidecar) -> None:
    """Exit 0, and JSON with counts, pause, roots and no problem."""
    until("a scan", lambda: '"turn_files": 2' in delivered.typed("status", "--json").stdout)
    done = delivered.typed("status", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["alive"] is True
    assert found["problems"] == []
    assert found["counts"] == {
        "pending": 0, "delivered": 3, "dead": 0, "failed": 0, "superseded": 0, "history": 0,
    }  # fmt: skip
    assert found["oldest_undelivered_s"] is None
    assert found["paused"] is False
    assert [(r["backend"], r["state"], r["turn_files"]) for r in found["roots"]] == [
        ("aichat", "armed", 2),
        ("legacy", "armed", 0),
    ]
    for args in (["status"], ["status", "--quiet"]):
        assert delivered.typed(*args).returncode == 0
    assert delivered.typed("status", "--quiet").stdout == ""
    assert first_line(delivered) == "running: nothing is wrong"


def first_line(host: Sidecar) -> str:
    """Which of the known causes it is; in JSON the same."""
    line, *_ = host.typed("status").stdout.splitlines()
    cause = json.loads(host.typed("status", "--json").stdout)["cause"]
    assert line.partition(": ")[2] == (cause or "nothing is wrong")
    return line


def test_status_where_no_answer_can_be_kept(host: Sidecar, receiver: Receiver) -> None:
    """An answer waits for room: it is wrong at once, and no more when there is room."""
    host.start()
    assert host.process is not None
    unlimited = resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, (400_000, unlimited[1]))
    host.answer("t0", random.Random(0).randbytes(1_000_000).hex())  # no text that compresses
    host.wait_event("outbox.blocked")
    done = host.typed("status")
    assert done.returncode == 1
    assert "no answer is accepted, since the outbox cannot be written: " in done.stdout
    assert "LimitFSIZE=" in done.stdout
    assert first_line(host).startswith(
        "running: no answer is accepted, since the outbox cannot be written: "
    )
    resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, unlimited)
    receiver.wait("t0")
    until("a good status", lambda: host.typed("status").returncode == 0)


def test_status_while_events_cannot_be_had(host: Sidecar) -> None:
    """An answer is then only seen by the next scan."""
    host.start()
    Reporter(host.state, version("paliadin"), {}).problem("events", "OSError")
    done = host.typed("status")
    assert done.returncode == 1
    assert "file events cannot be had" in done.stdout


def test_status_of_a_daemon_that_has_not_scanned_yet(host: Sidecar) -> None:
    """A start that hangs is no good state."""
    host.start()
    Reporter(host.state, version("paliadin"), {})
    done = host.typed("status")
    assert done.returncode == 1
    assert "its first scan is not done yet" in done.stdout


def test_a_root_that_is_missing_for_long_is_wrong(host: Sidecar) -> None:
    """As the alert says; a directory that is made a moment later is not."""
    host.start()
    host.stop()
    root: dict[str, object] = {
        "backend": "aichat",
        "persona": "paliadin",
        "path": str(host.aichat),
        "why": "is gone",
    }
    root |= {"state": "missing", "turn_files": 0, "foreign_files": 0}
    root |= {"waiting": [], "waiting_files": 0}
    with Outbox(host.state / FILENAME) as outbox:
        for missing_s, wrong in ((500.0, False), (700.0, True)):
            roots = [root | {"since": time.time() - missing_s}]
            outbox.transaction([partial(queries.set_roots, outbox, roots)])
            said = json.loads(host.typed("status", "--json").stdout)["problems"]
            assert any("is gone" in problem for problem in said) == wrong


def test_each_time_of_a_root_is_for_a_program(host: Sidecar) -> None:
    """Its own, and that since which a file in it waits."""
    host.start()
    host.stop()
    waits = {"turn_id": "t1", "why": "unreadable", "detail": "EACCES", "since": 12.0}
    root = {
        "backend": "aichat", "persona": "paliadin", "path": str(host.aichat), "why": "",
        "state": "armed", "since": 5.0, "turn_files": 1, "foreign_files": 0,
        "waiting": [waits], "waiting_files": 1,
    }  # fmt: skip
    with Outbox(host.state / FILENAME) as outbox:
        outbox.transaction([partial(queries.set_roots, outbox, [root])])
    (found,) = json.loads(host.typed("status", "--json").stdout)["roots"]
    assert found["since"] == "1970-01-01T00:00:05.000Z"
    assert found["waiting"] == [waits | {"since": "1970-01-01T00:00:12.000Z"}]


def test_status_without_a_daemon_is_wrong(delivered: Sidecar) -> None:
    """Exit 1: it is also the probe."""
    delivered.stop()
    done = delivered.typed("status")
    assert done.returncode == 1
    assert "WRONG: the daemon does not run" in done.stdout
    assert first_line(delivered) == "not running: no unit of systemd runs it here"


def test_the_worst_comes_first(host: Sidecar) -> None:
    """What keeps answers from their way before what does not."""
    host.start()
    reporter = Reporter(host.state, version("paliadin"), {})
    reporter.ready()
    reporter.problem("metrics", "the port is taken")
    reporter.problem("outbox", "there is no room; PALIADIN_STATE_DIR")
    assert first_line(host) == (
        "running: no answer is accepted, since the outbox cannot be written: there is no room"
    )


def test_a_mistake_beside_a_daemon_with_a_problem(host: Sidecar) -> None:
    """What else is wrong is said with the commands for this very instance."""
    host.start()
    reporter = Reporter(host.state, version("paliadin"), {})
    reporter.ready()
    reporter.problem("metrics", "the port is taken")
    file = host.base / "own.env"
    file.touch()
    done = host.typed("check", "--env-file", str(file), PALIADIN_QUIET_S="x")
    assert done.returncode == 78
    assert f"; paliadin-sidecar check --env-file {file} says what mends it" in done.stderr


def test_a_directory_that_others_may_write(host: Sidecar) -> None:
    """Whose, and that nothing is taken from it."""
    host.aichat.chmod(0o777)
    host.start()
    line = first_line(host)
    assert line.startswith(f"running: no answers are taken from {host.aichat}, since ")
    assert "chmod" not in line


def test_an_overdue_turn_is_wrong(host: Sidecar, receiver: Receiver) -> None:
    """Undelivered for a quarter of an hour: `status` says so."""
    receiver.behaviour = lambda _: Reply(500)
    host.start()
    host.answer("t1")
    host.wait_event("delivery.retry_scheduled", turn_id="t1")
    host.stop()
    with sqlite3.connect(host.state / "outbox.db") as db:
        db.execute("UPDATE delivery SET accepted_at = accepted_at - 3600000")
    db.close()
    done = host.typed("status")
    assert first_line(host).startswith("not running: ")
    assert "WRONG: a turn has been undelivered for 1:00:" in done.stdout
    assert "oldest undelivered" in done.stdout


@pytest.mark.parametrize(("status", "says"), [(413, "client_max_body_size"), (500, "failed")])
def test_a_turn_that_does_not_get_through_is_wrong_at_once(
    host: Sidecar, receiver: Receiver, status: int, says: str
) -> None:
    """`status` and `turns` show the last answer and its likely cause, long before an alert."""
    receiver.behaviour = lambda request: Reply(204 if request.is_ping else status)
    host.start()
    host.answer("t1")
    host.wait_event("delivery.retry_scheduled", 3, turn_id="t1")
    done = host.typed("status")
    assert done.returncode == 1
    assert f"WRONG: 1 undelivered after several attempts, last answer {status}: " in done.stdout
    assert says in done.stdout
    (row,) = json.loads(host.typed("turns", "--json").stdout)
    assert (row["last_status"], row["last_error"], row["last_detail"]) == (status, None, None)
    head, line, *rest = host.typed("turns").stdout.splitlines()
    assert line[head.index("last answer") :].startswith(str(status))
    assert any(one.startswith(f"{status}: ") and says in one for one in rest)


def test_a_pause_is_told_with_its_cause(host: Sidecar, receiver: Receiver) -> None:
    """Since when, why, and what mends it; once, and not again for each turn."""
    receiver.behaviour = lambda _: Reply(301, {"location": "/elsewhere"})
    host.start()
    host.answer("t1")
    host.wait_event("receiver.paused")
    (problem,) = json.loads(host.typed("status", "--json").stdout)["problems"]
    assert "the receiver is not well since " in problem
    assert "(301), and turns wait until a ping is answered" in problem
    assert "redirects are not followed" in problem
    assert first_line(host).startswith(
        "running: turns wait for the receiver (301): it points to another address"
    )
