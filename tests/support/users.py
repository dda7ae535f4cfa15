"""Being somebody else for a moment, which only root can."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A user who owns nothing here.
NOBODY = 65534
#: Who the tests are `without_privilege`.
ORDINARY = os.geteuid() or NOBODY

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test")


@contextmanager
def without_privilege() -> Iterator[None]:
    """Be an ordinary user, `ORDINARY`, also where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)
