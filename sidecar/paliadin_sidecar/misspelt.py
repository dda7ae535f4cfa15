"""Variables that look like ours and are none. Pure."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["sentence", "unknown_variables"]

#: Of the client, the legacy shim and the tests, which may stand in the same environment.
_OTHERS = frozenset({
    "PALIADIN_BACKEND", "PALIADIN_CALLBACK_SECRET_FILE", "PALIADIN_CRASH_AT",
    "PALIADIN_DEADLINE_S", "PALIADIN_KNOWN_HOSTS", "PALIADIN_REMOTE_CWD", "PALIADIN_REMOTE_HOST",
    "PALIADIN_REMOTE_PORT", "PALIADIN_REMOTE_USER", "PALIADIN_RESPONSE_DIR",
    "PALIADIN_SESSION_PREFIX", "PALIADIN_SSH_PRIVATE_KEY", "PALIADIN_TIMEOUT_S",
})  # fmt: skip
#: How alike a name must be that does not even begin as ours do: one letter or two.
_ALIKE = 0.85


def unknown_variables(names: Iterable[str], known: Iterable[str]) -> list[tuple[str, str]]:
    """Each name that is misspelt, and the known one that is nearest to it.

    Args:
        names: all variables of an environment.
        known: those that are read.
    """
    known = {*known} | _OTHERS
    ours = sorted(name for name in known if name.startswith("PALIADIN_"))
    found = []
    for name in sorted({*names} - known):
        shape = name.upper().replace("-", "_").removeprefix("EXPORT ")
        if shape.startswith("_PALIADIN"):
            continue  # of the shell's completion
        begins = shape.startswith("PALIADIN_")
        nearest = get_close_matches(shape, ours, 1, 0.0 if begins else _ALIKE)
        if nearest:
            found.append((name, nearest[0]))
    return found


def sentence(name: str, nearest: str) -> str:
    """What an operator is told of one."""
    return f"{name} is no variable of the sidecar's and is ignored: is it {nearest}?"
