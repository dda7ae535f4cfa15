"""The other commands, as processes, beside a daemon or without one."""

from __future__ import annotations

import json
import os
import random
import resource
import sqlite3
import subprocess
import time
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from support.receiver import Receiver, Reply, verifying
from support.sidecar import COMMAND, Sidecar, new_secret
from support.users import NOBODY, root_only
from support.waiting import until

from paliadin_sidecar.host.report import Reporter
from paliadin_sidecar.operator.checks import receiver as receiver_check
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.outbox import Outbox

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def delivered(host: Sidecar, receiver: Receiver) -> Sidecar:
    """A running daemon that delivered t1, and t2 twice."""
    host.start()
    host.answer("t1", "eins")
    host.answer("t2", "zwei")
    host.wait_event("delivery.delivered", turn_id="t2", revision=1)
    host.answer("t2", "drei")
    host.wait_event("delivery.delivered", turn_id="t2", revision=2)
    host.wait_event("delivery.delivered", turn_id="t1")
    return host


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
    assert "running" in delivered.typed("status").stdout


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


def test_what_was_corrected_without_a_restart_is_named(host: Sidecar) -> None:
    """The variable, and never its value: a URL, a secret, and nothing where nothing changed."""
    host.start()
    assert '"daemon",\n    "message": "runs' in host.typed("check", "--json").stdout
    for name, value in {
        "PALIADIN_CALLBACK_URL": "http://127.0.0.1:9/another",
        "PALIADIN_CALLBACK_SECRET": f"{new_secret()} {host.secret}",
        "PALIADIN_QUIET_S": "9",
    }.items():
        done = host.typed("check", **{name: value})
        assert done.returncode == 1
        assert f"still runs with another value of {name}: restart it" in done.stdout
        assert "whsec_" not in done.stdout


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
    with Outbox(host.state / FILENAME) as outbox:
        for missing_s, wrong in ((500.0, False), (700.0, True)):
            roots = [root | {"since": time.time() - missing_s}]
            outbox.transaction([partial(outbox.set_roots, roots)])
            said = json.loads(host.typed("status", "--json").stdout)["problems"]
            assert any("is gone" in problem for problem in said) == wrong


def test_check_has_what_the_unit_s_drop_ins_say(host: Sidecar, tmp_path: Path) -> None:
    """Else each drop-in would look like a correction without a restart."""
    files = [tmp_path / "sidecar.env", tmp_path / "drop-in.env"]
    files[0].write_text("PALIADIN_QUIET_S=4\nPALIADIN_RESCAN_S=3\n")
    files[1].write_text("PALIADIN_RESCAN_S=5\n")
    listed = "".join(f"EnvironmentFiles={path} (ignore_errors=no)\\n" for path in files)
    (tmp_path / "systemctl").write_text(
        "#!/bin/sh\nprintf 'LoadState=loaded\\nActiveState=active\\n"
        f"Environment=PALIADIN_EVENTS=inotify PALIADIN_QUIET_S=9\\n{listed}'\n"
    )
    (tmp_path / "systemctl").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for name in ("PALIADIN_QUIET_S", "PALIADIN_RESCAN_S"):
        del host.environ[name]
    daemon_s = {"QUIET_S": "4", "RESCAN_S": "5", "EVENTS": "inotify"}
    before = dict(host.environ)
    host.environ |= {f"PALIADIN_{name}": value for name, value in daemon_s.items()}
    host.start()
    host.environ = before
    done = host.typed("check", f"--env-file={files[0]}", PATH=path)
    assert "still runs" not in done.stdout
    files[1].write_text("PALIADIN_RESCAN_S=6\n")
    done = host.typed("check", f"--env-file={files[0]}", PATH=path)
    assert "another value of PALIADIN_RESCAN_S: systemctl restart state.service" in done.stdout


def test_status_without_a_daemon_is_wrong(delivered: Sidecar) -> None:
    """Exit 1: it is also the probe."""
    delivered.stop()
    done = delivered.typed("status")
    assert done.returncode == 1
    assert "WRONG: the daemon does not run" in done.stdout


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


@pytest.mark.parametrize("since", ["yesterday", "5", "-1h", "9999999999d", ""])
def test_a_time_that_is_none_is_wrong_usage(host: Sidecar, since: str) -> None:
    """Exit 2, and what would be right."""
    done = host.typed("turns", "--since", since)
    assert done.returncode == 2
    assert "12h" in done.stderr


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
    assert delivered.typed("replay", "--since", "1h").stdout == "2 will be sent again\n"
    receiver.wait("t1", 2)


def test_replay_without_a_daemon_waits_for_one(delivered: Sidecar, receiver: Receiver) -> None:
    """It says so, and the next start sends."""
    delivered.stop()
    done = delivered.typed("replay", "t1")
    assert done.stdout == "1 will be sent again as soon as the daemon runs\n"
    delivered.start()
    receiver.wait("t1", 2)


