"""Checks each root's existence, owner, who may write there and its identity, and lists its names.

Scans are authoritative; events are hints.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from paliadin_sidecar.host.storage import close_fd, user_name
from paliadin_sidecar.intake.filesystem import device_with_leases, server_of
from paliadin_sidecar.intake.fingerprint import is_conclusive
from paliadin_sidecar.intake.trust import why_untrusted
from paliadin_sidecar.outbox.records import RootState

#: A step of the way: its name is looked up in the directory that was judged before, and what is
#: opened cannot be exchanged any more. A symbolic link is none (ENOTDIR).
_OPEN_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


#: More names than these are a flood: they are not held together, and it is reported.
MAX_NAMES = 200_000


class _NotArmed(Exception):
    def __init__(self, state: RootState, step: Path, what: str, error: int | None = None) -> None:
        super().__init__(state, step, what)
        self.state, self.step, self.what, self.error = state, step, what, error


class Root:
    """One watched directory, which is only read through a descriptor that was judged.

    Args:
        path: where it is, absolute.
        owner: user id that must own it.
    """

    def __init__(self, path: Path, owner: int) -> None:
        self.path = path
        self._way = [str(step) for step in (*reversed(path.parents), path)]
        self.fd: int | None = None  #: of the directory, while it is armed
        self.state: RootState = "missing"
        self.why = ""
        self.step = path  #: the directory on the way that `why` is about
        self.error: int | None = None  #: the system's error number, where it is `unreadable`
        self.since = time.time()  #: epoch seconds at which it came into this state
        #: The device on which a lease proves that nobody writes; None elsewhere.
        self.leases_on: int | None = None
        self._owner = owner
        self._reported: tuple[RootState, str] = ("missing", "")
        self._identity: tuple[int, int] | None = None
        self._listed_mtime: int | None = None
        self._ancestry: list[tuple[int, ...]] | None = None

    def check(self) -> Literal["armed", "missing", "untrusted", "unreadable", "replaced"] | None:
        """Look whether it is there and can be trusted; what changed, or None.

        After `replaced` the descriptor is the new directory's. That it could not be listed is
        reported first, and only the next call looks whether it can be again.
        """
        before = self._identity if self._reported[0] == "armed" else None
        ancestry = _ancestry(self._way)  # before it is judged: what changes meanwhile must show
        if self.state != "unreadable" or (self.state, self.why) == self._reported:
            try:
                self._arm()
            except _NotArmed as exc:
                self._fail(exc)
        self._ancestry = ancestry
        changed = (self.state, self.why) != self._reported
        self._reported = (self.state, self.why)
        if self.state != "armed" or before is None or before == self._identity:
            return self.state if changed else None
        return "replaced"

    def is_as_checked(self) -> bool:
        """Whether nothing was changed on the way to it since the check that armed it.

        It asks a few times for `stat` and judges nothing, so it does not see that somebody else
        came into a group.
        """
        return (
            self.state == "armed"
            and self._ancestry is not None
            and self._ancestry == _ancestry(self._way)
        )

    def mark_unresponsive(self) -> None:
        """Somebody waits in one of its calls: `unreadable`, until a check comes to its end.

        The one call that may be made meanwhile, by another thread.
        """
        self._become("unreadable", f"{self.path} does not answer")
        self.step, self.error = self.path, errno.ETIMEDOUT
        self._reported = (self.state, self.why)

    def close(self) -> None:
        """Let go of the descriptor."""
        if self.fd is not None:
            close_fd(self.fd)
            self.fd = None
        self._listed_mtime = None

    def names(self, *, always: bool) -> Iterator[str] | None:
        """Its names, one that is no UTF-8 with surrogates; None where none came or went.

        What comes to its end was listed; the next call begins again where that was not reached.

        Args:
            always: list them in any case.

        Raises:
            OSError: the directory cannot be read, now or later on; it is `unreadable` from here on.
        """
        if self.fd is None:
            return None
        try:
            mtime = os.fstat(self.fd).st_mtime_ns
        except OSError as exc:
            self._fail(_unreadable(self.path, "listed", exc))
            raise
        if mtime == self._listed_mtime and not always:
            return None
        # Judged before names are read: what comes meanwhile may have the same time.
        return self._list(self.fd, mtime if is_conclusive(mtime, time.time()) else None)

    def _list(self, directory: int, mtime: int | None) -> Iterator[str]:
        try:
            os.lseek(directory, 0, os.SEEK_SET)  # one before may have been left in the middle
            with os.scandir(directory) as entries:
                for entry in entries:
                    yield entry.name
        except OSError as exc:
            self._fail(_unreadable(self.path, "listed", exc))
            raise
        self._listed_mtime = mtime

    def _arm(self) -> None:
        try:
            with _opened_trusted(self.path, self._owner) as found:
                info = os.fstat(found)
                identity = (info.st_dev, info.st_ino)
                if self.fd is None or identity != self._identity:
                    self._open(found)
                    self._identity = identity
        except FileNotFoundError:
            raise _NotArmed("missing", self.path, "was just removed") from None
        except OSError as exc:
            raise _unreadable(self.path, "opened", exc) from None
        self._become("armed", "")

    def _open(self, found: int) -> None:
        # By the descriptor that was judged: the path may lead elsewhere by now.
        self.close()
        self.fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=found)
        self.leases_on = device_with_leases(self.fd)
        if self.state == "unreadable":
            try:
                os.listdir(self.fd)  # noqa: PTH208 - as in `names`
            except OSError as exc:
                raise _unreadable(self.path, "listed", exc) from None

    def _fail(self, failed: _NotArmed) -> None:
        self.close()
        if self.state == failed.state == "unreadable" and self.error == failed.error:
            return  # the same trouble, met by another call
        self._become(failed.state, f"{failed.step} {failed.what}")
        self.step, self.error = failed.step, failed.error

    def _become(self, state: RootState, why: str) -> None:
        if state != self.state:
            self.since = time.time()
        self.state, self.why, self.error = state, why, None


def _ancestry(way: list[str]) -> list[tuple[int, ...]] | None:
    # What the judgement of each step depended on. The ctime moves with an ACL too; that of a
    # directory which everybody may write in does all the time, and ACLs do not matter there.
    found: list[tuple[int, ...]] = []
    try:
        for step in way:
            info = os.lstat(step)
            sticky = bool(info.st_mode & stat.S_ISVTX) and info.st_uid == 0
            changed = 0 if sticky else info.st_ctime_ns
            found.append(
                (info.st_dev, info.st_ino, info.st_mode, info.st_uid, info.st_gid, changed)
            )
    except OSError:
        return None
    return found


@contextmanager
def _opened_trusted(path: Path, owner: int) -> Iterator[int]:
    # Walks every directory from / down: whoever may rename one of them decides what we read. Each
    # is judged by the descriptor in which the next name is then looked up.
    found: int | None = None
    device: int | None = None
    with ExitStack() as steps:
        for step in (*reversed(path.parents), path):
            found = _open_step(step.name or "/", found, step)
            steps.callback(close_fd, found)
            device = _check_directory(found, device, step, path, owner)
        assert found is not None  # a path has one step at least
        yield found


def _open_step(name: str, above: int | None, step: Path) -> int:
    try:
        return os.open(name, _OPEN_FLAGS, dir_fd=above)
    except FileNotFoundError:
        raise _NotArmed("missing", step, "does not exist") from None
    except NotADirectoryError:
        try:
            info = os.stat(name, dir_fd=above, follow_symlinks=False)
        except OSError:
            info = None
        if info is not None and stat.S_ISLNK(info.st_mode):
            find = f"readlink -f {shlex.quote(str(step))}"
            what = f"is a symbolic link: name the real directory in PALIADIN_WATCH ({find})"
            raise _NotArmed("untrusted", step, what) from None
        raise _NotArmed("untrusted", step, "is no directory") from None
    except OSError as exc:
        raise _unreadable(step, "looked at", exc) from None


def _check_directory(found: int, device: int | None, step: Path, path: Path, owner: int) -> int:
    # Returns the device that the step is on.
    last = step == path
    try:
        info = os.fstat(found)
        server = server_of(found) if device not in (None, info.st_dev) else None
        if server not in (None, 0, owner):
            what = f"is a FUSE mount that user {user_name(server)} serves"
            raise _NotArmed("untrusted", step, f"{what}: umount {shlex.quote(str(step))}")
        if info.st_uid not in ({owner} if last else {0, owner}):
            what = f"belongs to user {user_name(info.st_uid)}, not to {user_name(owner)}"
            raise _NotArmed("untrusted", step, f"{what} (PALIADIN_OWNER)")
        # In a sticky directory of root's, only its owner renames or removes the next step.
        sticky = bool(info.st_mode & stat.S_ISVTX) and info.st_uid == 0 and not last
        writer = None if sticky else why_untrusted(found, info, step, owner, makes_files=last)
        if writer is not None:
            raise _NotArmed("untrusted", step, writer)
    except OSError as exc:
        raise _unreadable(step, "looked at", exc) from None
    return info.st_dev


def _unreadable(path: Path, what: str, exc: OSError) -> _NotArmed:
    return _NotArmed("unreadable", path, f"cannot be {what} ({exc.strerror})", exc.errno)
