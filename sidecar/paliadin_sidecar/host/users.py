"""Users of this host as people know them."""

from __future__ import annotations

import pwd

__all__ = ["user_name"]


def user_name(uid: int) -> str:
    """A user's name; the number where none has it. `chown` takes either."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
