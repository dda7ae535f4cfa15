"""Text that cannot be compressed much."""

from __future__ import annotations

import random

#: 8 bits each, and two bytes in UTF-8.
_CHARACTERS = [chr(0x400 + n) for n in range(256)]


def noise(size: int) -> str:
    """So many characters, which take at least so many bytes, also deflated."""
    return "".join(random.Random(0).choices(_CHARACTERS, k=size))
