"""The only place with descriptors of other people's files: open, observe, read.

Nothing here writes, creates or removes anything.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from datetime import UTC, datetime

from paliadin_contract.trailer import TAIL_BYTES, read_tail
from paliadin_sidecar.errors import Changed, Unreadable
from paliadin_sidecar.host.storage import close_fd, user_name
from paliadin_sidecar.intake.fingerprint import FileSnapshot, Fingerprint

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def ignore_lease_breaks() -> None:
    """Survive an opener that meets our lease in the instant that we hold it.

    The kernel sends SIGIO to a lease's holder, which ends a process by default. Call it once,
    in the main thread, before the first `TurnFile.inspect`.
    """
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def fingerprint_at(directory: int, name: str) -> Fingerprint | None:
    """The fingerprint of what is under this name now, without opening it; None for nothing.

    Raises:
        Unreadable: the system would not say.
    """
    try:
        return Fingerprint.of(os.stat(name, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise Unreadable(name, exc) from None


class TurnFile:
    """An open file of one name: what is behind the name later does not matter to it.

    Args:
        directory: descriptor of the root.
        name: name in the root.
        owner: user id that the file must have.
        leases_on: the device on which a lease proves that nobody writes a file, see
            `filesystem.device_with_leases`; a file on any other may be written unseen.

    Raises:
        FileNotFoundError: there is no such name (any more).
        Unreadable: the system would not open it.
    """

    def __init__(
        self, directory: int, name: str, owner: int, *, leases_on: int | None = None
    ) -> None:
        self._owner = owner
        self._leases_on = leases_on
        self._fd: int | None = None
        try:
            # Asked before it is opened: opening a FIFO or a device is an act of its own.
            self._unopened_stat = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if self._is_acceptable(self._unopened_stat):
                self._fd = os.open(name, _FLAGS, dir_fd=directory)
        except FileNotFoundError:
            raise
        except OSError as exc:
            # A link since it was asked is refused as one, and not opened.
            link = _link_at(directory, name) if exc.errno == errno.ELOOP else None
            if link is None:
                raise Unreadable(name, exc) from None
            self._unopened_stat = link

    def close(self) -> None:
        """Let go of the descriptor. More than once is allowed."""
        if self._fd is not None:
            close_fd(self._fd)
            self._fd = None

    @property
    def inode(self) -> tuple[int, int]:
        """(device, inode) of what was opened.

        Raises:
            Unreadable: the disk would not answer.
        """
        try:
            info = self._stat()
        except OSError as exc:
            raise Unreadable("", exc) from None
        return info.st_dev, info.st_ino

    def inspect(self) -> FileSnapshot:
        """Observe without changing anything.

        Raises:
            Unreadable: the disk would not answer.
        """
        try:
            info = self._stat()
            if self._fd is None or not self._is_acceptable(info):
                why = _why_not_ours(info, self._owner)
                return FileSnapshot(Fingerprint.of(info), trusted=False, why=why)
            being_written = _being_written(self._fd)
            if info.st_dev != self._leases_on:
                being_written = being_written or None
            tail = os.pread(self._fd, TAIL_BYTES, max(0, info.st_size - TAIL_BYTES))
        except OSError as exc:
            raise Unreadable("", exc) from None
        ended, has_text = read_tail(tail)
        return FileSnapshot(
            Fingerprint.of(info),
            trusted=True,
            being_written=being_written,
            ended=ended,
            # A file that is longer than its tail has text, unless it is a bare trailer that
            # no agent writes; then it is an answer like any other.
            has_text=info.st_size > TAIL_BYTES or has_text,
        )

    def read(self, snapshot: FileSnapshot, *, allow_open_writer: bool = False) -> bytes:
        """The whole file, if it is still as it was then.

        Args:
            snapshot: what was seen last.
            allow_open_writer: also where somebody has it open for writing.

        Raises:
            Changed: it is not, or somebody opened it for writing.
            Unreadable: the disk would not answer.
        """
        if self._fd is None:
            raise Changed
        try:
            chunks, at, size = [], 0, snapshot.fingerprint.size
            while chunk := os.pread(self._fd, size + 1 - at, at):
                chunks.append(chunk)
                at += len(chunk)
            now = Fingerprint.of(os.fstat(self._fd))
            changed = now.content_may_differ(snapshot.fingerprint)
            opened = not allow_open_writer and _being_written(self._fd)
            if at != size or changed or opened:
                raise Changed
        except OSError as exc:
            raise Unreadable("", exc) from None
        return b"".join(chunks)

    def _stat(self) -> os.stat_result:
        return self._unopened_stat if self._fd is None else os.fstat(self._fd)

    def _is_acceptable(self, info: os.stat_result) -> bool:
        return stat.S_ISREG(info.st_mode) and info.st_uid == self._owner


def _link_at(directory: int, name: str) -> os.stat_result | None:
    try:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    return info if stat.S_ISLNK(info.st_mode) else None


def _why_not_ours(info: os.stat_result, owner: int) -> str:
    if stat.S_ISREG(info.st_mode):
        return (
            f"owner {info.st_uid} ({user_name(info.st_uid)}), "
            f"wanted {owner} ({user_name(owner)}), by PALIADIN_OWNER"
        )
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe"}
    return f"{kinds.get(stat.S_IFMT(info.st_mode), 'a device or a socket')}, no regular file"


def _being_written(fd: int) -> bool | None:
    # A read lease is given exactly when nobody has the file open for writing (fcntl(2)).
    # It is dropped at once: while it is held, an opener would wait for us.
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as exc:
        if exc.errno == errno.EAGAIN:
            return True
        return None  # not ours and no CAP_LEASE (EACCES), or a file system without (EINVAL)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def completed_at(modified_ns: int, now: datetime) -> datetime:
    """A file's modification time, or `now` where that is in the future or no date at all."""
    try:
        found = datetime.fromtimestamp(modified_ns / 1e9, UTC)
    except (ValueError, OverflowError, OSError):
        return now
    return min(found, now)
