"""The table of which push counts, that every implementation must agree on."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct


class Push(Struct, frozen=True, forbid_unknown_fields=True):
    """One push of the turn."""

    file: str
    """Distinguishes the turn files."""
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


_PATH = Path(__file__).parents[1] / "contract" / "ranks.json"
RANKS = msgspec.json.decode(_PATH.read_bytes(), type=_Table).cases
