"""One thing that `check` examined, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

__all__ = ["Finding", "note", "ok", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was examined.

    Attributes:
        level: `ok`, `note` (nothing to do, but know it) or `wrong`.
        subject: what was examined.
        message: what was found, why it matters, and what mends it.
    """

    level: Literal["ok", "note", "wrong"]
    subject: str
    message: str


ok = partial(Finding, "ok")
note = partial(Finding, "note")
wrong = partial(Finding, "wrong")
