"""A real PostgreSQL, where there is one."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from support.needs import lacks, need

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PostgreSQL", "postgresql"]


@dataclass(frozen=True)
class PostgreSQL:
    """A server of our own, on a socket of its own."""

    home: Path
    account: pwd.struct_passwd
    initdb: str
    pg_ctl: str
    client: str

    @property
    def environ(self) -> dict[str, str]:
        """What a program needs to connect to it."""
        # A socket in a directory has no TLS, which some clients want by default.
        return {"PGHOST": str(self.home), "PGUSER": "postgres", "PGSSLMODE": "disable"}

    def sql(self, text: str, **variables: str) -> str:
        """Run SQL, with these variables of psql's, and return its rows."""
        assigned = [f"--set={name}={value}" for name, value in variables.items()]
        arguments = ["-h", str(self.home), "-U", "postgres", "-qAtX", "--set=ON_ERROR_STOP=1"]
        return self._run(self.client, *arguments, *assigned, sql=text)

    def create(self) -> None:
        """Make an empty database; it is not started."""
        self._run(
            *(self.initdb, "-D", self._data, "-U", "postgres"),
            *("--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8"),
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # Prepared transactions hold a lock without a connection.
        settings = "-c listen_addresses='' -c fsync=off -c max_prepared_transactions=1"
        options = f"-k {self.home} {settings}"
        log = str(self.home / "log")
        self._run(self.pg_ctl, "-D", self._data, "-o", options, "-l", log, "-w", "start")

    def stop(self) -> None:
        """Stop it as a crash would, and wait until it is gone."""
        self._run(self.pg_ctl, "-D", self._data, "-m", "immediate", "-w", "stop")

    @contextmanager
    def down(self) -> Iterator[None]:
        """It is stopped until the block ends."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @property
    def _data(self) -> str:
        return str(self.home / "data")

    def _run(self, *argv: str, sql: str | None = None) -> str:
        return subprocess.run(
            argv,
            input=sql,
            text=True,
            check=True,
            cwd=self.home,
            user=self.account.pw_uid,
            group=self.account.pw_gid,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ).stdout


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL that is running, until the block ends."""
    # Debian keeps the server's programs off the PATH.
    places = [os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    initdb, pg_ctl, client = (
        shutil.which(each, path=os.pathsep.join(places)) for each in ("initdb", "pg_ctl", "psql")
    )
    if not (initdb and pg_ctl and client):
        need("psql")
        lacks("no PostgreSQL server installed", "apt install postgresql")
    # It refuses to run as root, which tests in a container are.
    account = pwd.getpwnam("nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name)
    # Not below pytest's directories, which are root's alone.
    with tempfile.TemporaryDirectory(prefix="pg-") as directory:
        home = Path(directory)
        os.chown(home, account.pw_uid, account.pw_gid)
        server = PostgreSQL(home, account, initdb, pg_ctl, client)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
