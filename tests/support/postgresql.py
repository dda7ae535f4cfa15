"""A real PostgreSQL, where there is one."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def postgresql() -> Iterator[Callable[..., str]]:
    """A PostgreSQL of our own, on a socket of its own; runs SQL and returns its rows."""
    # Debian keeps the server's programs off the PATH.
    places = [os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    initdb, pg_ctl, client = (
        shutil.which(each, path=os.pathsep.join(places)) for each in ("initdb", "pg_ctl", "psql")
    )
    if not (initdb and pg_ctl and client):
        # In CI there must be one, or nobody would see that this is never run.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no PostgreSQL here")
    # It refuses to run as root, which tests in a container are.
    account = pwd.getpwnam("nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name)
    # Not below pytest's directories, which are root's alone.
    with tempfile.TemporaryDirectory(prefix="pg-") as directory:
        home = Path(directory)
        os.chown(home, account.pw_uid, account.pw_gid)
        yield from _serve(home, account, initdb, pg_ctl, client)


def _serve(
    home: Path, account: pwd.struct_passwd, initdb: str, pg_ctl: str, client: str
) -> Iterator[Callable[..., str]]:
    def run(*argv: str, sql: str | None = None) -> str:
        return subprocess.run(
            argv,
            input=sql,
            text=True,
            check=True,
            cwd=home,
            user=account.pw_uid,
            group=account.pw_gid,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ).stdout

    data = str(home / "data")
    run(initdb, "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--locale=C")
    options = f"-k {home} -c listen_addresses='' -c fsync=off"
    run(pg_ctl, "-D", data, "-o", options, "-l", str(home / "log"), "-w", "start")

    def sql(text: str, **variables: str) -> str:
        assigned = [f"--set={name}={value}" for name, value in variables.items()]
        arguments = ["-h", str(home), "-U", "postgres", "-qAtX", "--set=ON_ERROR_STOP=1"]
        return run(client, *arguments, *assigned, sql=text)

    try:
        yield sql
    finally:
        run(pg_ctl, "-D", data, "-m", "immediate", "-w", "stop")
