"""The statements of `outbox.sql`, by their names, and the steps between versions of the schema."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

__all__ = ["MIGRATIONS", "sql"]

#: The steps that lead from each version of the schema to the next one, the first from version 1;
#: each runs in one transaction with its number. A change of the schema changes `schema` and adds
#: its step here.
MIGRATIONS: tuple[str, ...] = ()

_parts = re.split(
    r"^-- name: (\w+)\n",
    Path(__file__).with_name("outbox.sql").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)
#: Each statement's text, as an attribute.
sql = SimpleNamespace(**dict(zip(_parts[1::2], _parts[2::2], strict=True)))