def test_replay_says_what_it_cannot(delivered: Sidecar) -> None:
    """An unknown turn is exit 1, no choice or a mixed one is exit 2."""
    done = delivered.typed("replay", "t1", "t9")
    assert done.returncode == 1
    assert "t9: not known" in done.stderr
    twice = delivered.typed("replay", "t2", "t2")
    assert (twice.returncode, twice.stdout) == (0, "1 will be sent again\n")
    assert delivered.typed("replay").returncode == 2
    assert delivered.typed("replay", "t1", "--dead").returncode == 2


def test_commands_without_an_outbox_say_where_they_looked(host: Sidecar) -> None:
    """Only `run` makes one."""
    for command in (["status"], ["turns"], ["show", "t1"], ["replay", "t1"]):
        done = host.typed(*command)
        assert done.returncode == 1
        assert f"There is no outbox in {host.state}" in done.stderr
    assert not host.state.exists()


def test_the_commands_read_a_file_of_variables(delivered: Sidecar, tmp_path: Path) -> None:
    """--env-file fills in what the environment does not say."""
    path = tmp_path / "sidecar.env"
    path.touch(mode=0o600)  # it holds the secret
    path.write_text(
        "# a comment\n"
        + "".join(f'{k}="{v}"\n' for k, v in delivered.environ.items() if "PALIADIN" in k)
    )
    bare = {"PATH": delivered.environ["PATH"]}

    def command(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *args], env=bare, capture_output=True, text=True, check=False
        )

    assert command("status", "--env-file", str(path)).returncode == 0
    assert command("check", "--env-file", str(path)).returncode == 0
    missing = command("status", "--env-file", str(tmp_path / "none"))
    assert missing.returncode == 78
    assert "does not exist" in missing.stderr


def test_check_of_a_good_host(host: Sidecar, receiver: Receiver) -> None:
    """Exit 0; --ping sends a signed ping and says what came back."""
    receiver.behaviour = verifying(host.secret)
    done = host.typed("check", "--ping", "--json")
    findings = {f["subject"]: f for f in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert findings["ping"]["message"].startswith("204 after")
    assert receiver.pings[0].json["data"] == {"host": "mriver"}
    assert "can be trusted" in host.typed("check").stdout


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(401), "is PALIADIN_CALLBACK_SECRET the same"),
        (Reply(404), "no such route"),
        (Reply(500), "status 500"),
        (Reply(how="reset"), "reset"),
        (Reply(204, {"date": "Sun, 22 Nov 2020 08:00:00 GMT"}), "timedatectl set-ntp true"),
    ],
)
def test_check_says_what_the_receiver_s_answer_means(
    host: Sidecar, receiver: Receiver, reply: Reply, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1 and what mends it."""
    monkeypatch.setattr(receiver_check, "_PROBE_S", 0.2)
    receiver.behaviour = lambda _: reply
    done = host.typed("check", "--ping")
    assert done.returncode == 1
    assert says in " ".join(done.stdout.split())


def test_check_of_a_bad_host(host: Sidecar, receiver: Receiver) -> None:
    """Each finding says what is wrong and what mends it."""
    host.aichat.chmod(0o777)
    host.legacy.rmdir()
    host.state.mkdir()
    host.state.chmod(0o755)
    done = host.typed("check")
    text = " ".join(done.stdout.split())
    assert done.returncode == 1
    assert f"chmod o-w {host.aichat}" in text
    assert f"{host.legacy} does not exist" in text
    assert f"chmod 700 {host.state}" in text


def test_check_of_a_bad_configuration(host: Sidecar) -> None:
    """All errors at once, exit 78."""
    done = host.typed("check", PALIADIN_CALLBACK_URL="", PALIADIN_QUIET_S="x")
    assert done.returncode == 78
    assert "PALIADIN_CALLBACK_URL is not set" in done.stderr
    assert "PALIADIN_QUIET_S='x'" in done.stderr


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
    assert "WRONG: a turn has been undelivered for 1:00:" in done.stdout
    assert "oldest undelivered" in done.stdout


@root_only
def test_who_may_not_read_is_told_who_may(host: Sidecar) -> None:
    """The line to type stands in the message."""
    host.start()
    host.stop()
    code = (
        "import sys; from paliadin_sidecar.operator.cli import main;"
        "sys.argv[0] = 'paliadin-sidecar'; main()"
    )
    ordinary = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    for command in ("status", "turns"):
        done = subprocess.run(
            [*ordinary, COMMAND.replace("paliadin-sidecar", "python"), "-c", code, command],
            env=host.environ | {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""},
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert "may not be read by this user" in done.stderr
        assert f"Try: sudo -u root paliadin-sidecar {command}" in done.stderr


def test_help_and_version_need_no_configuration() -> None:
    """Also for a person who has just installed it."""
    for args in (["--help"], ["--version"], ["replay", "-h"]):
        done = subprocess.run([COMMAND, *args], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert done.stdout


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
