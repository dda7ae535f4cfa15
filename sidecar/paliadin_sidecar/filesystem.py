"""On which file systems does the kernel know everybody who writes?"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["LOCAL", "device_with_leases", "type_in", "type_of"]

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
    own = Path("/proc/self")
    try:
        about = (own / "fdinfo" / str(fd)).read_text(encoding="ascii")
        mounts = (own / "mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = dict(line.split(":\t", 1) for line in about.splitlines() if ":\t" in line)
    return type_in(mounts, fields.get("mnt_id", ""))


def type_in(mountinfo: str, mount_id: str) -> str:
    """The type of the mount with this id in a text like that of `/proc/self/mountinfo` (proc(5)).

    "" where it is not there: it was unmounted, or is another mount namespace's.
    """
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        if head.split(" ", 1)[0] == mount_id:
            return tail.split(" ", 1)[0]
    return ""
