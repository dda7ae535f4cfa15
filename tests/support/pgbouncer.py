"""A real pgbouncer between an app and a PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from support.needs import need
from support.postgresql import ordinary_account
from support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgresql import PostgreSQL


@contextmanager
def pgbouncer(server: PostgreSQL, database: str, mode: str) -> Iterator[str]:
    """One in this `pool_mode`; yields its connection string."""
    need("pgbouncer")
    account = ordinary_account()
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as directory:
        home = Path(directory)
        settings = home / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = user=postgres host={server.home}\n[pgbouncer]\nlisten_addr =\n"
            f"unix_socket_dir = {home}\nauth_type = any\npool_mode = {mode}\n"
            "default_pool_size = 10\nignore_startup_parameters = extra_float_digits\n"
        )
        for path in (home, settings):
            os.chown(path, account.pw_uid, account.pw_gid)
        process = subprocess.Popen(
            ["pgbouncer", "--quiet", str(settings)],
            user=account.pw_uid,
            group=account.pw_gid,
            stderr=subprocess.DEVNULL,
        )
        try:
            until("pgbouncer", (home / ".s.PGSQL.6432").exists)
            yield f"postgresql://postgres@:6432/{database}?host={quote(str(home))}"
        finally:
            process.terminate()
            process.wait()
