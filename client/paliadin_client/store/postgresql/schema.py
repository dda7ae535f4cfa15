"""Makes the tables of a store in PostgreSQL, and says which version of them this is.

It needs no driver, so that whoever reviews migrations can print the SQL anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: The version that `schema.sql` makes. A later one has a step for each one before it.
VERSION = 1
#: The SQL that makes a version of the one before it, `paliadin.version` included.
MIGRATIONS: Mapping[int, str] = {}


def create_sql() -> str:
    """The SQL that makes the tables where there are none: to be run in one transaction."""
    return Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")
