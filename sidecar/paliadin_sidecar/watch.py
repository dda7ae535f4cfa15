"""Are the roots there, ours, the same as before? By looking, which is the truth."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from typing import TYPE_CHECKING, Literal

from paliadin_sidecar.fingerprint import is_conclusive

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Root", "State"]

State = Literal["armed", "missing", "untrusted"]


class Root:
    """One watched directory, looked at through its own descriptor.

    Args:
        path: where it is.
        owner: user id that must own it.
    """

    def __init__(self, path: Path, owner: int) -> None:
        self.path = path
        self.fd: int | None = None
        self.state: State = "missing"
        self.why = ""
        self._owner = owner
        self._listed_mtime: int | None = None

    def check(self) -> Literal["armed", "missing", "untrusted", "replaced"] | None:
        """Look whether it is there and can be trusted; what changed, or None.

        After `replaced` the descriptor is the new directory's.
        """
        before = (self.state, self.why)
        identity = _identity(self.fd)
        self.state, self.why, info = _inspect(self.path, self._owner)
        if info is not None and identity == (info.st_dev, info.st_ino):
            return None
        self.close()
        if info is not None:
            self._open(info)
        if self.fd is None:
            return self.state if (self.state, self.why) != before else None
        return "armed" if identity is None else "replaced"

    def _open(self, inspected: os.stat_result) -> None:
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as exc:
            self.state, self.why = "untrusted", f"{self.path} cannot be opened ({exc.strerror})"
            return
        if _identity(self.fd) != (inspected.st_dev, inspected.st_ino):
            self.close()
            self.state, self.why = "missing", f"{self.path} was just replaced"

    def close(self) -> None:
        """Let go of the descriptor."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
        self._listed_mtime = None

    def names(self, *, always: bool) -> list[str] | None:
        """Every name in it, one that is no UTF-8 with surrogates, if any came or went.

        None where nothing did since the last time.

        Args:
            always: list it in any case.

        Raises:
            OSError: the directory cannot be read.
        """
        if self.fd is None:
            return None
        mtime = os.fstat(self.fd).st_mtime_ns
        if mtime == self._listed_mtime and not always:
            return None
        names = os.listdir(self.fd)  # noqa: PTH208 - of a descriptor, not of a path
        self._listed_mtime = mtime if is_conclusive(mtime, time.time()) else None
        return names


def _identity(fd: int | None) -> tuple[int, int] | None:
    if fd is None:
        return None
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def _inspect(  # noqa: PLR0911 - one return for each way to be wrong
    path: Path, owner: int
) -> tuple[State, str, os.stat_result | None]:
    # Every directory from / down: whoever may rename one of them decides what we read.
    ours = {0, owner}
    for step in (*reversed(path.parents), path):
        try:
            info = step.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return "missing", f"{step} does not exist", None
        except OSError as exc:
            return "untrusted", f"{step} cannot be looked at ({exc.strerror})", None
        last = step == path
        sticky = bool(info.st_mode & stat.S_ISVTX) and info.st_uid == 0 and not last
        if stat.S_ISLNK(info.st_mode):
            return "untrusted", f"{step} is a symbolic link: name the real directory", None
        if not stat.S_ISDIR(info.st_mode):
            return "untrusted", f"{step} is no directory", None
        if info.st_uid not in ({owner} if last else ours):
            return (
                "untrusted",
                f"{step} belongs to user {info.st_uid}, not to {owner} (PALIADIN_OWNER)",
                None,
            )
        if info.st_mode & stat.S_IWOTH and not sticky:
            return "untrusted", f"{step} is writable by others: chmod o-w {step}", None
        if info.st_mode & stat.S_IWGRP and not sticky and not _is_private(info.st_gid, owner):
            return "untrusted", f"{step} is writable by its group: chmod g-w {step}", None
    return "armed", "", info


def _is_private(gid: int, owner: int) -> bool:
    # The owner's own group, with nobody else in it; root's group is root.
    try:
        user, group = pwd.getpwuid(owner), grp.getgrgid(gid)
    except KeyError:
        return gid == 0
    alone = set(group.gr_mem) <= {user.pw_name}
    return alone and (gid == 0 or (gid == user.pw_gid and group.gr_name == user.pw_name))
