"""`paliadin store` as a person and a deployment meet it: a real process, and a real PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.postgresql import PostgreSQL

COMMAND = str(Path(sys.executable).with_name("paliadin"))
TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = 'paliadin'"


def paliadin(*arguments: str, store: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [COMMAND, *arguments],
        env=os.environ | {"PALIADIN_STORE": store},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_init(database_server: PostgreSQL) -> None:
    """It makes the tables, says so, and does nothing when they are there."""
    name = database_server.new_database()
    url = database_server.url(name)
    status, said, err = paliadin("store", "init", store=url)
    assert (status, err) == (0, "")
    assert said == f"postgresql://{database_server.home}/{name}: the tables were made, version 1\n"
    status, said, err = paliadin("store", "init", store=url)
    assert (status, err) == (0, "")
    assert said.endswith(": the tables are there, version 1\n")
    assert database_server.sql(TABLES, name) == "5\n"


def test_sql(database_server: PostgreSQL) -> None:
    """What it prints makes the tables in one transaction, and `init` has nothing left to do."""
    name = database_server.new_database()
    status, sql, err = paliadin("store", "sql")
    assert (status, err) == (0, "")
    database_server.sql(f"BEGIN; {sql} ROLLBACK;", name)
    assert database_server.sql(TABLES, name) == "0\n"
    database_server.sql(f"BEGIN; {sql} COMMIT;", name)
    status, said, _ = paliadin("store", "init", store=database_server.url(name))
    assert (status, said.partition(": ")[2]) == (0, "the tables are there, version 1\n")


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("", "PALIADIN_STORE is not set"),
        ("/var/lib/paliad/inbox.sqlite3", "PALIADIN_STORE is no postgresql:// URL"),
        ("mysql://app:s3cr3t@db.example.org/app", "PALIADIN_STORE is no postgresql:// URL"),
        ("postgresql://app:s3cr3t@x@db.example.org/app", "write them as %40"),
    ],
)
def test_wrong_store(store: str, said: str) -> None:
    """A store that is none is the configuration's fault, and is not shown."""
    status, out, err = paliadin("store", "init", store=store)
    assert (status, out) == (78, "")
    assert said in err
    assert "s3cr3t" not in err
    assert "Traceback" not in err


def test_away() -> None:
    """A server that is not there is an error that names it, without the password."""
    store = "postgresql://app:s3cr3t@127.0.0.1:1/app"
    status, out, err = paliadin("store", "init", store=store)
    assert (status, out) == (1, "")
    assert "postgresql://127.0.0.1:1/app: " in err
    assert "refused" in err
    assert "s3cr3t" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("missing", ["psycopg", "psycopg_pool"])
def test_without_the_driver(missing: str) -> None:
    """Where the extra is not installed, a sentence says so, with the command that mends it."""
    code = (
        "import sys; sys.modules[sys.argv.pop(1)] = None\n"
        "from paliadin_client.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, missing, "store", "init"],
        env=os.environ | {"PALIADIN_STORE": "postgresql://app@127.0.0.1:1/app"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    assert f"needs the extra [postgresql], and {missing} is not installed" in done.stderr
    assert "requirements/postgresql.txt" in done.stderr
    assert "Traceback" not in done.stderr


def test_sql_needs_no_driver() -> None:
    """Whoever reviews migrations prints them anywhere."""
    code = "import sys; sys.modules['psycopg'] = None\nfrom paliadin_client.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "store", "sql"], capture_output=True, check=True
    )
    assert b"CREATE SCHEMA IF NOT EXISTS paliadin;" in done.stdout
