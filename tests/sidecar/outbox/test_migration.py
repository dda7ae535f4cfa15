"""Steps between versions of the schema, tried with one that was made up for it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from paliadin_sidecar.errors import Older, OutboxError
from paliadin_sidecar.outbox import acceptance, queue
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.records import Arrival, TurnKey

if TYPE_CHECKING:
    from pathlib import Path

    from support.sidecar import Sidecar

#: The next version of the schema has a column and an index more.
STEP = """
ALTER TABLE turn ADD COLUMN note TEXT;
CREATE INDEX turn_by_note ON turn (note);
UPDATE turn SET note = 'from version 1';
"""
#: Run before a program, which is then the next version.
PATCH = f"""
from paliadin_sidecar.outbox.database import Outbox
Outbox.migrations = ({STEP!r},)
"""


class Next(Outbox):
    """The outbox of the program's next version."""

    migrations = (STEP,)


def accept(path: Path, turn_id: str) -> None:
    """Make an outbox of version 1, with an answer that waits."""
    data = b"Yes."
    arrival = Arrival(
        TurnKey("aichat", "paliadin", turn_id),
        "1:4:0",
        datetime.now(UTC),
        len(data),
        data=data,
        sha256=sha256(data).hexdigest(),
    )
    with Outbox(path, create=True) as outbox:
        outbox.transaction([lambda: acceptance.accept(outbox, arrival)])


def content(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [*db.iterdump(), str(db.execute("PRAGMA user_version").fetchone())]


def test_an_old_outbox_is_migrated(tmp_path: Path) -> None:
    """A new version of the program takes over what the old one accepted."""
    path = tmp_path / FILENAME
    accept(path, "pending")
    with Next(path, create=True) as outbox:
        assert outbox.pragma("user_version") == 2
        ((due,), _) = queue.fetch_due(outbox, (), limit=9, max_retries=9)
    assert json.loads(due.body)["data"]["response"] == "Yes."
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT note FROM turn").fetchone() == ("from version 1",)
    with Next(path):
        pass  # which a command may open now


def test_only_the_daemon_migrates(host: Sidecar) -> None:
    """A command that comes before its restart says so, and changes nothing under the old one."""
    host.state.mkdir(mode=0o700)
    path = host.state / FILENAME
    accept(path, "t")
    before = content(path)
    with pytest.raises(Older, match="is of version 1, this program's is 2"):
        Next(path)
    program = f"{PATCH}\nfrom paliadin_sidecar.operator.cli import main\nmain(['status'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=host.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "systemctl restart paliadin-sidecar" in done.stderr
    assert content(path) == before


def test_a_step_that_fails_leaves_the_old_version_whole(tmp_path: Path) -> None:
    """All of a step takes effect, or nothing of it."""
    path = tmp_path / FILENAME
    accept(path, "t")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE turn_by_note (in_the_way)")
    before = content(path)
    with pytest.raises(OutboxError, match="SQLITE_ERROR"):
        Next(path, create=True)
    assert content(path) == before


#: Opens argv[1], and is killed at its statement number argv[2].
KILLED = f"""
{PATCH}
import os, signal, sqlite3, sys
from paliadin_sidecar.outbox.database import Outbox

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


@pytest.mark.slow
@pytest.mark.timeout(600)  # a process for each statement
def test_killed_at_any_statement_it_is_one_version_or_the_other(tmp_path: Path) -> None:
    """At the first, second, third … statement, until it comes through: never in between."""
    accept(tmp_path / "1.db", "t")
    shutil.copy(tmp_path / "1.db", tmp_path / "2.db")
    Next(tmp_path / "2.db", create=True).close()
    old, new = content(tmp_path / "1.db"), content(tmp_path / "2.db")
    assert old != new
    for number in range(1, 100):
        path = tmp_path / f"killed-{number}.db"
        shutil.copy(tmp_path / "1.db", path)
        done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(number)], check=False)
        if done.returncode == 0:
            break
        assert content(path) in (old, new)
        Next(path, create=True).close()
        assert content(path) == new
    assert number > 5
    assert content(path) == new
