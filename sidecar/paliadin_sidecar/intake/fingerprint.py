"""What a file looked like: all that a verdict on it depended on. Pure."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple, Self

from msgspec import Struct

#: The kernel stamps with the time of its last tick: a change that follows within the same
#: tick does not show, so a younger time proves nothing, of a directory as of a file.
TICK_S = 0.05
#: The same where the file system keeps whole seconds (ext4 with inodes of 128 bytes, ext3, some
#: servers) or even ones (FAT).
COARSE_S = 2.0 + TICK_S


def is_conclusive(stamp_ns: int, now_s: float) -> bool:
    """Whether a change from now on must show in a time stamp that is this one now.

    No system call says how fine a file system's stamps are, so the stamp itself is asked: one
    without a fraction of a second is taken for a coarse one. A fine one has no fraction once in a
    thousand million times, and then a file is read once more, which is all that it costs.

    Args:
        stamp_ns: mtime or ctime, in nanoseconds.
        now_s: the clock that the stamps are made with, in epoch seconds.
    """
    granularity_s = TICK_S if stamp_ns % 1_000_000_000 else COARSE_S
    return abs(now_s - stamp_ns / 1e9) >= granularity_s


class Fingerprint(NamedTuple):
    """What `stat` says of a file. Its text is what the outbox keeps.

    The mtime alone would not do: `cp -p`, `rsync` and `touch -r` put it back. The ctime can be
    set by nobody; it moves with content, owner, mode and number of names, which stand here for
    themselves too, since it may be coarse. A file that was removed after it was opened has no
    names.
    """

    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    owner: int
    mode: int
    names: int

    @classmethod
    def of(cls, info: os.stat_result) -> Self:
        """The fingerprint of what was asked for this."""
        return cls(
            info.st_ino,
            info.st_size,
            info.st_mtime_ns,
            info.st_ctime_ns,
            info.st_uid,
            info.st_mode,
            info.st_nlink,
        )

    def __str__(self) -> str:
        """As text: a time in the year 20000 does not fit into a database's integer."""
        return ":".join(map(str, self))

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    def content_may_differ(self, before: Fingerprint) -> bool:
        """Whether the content may be another one than before.

        A ctime that moved alone says so too, unless a name came or went: that moves it as well,
        and a poller that deletes an answer does not make it an unfinished one.
        """
        if self[:3] != before[:3]:
            return True
        return self.changed_ns != before.changed_ns and self.names == before.names

    def is_conclusive(self, now_s: float) -> bool:
        """Whether every change from now on must show in it; see `is_conclusive`."""
        return is_conclusive(self.modified_ns, now_s) and is_conclusive(self.changed_ns, now_s)


class FileSnapshot(Struct, frozen=True):
    """What one inspection of an open file found.

    Attributes:
        fingerprint: it changes whenever the file may have.
        trusted: a regular file of the expected owner.
        being_written: whether somebody has it open for writing; None where the system would not
            say.
        ended: its last lines are a whole trailer.
        has_text: something stands before the trailer.
        why: why it is not trusted.
    """

    fingerprint: Fingerprint
    trusted: bool
    being_written: bool | None = False
    ended: bool = False
    has_text: bool = False
    why: str = ""
