"""The statement of docs/paliad.md, run by a real PostgreSQL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

DOC = Path(__file__).parents[2] / "docs" / "paliad.md"


@pytest.mark.slow
def test_the_update(psql: Callable[..., str]) -> None:
    """It fills an empty answer, a higher revision replaces, and a duplicate changes nothing."""
    (update,) = re.findall("```sql\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    psql("CREATE TABLE turns (id text PRIMARY KEY, answer text); INSERT INTO turns VALUES ('t1');")

    def push(answer: str, turn: str, revision: int) -> None:
        arguments = f"'{answer}', '{turn}', {revision}"
        psql(f"PREPARE push(text, text, int) AS {update} EXECUTE push({arguments});")

    for answer, turn, revision, left in [
        ("eins", "t1", 1, "eins"),
        ("eins, noch einmal", "t1", 1, "eins"),  # the backend's response was first
        ("zwei", "t1", 2, "zwei"),
        ("zwei", "t1", 2, "zwei"),
        ("fremd", "t9", 1, "zwei"),
    ]:
        push(answer, turn, revision)
        assert psql("SELECT id || ' ' || answer FROM turns;") == f"t1 {left}\n"
