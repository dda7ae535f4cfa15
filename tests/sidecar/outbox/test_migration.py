"""Outboxes of earlier versions, as files that they left: migrated, whole, and still delivering."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from paliadin_sidecar.errors import Older, OutboxError
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.outbox import Outbox
from paliadin_sidecar.outbox.statements import SCHEMA_VERSION

if TYPE_CHECKING:
    from support.receiver import Receiver
    from support.sidecar import Sidecar

FIXTURES = Path(__file__).parents[2] / "fixtures"
OLD = range(1, SCHEMA_VERSION)


def restore(version: int, path: Path) -> Path:
    """An outbox as this version left it."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript((FIXTURES / f"outbox-{version}.sql").read_text())
    return path


def described(path: Path) -> tuple[object, ...]:
    """What the schema comes to: columns and indexes, whatever text made them."""
    with closing(sqlite3.connect(path)) as db:
        names = [r[0] for r in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        indexes = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index'")
        return (
            db.execute("PRAGMA user_version").fetchone(),
            {name: db.execute(f"PRAGMA table_xinfo({name})").fetchall() for name in names},
            {name: " ".join(sql.split()) for name, sql in indexes if sql},
        )


def content(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def test_every_released_version_has_a_fixture() -> None:
    """A step without one was never tried."""
    assert [f.name for f in sorted(FIXTURES.glob("*.sql"))] == [f"outbox-{n}.sql" for n in OLD]


@pytest.mark.parametrize("version", OLD)
def test_the_schema_is_that_of_a_new_one(tmp_path: Path, version: int) -> None:
    """Migrated or made now, it is the same."""
    Outbox(restore(version, tmp_path / FILENAME), create=True).close()
    Outbox(tmp_path / "new.db", create=True).close()
    assert described(tmp_path / FILENAME) == described(tmp_path / "new.db")


@pytest.mark.parametrize("version", OLD)
def test_an_old_outbox_still_delivers(host: Sidecar, receiver: Receiver, version: int) -> None:
    """What was pending goes out, what is dead can be replayed, what was delivered stays so."""
    host.state.mkdir(mode=0o700)
    path = restore(version, host.state / FILENAME)
    with closing(sqlite3.connect(path)) as db:
        kept = {row[0] for row in db.execute("SELECT bytes FROM body")}
    host.start()
    pending = receiver.wait("pending")
    assert pending.body in kept
    assert pending.json["data"]["response"].startswith("noch nicht zugestellt")
    assert pending.id.startswith("legacy_paliadin_pending_1_")
    assert receiver.wait("revised").json["data"]["revision"] == 2
    assert host.command("replay", "--dead").returncode == 0
    receiver.wait("dead")
    host.wait_event("delivery.delivered", turn_id="dead")
    (turn,) = json.loads(host.command("show", "submitted", "--json").stdout)
    assert [event["event"] for event in turn["events"]] == [
        "turn.accepted", "delivery.attempted", "delivery.delivered",
    ]  # fmt: skip
    assert host.stop() == 0
    assert {request.json["data"]["turn_id"] for request in receiver.turns} == {
        "pending", "revised", "dead",
    }  # fmt: skip
    receiver.verify_all(host.secret)


@pytest.mark.parametrize("version", OLD)
def test_what_waits_knows_its_root(tmp_path: Path, version: int) -> None:
    """Roots take turns at what an earlier version left, and at what is sent again of it."""
    with Outbox(restore(version, tmp_path / FILENAME), create=True) as outbox:
        outbox.replay(dead=True)
        due, _ = outbox.due((), places=9, again=9)
    assert {one.webhook_id.split("_")[2]: one.root for one in due} == {
        "pending": "legacy/paliadin",
        "revised": "aichat/paliadin",
        "dead": "legacy/paliadin",
    }


def test_only_the_daemon_migrates(host: Sidecar) -> None:
    """A command that comes before its restart says so, and changes nothing under the old one."""
    host.state.mkdir(mode=0o700)
    path = restore(1, host.state / FILENAME)
    before = content(path)
    done = host.command("status")
    assert done.returncode == 1
    assert "systemctl restart paliadin-sidecar" in done.stderr
    with pytest.raises(Older, match="is of version 1, this program's is"):
        Outbox(path)
    assert content(path) == before


def test_a_step_that_fails_leaves_the_old_version_whole(tmp_path: Path) -> None:
    """All of a step or nothing of it."""
    path = restore(1, tmp_path / FILENAME)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE event_of_service (in_the_way)")  # what the last statement makes
    before = content(path), described(path)
    with pytest.raises(OutboxError, match="SQLITE_ERROR"):
        Outbox(path, create=True)
    assert (content(path), described(path)) == before


#: Migrates argv[1], and is killed at its statement number argv[2].
KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
from paliadin_sidecar.outbox.outbox import Outbox

left = int(sys.argv[2])
class Mortal(sqlite3.Connection):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.set_trace_callback(self.step)
    def step(self, statement):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

connect = sqlite3.connect
sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Mortal, **kwargs)
Outbox(Path(sys.argv[1]), create=True).close()
"""


@pytest.mark.timeout(600)  # a process for each statement
@pytest.mark.parametrize("version", OLD)
def test_killed_at_any_statement_it_is_one_version_or_the_other(
    tmp_path: Path, version: int
) -> None:
    """At the first, second, third … statement, until it comes through: never in between."""
    for n in range(version, SCHEMA_VERSION):
        restore(n, tmp_path / f"version-{n}.db")
    versions = [described(tmp_path / f"version-{n}.db") for n in range(version, SCHEMA_VERSION)]
    Outbox(tmp_path / "new.db", create=True).close()
    after = described(tmp_path / "new.db")
    for number in range(1, 100):
        path = tmp_path / f"{number}.db"
        shutil.copy(tmp_path / f"version-{version}.db", path)
        done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(number)], check=False)
        if done.returncode == 0:
            break
        assert described(path) in (*versions, after)
        Outbox(path, create=True).close()
        assert described(path) == after
    assert number > 5
    assert described(path) == after
