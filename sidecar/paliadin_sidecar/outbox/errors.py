"""What can be wrong with the outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Blocked",
    "Busy",
    "Damaged",
    "DiskFails",
    "Full",
    "Newer",
    "NotNow",
    "Older",
    "OutboxError",
    "OverBudget",
    "Unwritable",
]


class OutboxError(Exception):
    """The outbox cannot be used. Its text names the file, and never what it holds.

    OutboxError
    ├── Blocked      not now: try again
    │   ├── Full     no room: on the disk, in the quota, or below the limit of a file's size
    │   ├── OverBudget   its own budget is used up by what is undelivered
    │   ├── Busy     another process holds its lock
    │   └── NotNow   the system lacks something else: memory, descriptors, a disk to write on
    ├── Damaged      proven: not a database, cut, replaced or unlinked
    ├── DiskFails    the disk did not read or store what it was asked to
    ├── Newer        written by a later version of this program
    ├── Older        written by an earlier one, and not migrated yet
    └── Unwritable   the directory or the file is not ours to write
    """

    #: What an operator does about it; how that is typed depends on the host, see `advice`.
    mend: ClassVar[str] = "see PALIADIN_STATE_DIR"

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


class Blocked(OutboxError):
    """Nothing is wrong with it, and it cannot be written now."""


class Full(Blocked):
    """There is no room for it: the detail says which limit was met."""

    mend = "make room there"


class OverBudget(Blocked):
    """What is undelivered takes all that the outbox may take: nothing new is accepted."""

    mend = "it goes on as the receiver acknowledges; or raise PALIADIN_MAX_OUTBOX"


class Busy(Blocked):
    """Another process holds its lock."""

    mend = "try again"


class NotNow(Blocked):
    """The system would not let it be used, for a reason that passes; the detail names it."""

    mend = "it goes on when that has passed"


class DiskFails(OutboxError):
    """The disk did not read or store what it was asked to; the outbox may well be whole."""

    mend = (
        "see what the kernel says of that disk: journalctl -k | tail. Nothing shows that the "
        "outbox itself is damaged: start again, and move nothing aside"
    )


class Damaged(OutboxError):
    """It is no database of ours, or no longer."""

    mend = (
        "Move it aside and begin anew (answers that still lie in the roots are then sent again "
        "under the same ids)"
    )


class Newer(OutboxError):
    """A later version of this program wrote it."""

    mend = "install the version that wrote it"


class Older(OutboxError):
    """An earlier version of this program wrote it; the daemon migrates it when it starts."""

    mend = "the daemon was not restarted since the upgrade, and migrates it when it starts"


class Unwritable(OutboxError):
    """It may not be written."""

    mend = "all that lies there must be that user's (chown -R); or see PALIADIN_STATE_DIR"
