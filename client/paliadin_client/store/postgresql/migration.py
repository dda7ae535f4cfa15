"""Makes a store's tables, or brings them to this package's version: `paliadin store init`."""

from __future__ import annotations

from paliadin_client.store.postgresql.conninfo import Conninfo
from paliadin_client.store.postgresql.database import Database, run
from paliadin_client.store.postgresql.schema import MIGRATIONS, VERSION, create_sql

# Two that make it at the same time come one after the other.
_ALONE = "SELECT pg_advisory_xact_lock(hashtextextended('paliadin schema', 0))"
_IS_THERE = "SELECT to_regclass('paliadin.version') IS NOT NULL"


async def migrate(url: str) -> str:
    """Make the tables where there are none; bring older ones to this version; else do nothing.

    Returns:
        A sentence that says what was done, and where.

    Raises:
        ConfigError: the URL is none.
        StoreFailed: it could not be done, and then nothing was.
    """
    database = Database(Conninfo.parse(url))
    async with database.own_connection() as connection:
        with database.errors_named():
            async with connection.transaction():
                await run(connection, _ALONE)
                ((is_there,),) = await run(connection, _IS_THERE)
                if not is_there:
                    await connection.execute(create_sql().encode())
                    return f"{database.name}: the tables were made, version {VERSION}"
                before = await database.version(connection)
                for version in range(before + 1, VERSION + 1):
                    await connection.execute(MIGRATIONS[version].encode())
                await database.check_version(connection)
    if before < VERSION:
        return f"{database.name}: the tables were of version {before}, and are of {VERSION} now"
    return f"{database.name}: the tables are there, version {VERSION}"
