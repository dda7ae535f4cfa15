"""Opens the store that is named: by a URL a PostgreSQL, by a path a SQLite database."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from paliadin_client.errors import ConfigError
from paliadin_client.store.memory import MemoryStore
from paliadin_client.store.postgresql.opening import open_postgresql
from paliadin_client.store.protocol import Store

_POSTGRESQL = re.compile(r"postgres(ql)?://")
#: Another URL, also in quotes or behind a blank, one without its beginning, or libpq's other form
#: of a connection string: as a path it would become the name of a file, with the password in it.
_NO_PATH = re.compile(
    r"^[a-z0-9+.-]+:/|://|:.*@|(^|[\s'\"])(host|hostaddr|service|dbname|user|password)\s*=",
    re.IGNORECASE | re.DOTALL,
)


def open_store(name: str | os.PathLike[str] | None) -> Store:
    """The store of this name; None is this process's own memory.

    Nothing is connected to before the first use; the file of a SQLite database is made.

    Raises:
        ConfigError: there can be no such store, its file can be neither opened nor made, or
            PostgreSQL's driver is not installed.
    """
    if name is None:
        return MemoryStore()
    if isinstance(name, str) and _POSTGRESQL.match(name):
        return open_postgresql(name)
    if isinstance(name, str) and _NO_PATH.search(name):
        # It is not shown, since it may have a password.
        raise ConfigError(["the store is neither a path nor a URL that begins with postgresql://"])
    # Who remembers in memory has no use for SQLite, threads and asyncio.
    from paliadin_client.store.sqlite import SqliteStore  # noqa: PLC0415 - see above

    return SqliteStore(name)


def store_from(environ: Mapping[str, str]) -> str | None:
    """The store's name by `PALIADIN_STORE`, for an app that names none itself."""
    return environ.get("PALIADIN_STORE", "").strip() or None
