"""Why a file cannot be written, by what the system itself says: room, rights or the disk.

SQLite reports most failures of the system as one "disk I/O error". Whether that is a used up
quota or a failing disk decides what the daemon does and what its operator reads, so this asks.
"""

from __future__ import annotations

import errno
import mmap
import os
import pwd
import tempfile
from contextlib import suppress
from pathlib import Path

#: There is no room. Somebody makes some, sooner or later: this is waited for.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: What can pass without a change of the configuration: worth another start.
PASSES = NO_ROOM | {
    errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENODEV,
    errno.ENOLCK, errno.ENOMEM, errno.ENOTCONN, errno.EREMOTEIO, errno.EROFS, errno.ESTALE,
    errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
}  # fmt: skip
_SAYS = {
    errno.ENOSPC: "there is no room on its disk",
    errno.EDQUOT: "the disk quota of its user is used up",
    errno.EFBIG: "its files may not grow further (LimitFSIZE=, or the file system's own limit)",
    errno.EROFS: "its file system is read-only",
    errno.EMFILE: "the process may open no more files (LimitNOFILE=)",
    errno.ENFILE: "the system can open no more files",
    errno.ENOMEM: "there is no memory",
    errno.ENODEV: "its file system maps no memory, which SQLite needs",
}
#: More than what a file's last block may still hold.
_PROBE = bytes(64 * 1024)


def write_error(directory: Path, size: int = 0) -> OSError | None:
    """The error that a file in this directory gets which grows beyond `size` bytes.

    It is tried, with a file that has no name and is gone at once.

    Returns:
        The system's error; None where the file could be written, flushed and mapped.
    """
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            at = size
            while at < size + len(_PROBE):  # one that meets a limit is written in part first
                at += os.pwrite(file.fileno(), _PROBE[at - size :], at)
            os.fsync(file.fileno())
            mmap.mmap(file.fileno(), mmap.PAGESIZE).close()
    except OSError as exc:
        return exc
    return None


def is_read_only(path: Path) -> bool:
    """Whether the file system of this path takes no writes; False where it does not say."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def explain(exc: OSError, directory: Path) -> str:
    """What this error says of a file in this directory, in words for an operator."""
    if exc.errno == errno.ENOSPC and _no_inodes(directory):
        return "its disk has no inodes left"
    return _SAYS.get(exc.errno or 0) or f"{exc.strerror}"


def _no_inodes(directory: Path) -> bool:
    there = next(folder for folder in (directory, *directory.parents) if folder.exists())
    disk = os.statvfs(there)
    return disk.f_files > 0 and disk.f_favail == 0  # 0 files: it has no such limit


def close_fd(fd: int) -> None:
    """Close a descriptor. Linux has let go of it, whatever its file system says."""
    with suppress(OSError):
        os.close(fd)


def user_name(uid: int) -> str:
    """A user's name; the number where none has it. `chown` takes either."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
