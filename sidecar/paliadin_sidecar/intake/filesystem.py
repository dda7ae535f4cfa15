"""On which file systems does the kernel know everybody who writes?"""

from __future__ import annotations

import os
from pathlib import Path

#: File systems that one kernel alone writes. On any other (FUSE, 9p, virtiofs, NFS, SMB, the
#: layers of an overlay) a writer may be on another machine or behind another mount, and the
#: kernel grants a read lease although he has the file open.
LOCAL = frozenset(
    {
        "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "msdos", "nilfs2",
        "ntfs3", "ramfs", "reiserfs", "tmpfs", "vfat", "xfs", "zfs",
    }
)  # fmt: skip


def device_with_leases(directory: int) -> int | None:
    """The device of an open directory, if a lease on a file there proves that nobody writes it.

    None where it does not, or where the directory's device does not answer.
    """
    try:
        device = os.fstat(directory).st_dev
    except OSError:
        return None
    return device if type_of(directory) in LOCAL else None


def type_of(fd: int) -> str:
    """The type of the file system that an open file is on; "" where the system would not say."""
    return _mount_of(fd)[0]


def directory_type(path: Path) -> str:
    """The same of a directory.

    Raises:
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        return type_of(fd)
    finally:
        os.close(fd)


def server_of(fd: int) -> int | None:
    """The user whose process serves the FUSE mount that an open file is on.

    It may say anything about what is in it, also whose that is. None where it is no such mount, or
    the system would not say.
    """
    kind, options = _mount_of(fd)
    user = dict(option.partition("=")[::2] for option in options.split(",")).get("user_id", "")
    is_fuse = kind.partition(".")[0] in ("fuse", "fuseblk")
    return int(user) if is_fuse and user.isdecimal() else None


def mount_in(mountinfo: str, mount_id: str) -> tuple[str, str]:
    """Type and options of a mount in a text like that of `/proc/self/mountinfo` (proc(5)).

    Both are "" where its id is not there: it was unmounted, or is another mount namespace's.
    """
    lines = (line for line in mountinfo.splitlines() if line.split(" ", 1)[0] == mount_id)
    # They stand behind " - ", the source between them.
    words = next(lines, "").partition(" - ")[2].split(" ")
    return words[0], words[-1]


def _mount_of(fd: int) -> tuple[str, str]:
    own = Path("/proc/self")
    try:
        about = (own / "fdinfo" / str(fd)).read_text(encoding="ascii")
        mounts = (own / "mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    fields = dict(line.split(":\t", 1) for line in about.splitlines() if ":\t" in line)
    return mount_in(mounts, fields.get("mnt_id", ""))
