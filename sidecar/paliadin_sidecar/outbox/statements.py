"""The statements of `outbox.sql`, by their names, and the steps between versions of the schema."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import aiosql

__all__ = ["MIGRATIONS", "Row", "sql"]

#: A row, by the names of its columns.
Row = dict[str, Any]

sql: Any = aiosql.from_str(
    files(__package__).joinpath("outbox.sql").read_text(encoding="utf-8"),
    "sqlite3",
    mandatory_parameters=False,  # the statements name them
)

#: The steps that lead from each version of the schema to the next one, the first from version 1;
#: each runs in one transaction with its number. A change of the schema changes `schema` and adds
#: its step here.
MIGRATIONS: tuple[str, ...] = ()
