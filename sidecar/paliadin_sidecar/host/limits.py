"""The process's limit of open files, raised as far as it is of use."""

from __future__ import annotations

import resource

__all__ = ["raise_descriptor_limit"]

#: Files that are kept open while they settle, where the system permits.
_MAX_HELD = 2048


def raise_descriptor_limit() -> int:
    """Raise the soft limit.

    Returns:
        How many files may be held open; the rest is for the network and the database.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _MAX_HELD
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return _MAX_HELD if soft == resource.RLIM_INFINITY else min(_MAX_HELD, soft // 4)
