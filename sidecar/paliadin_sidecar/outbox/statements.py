"""The statements of `outbox.sql`, by their names, and the versions of the schema."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import aiosql

__all__ = ["MIGRATIONS", "SCHEMA_VERSION", "Row", "sql"]

#: A row, by the names of its columns.
Row = dict[str, Any]

sql: Any = aiosql.from_str(
    files(__package__).joinpath("outbox.sql").read_text(encoding="utf-8"),
    "sqlite3",
    mandatory_parameters=False,  # the statements name them
)

#: Every change of the schema adds the step that leads to it, one transaction with its number.
MIGRATIONS: tuple[str, ...] = (sql.from_1.sql, sql.from_2.sql)
SCHEMA_VERSION = 1 + len(MIGRATIONS)
