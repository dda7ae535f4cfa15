from __future__ import annotations

import re
from pathlib import Path

from paliadin_sidecar.outbox import statements

FOLDER = Path(statements.__file__).parent


def test_every_statement_is_used_and_every_use_has_one() -> None:
    """A name that is wrong would be found only when it is needed."""
    used = set()
    for module in FOLDER.glob("*.py"):
        used |= set(re.findall(r"\bsql\.(\w+)", module.read_text()))
    assert used - {"sql"} == set(vars(statements.sql))


def test_every_statement_has_a_sentence() -> None:
    """Above its name stands what it does."""
    lines = (FOLDER / "outbox.sql").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("-- name: "):
            assert re.fullmatch(r"-- .*[.]", lines[number - 1]), line
