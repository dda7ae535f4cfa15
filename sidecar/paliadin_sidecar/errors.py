"""Every error that one module of the sidecar raises and another one catches.

SidecarError
├── BadSettings               the configuration is wrong
├── StateError                what is kept in the state directory cannot be used
│   ├── StateDirError         the state directory cannot be used
│   │   ├── StateDirBlocked   not now: try again
│   │   │   └── StateDirFull  no room
│   │   └── Locked            another daemon uses it
│   └── OutboxError           the outbox cannot be used
│       ├── Blocked           not now: try again
│       │   ├── Full          no room: on the disk, in the quota, or for a file of that size
│       │   ├── OverBudget    its own budget is used up by what may not go
│       │   ├── Busy          another process holds its lock
│       │   └── Unavailable   the system lacks memory, descriptors, a disk to write on, or the like
│       ├── Damaged           proven: not a database, cut, replaced or unlinked
│       ├── DiskFails         the disk did not read or store what it was asked to
│       ├── Newer             written by a later version of this program
│       ├── Older             written by an earlier one, and not migrated yet
│       └── Unwritable        the directory or the file is not ours to write
├── Unreadable                the system does not let us see a turn's file
├── Changed                   a turn's file was changed while it was read
├── WatchFailed               a directory's file events have ended
├── ConnectionLost            a connection to the receiver ended without an answer
├── EarlyAnswer               a 2xx came before the receiver had the whole request
├── NotServed                 the metrics cannot be served
└── Replaced                  the outbox that was followed is no longer the one in its place

An error's text says what happened, and to what; it never holds an answer or a secret. `remedy` says
what an operator does about it, and `exit_code` is that of a command which ends with it.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

#: EX_CONFIG of sysexits.h: nothing gets better by itself, so the unit does not restart on it.
_EX_CONFIG = 78
#: Errors of a descriptor that will never answer again, since the server of its mount has gone.
_FINAL = {errno.ENOTCONN, errno.ECONNABORTED, errno.ESTALE, errno.ENODEV, errno.ESHUTDOWN}


class SidecarError(Exception):
    """The root of them all."""

    #: What an operator does about it. Empty where the text itself says so, or nobody need do
    #: anything. How it is typed may depend on the host: see `operator.instance`.
    remedy: ClassVar[str] = ""
    #: Of a command that ends with this error.
    exit_code: ClassVar[int] = 1


# --- configuration and state directory ----------------------------------------------------


class BadSettings(SidecarError):
    """The configuration is wrong.

    Attributes:
        problems: one sentence each: the variable, its value unless it is a secret's, and what
            would be right.
    """

    exit_code = _EX_CONFIG

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems)
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class StateError(SidecarError):
    """What is kept in the state directory cannot be used. The text never says what a file holds.

    Attributes:
        path: the directory, or the file in it that is concerned.
        detail: the predicate of a sentence about it, with the reason.
    """

    remedy = "see PALIADIN_STATE_DIR"

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail


class StateDirError(StateError):
    """The state directory cannot be used."""

    exit_code = _EX_CONFIG

    def __str__(self) -> str:
        return f"{self.path} {self.detail}"


class StateDirBlocked(StateDirError):
    """It cannot be used now, for a reason that may pass; the detail names it."""

    remedy = (
        "see PALIADIN_STATE_DIR, and what the kernel says of its disk or mount: journalctl -k | "
        "tail; it is tried again until that has passed"
    )
    exit_code = 1


class StateDirFull(StateDirBlocked):
    """There is no room in it: the detail says which limit was met."""

    remedy = "make room there"


class Locked(StateDirError):
    """Another daemon uses this state directory."""

    remedy = "stop it, or give this one a PALIADIN_STATE_DIR of its own"
    exit_code = 1

    def __init__(self, path: Path) -> None:
        super().__init__(path, "is in use")

    def __str__(self) -> str:
        return f"another paliadin-sidecar runs on {self.path}"


# --- outbox -------------------------------------------------------------------------------


class OutboxError(StateError):
    """The outbox, whose database `path` names, cannot be used."""

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


class Blocked(OutboxError):
    """Nothing is wrong with it, and it cannot be written now."""


class Full(Blocked):
    """There is no room for it: the detail says which limit was met."""

    remedy = "make room there"


class OverBudget(Blocked):
    """What may not go takes all that the outbox may take: nothing new is accepted."""

    remedy = (
        "it goes on as the receiver acknowledges and old files go from the directories; or raise "
        "PALIADIN_MAX_OUTBOX"
    )


class Busy(Blocked):
    """Another process holds its lock."""

    remedy = "try again"


class Unavailable(Blocked):
    """The system would not let it be used, for a reason that passes; the detail names it."""

    remedy = "it goes on when that has passed"


class DiskFails(OutboxError):
    """The disk did not read or store what it was asked to; the outbox may well be whole."""

    remedy = (
        "See what the kernel says of that disk: journalctl -k | tail. Nothing shows that the "
        "outbox itself is damaged: start again, and move nothing aside"
    )


class Damaged(OutboxError):
    """It is no database of ours, or no longer."""

    remedy = (
        "Move it aside and begin anew (answers that still lie in the roots are then sent again "
        "under the same ids)"
    )


class Newer(OutboxError):
    """A later version of this program wrote it."""

    remedy = "install the version that wrote it"
    exit_code = _EX_CONFIG


class Older(OutboxError):
    """An earlier version of this program wrote it; the daemon migrates it when it starts."""

    remedy = "the daemon was not restarted since the upgrade, and migrates it when it starts"


class Unwritable(OutboxError):
    """It may not be written."""

    remedy = "all that is there must be that user's (chown -R); or see PALIADIN_STATE_DIR"
    exit_code = _EX_CONFIG


# --- intake -------------------------------------------------------------------------------


class Unreadable(SidecarError):
    """The system would not let us see the file. It is worth another try.

    Attributes:
        errno_name: why, as errno.h names it.
        is_final: the file was asked by its own descriptor, which will never answer again; opening
            its name again may work.
    """

    def __init__(self, name: str, exc: OSError) -> None:
        super().__init__(name, exc.errno)
        self.errno_name = errno.errorcode.get(exc.errno or 0, "unknown")
        self.is_final = not name and exc.errno in _FINAL


class Changed(SidecarError):
    """The file was changed while it was read: begin again."""


class WatchFailed(SidecarError):
    """A directory's file events have ended, until the watch is made anew.

    Known causes: a file name that is not UTF-8 (for watchfiles), a directory that was removed, the
    system's limit of watches.
    """


# --- delivery -----------------------------------------------------------------------------


class ConnectionLost(SidecarError):
    """The connection was opened, and ended without an answer."""


class EarlyAnswer(SidecarError):
    """A 2xx came before the receiver had the whole request: something else answers there."""


# --- metrics and commands -----------------------------------------------------------------


class NotServed(SidecarError):
    """The metrics cannot be read or served; the daemon tries again.

    Args:
        address: host and port, joined by a colon.
        why: the reason.
    """

    remedy = "must be an address of this host and a port that is free; it is tried again"

    def __init__(self, address: str, why: str) -> None:
        super().__init__(address, why)

    def __str__(self) -> str:
        address, why = self.args
        return f"PALIADIN_METRICS='{address}': cannot be listened at ({why}): {self.remedy}"


class Replaced(SidecarError):
    """The outbox that was followed is no longer the one in its place."""

    remedy = "follow the one that is there now"

    def __str__(self) -> str:
        return f"{self.args[0]} was moved aside"
