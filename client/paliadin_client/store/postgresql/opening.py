"""Opens a store in PostgreSQL, and says what is missing where its driver is not installed."""

from __future__ import annotations

from paliadin_client.errors import ConfigError
from paliadin_client.store.protocol import Store


def open_postgresql(url: str) -> Store:
    """The store that this `postgresql://` URL names. It connects when it is used.

    Raises:
        ConfigError: the URL is none, or the driver is not installed.
    """
    require_driver()
    from paliadin_client.store.postgresql.store import PostgreSQLStore  # noqa: PLC0415 - psycopg is an extra

    return PostgreSQLStore(url)


def require_driver() -> None:
    """Ask whether the driver is installed.

    Raises:
        ConfigError: it is not, and the command that installs it.
    """
    try:
        import psycopg  # noqa: F401, PLC0415 - an extra, looked for
        import psycopg_pool  # noqa: F401, PLC0415 - the same
    except ImportError as exc:
        # psycopg without a libpq is an ImportError too, whose text has several lines.
        what = f"{exc.name} is not installed" if exc.name else "psycopg finds no libpq"
        problem = (
            f"a store in PostgreSQL needs the extra [postgresql], and {what}: "
            "`pip install --only-binary :all: --require-hashes -r requirements/postgresql.txt`"
        )
        raise ConfigError([problem]) from None
