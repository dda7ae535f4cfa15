"""The table of which push counts, that every implementation must agree on."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

__all__ = ["RANKS", "Push", "RankCase"]


class Push(Struct, frozen=True, forbid_unknown_fields=True):
    """One push of the turn."""

    file: str
    """Tells the turn files apart."""
    revision: int
    response: str | None
    """None is a `turn.failed`."""


class RankCase(Struct, frozen=True, forbid_unknown_fields=True):
    """What is stored after these pushes, in this order."""

    name: str
    pushes: list[Push]
    end: str | None


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    about: str
    cases: list[RankCase]


PATH = Path(__file__).parents[1] / "contract" / "ranks.json"
RANKS = msgspec.json.decode(PATH.read_bytes(), type=_Table).cases
