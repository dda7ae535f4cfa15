"""Reads a store's connection string, and never lets its password into a text."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from paliadin_client.errors import ConfigError

#: A user and a password hold none of these as they are, so that no part of a password that was
#: not encoded can be taken for a host, a port or a database, which errors name.
_URL = re.compile(
    r"(?P<scheme>postgres(?:ql)?://)"
    r"(?:(?P<user>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?"
    r"(?P<rest>[^@]*)",
    re.DOTALL,
)
_SECRETS = ("password", "sslpassword")
_SECRET_PARAMETER = re.compile(r"(?i)((?:ssl)?password=)[^&]*")
_PORTS = re.compile(r"[0-9]{0,5}(,[0-9]{0,5})*")
#: A host that does not answer is given up after 5 s.
_DEFAULTS = {"connect_timeout": "5", "application_name": "paliadin"}


@dataclass(frozen=True, slots=True)
class Conninfo:
    """Where a store is.

    Attributes:
        name: of the store, for people: without user and password.
        port: as it was given; empty where it was not.
        dsn: the connection string for libpq.
        secrets: what of that no text may show.
    """

    name: str
    port: str
    dsn: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Conninfo:
        """Read a `postgresql://` URL.

        Raises:
            ConfigError: it is none that libpq takes. The text has nothing of it but a parameter's
                name.
        """
        match = _URL.fullmatch(url)
        if match is None:
            raise _wrong(
                "it has an @, / or ? where none belongs: in user and password write them as %40, "
                "%2F and %3F, as any character that is no letter or digit"
            )
        rest = _SECRET_PARAMETER.sub(r"\1secret", match["rest"])
        try:
            conninfo_to_dict(f"{match['scheme']}{rest}")
        except psycopg.Error as exc:
            raise _wrong(str(exc).strip()) from None
        try:
            given = {key: str(value) for key, value in conninfo_to_dict(url).items()}
        except (psycopg.Error, UnicodeError):
            raise _wrong("user and password are to be percent-encoded, a % as %25") from None
        port = given.get("port", "")
        if not _PORTS.fullmatch(port):
            raise _wrong("what stands behind the host's colon is no port")
        host = given.get("host") or os.environ.get("PGHOST", "")
        database = given.get("dbname") or os.environ.get("PGDATABASE", "")
        # Ids and names are UTF-8 here, whatever the environment of the process says.
        parameters = _DEFAULTS | given | {"client_encoding": "utf8"}
        return cls(
            name=f"postgresql://{host}{port and ':'}{port}/{database}",
            port=port,
            dsn=make_conninfo(**parameters),
            secrets=tuple(filter(None, map(given.get, _SECRETS))),
        )

    def without_secrets(self, text: str) -> str:
        """`text`, in which nothing secret of this connection string is left."""
        for secret in self.secrets:
            text = text.replace(secret, "…")
        return text


def _wrong(reason: str) -> ConfigError:
    return ConfigError([f"the store's postgresql:// URL is none that PostgreSQL takes: {reason}"])
