"""The state directory: who uses it now, whether it ever held an outbox, moving one aside."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from paliadin_sidecar.errors import Locked, StateDirBlocked, StateDirError, StateDirFull
from paliadin_sidecar.host import storage

_LOCK = "sidecar.lock"
#: A command that asks whether the daemon lives holds the lock for an instant.
_TRIES, _TRY_S = 20, 0.05
_JOURNAL_KEY, _JOURNAL_KEY_BYTES = "journal.key", 32
_HELD_AN_OUTBOX = b"an outbox was made here\n"
#: What a flush of names fails with; whatever else there is, its file system cannot do it.
_FLUSH_FAILED = storage.NO_ROOM | {errno.EIO}


def prepare(path: Path) -> None:
    """Make the directory, for us alone, where there is none.

    Raises:
        StateDirError: it cannot be made or written.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise _error(path, "made", exc) from None
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise StateDirError(path, f"cannot be written by user {storage.user_name(os.geteuid())}")


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Be the only daemon on this directory.

    Yields:
        Whether an outbox was ever made here. One that must be made now then follows one that
        was lost (also one of which only the log was), and what is in the roots may be
        undelivered.

    Raises:
        Locked: another one is.
        StateDirError: the lock can be neither made nor read.
    """
    try:
        fd = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise _error(path / _LOCK, "made", exc) from None
    try:
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise Locked(path) from None
                time.sleep(_TRY_S)  # nothing signals that a lock is free, short of waiting for it
        try:
            held_one = bool(os.pread(fd, 1, 0))
        except OSError as exc:
            raise _error(path / _LOCK, "read", exc) from None
        yield held_one
    finally:
        storage.close_fd(fd)


def remember_outbox(path: Path) -> None:
    """Note that an outbox was made here. Call it once the outbox is there, under the lock.

    From here on the directory itself survives a loss of power, and what has its name in it now.

    Raises:
        StateDirError: it cannot be written down.
    """
    try:
        with (path / _LOCK).open("r+b", buffering=0) as file:
            if not file.read(1):
                # SQLite flushes what it writes, but not where its directory has its own name.
                for directory in (path, *path.absolute().parents):
                    _flush_names(directory)
                file.write(_HELD_AN_OUTBOX)
            # Also what a process wrote that was killed before this.
            os.fsync(file.fileno())
    except OSError as exc:
        raise _error(path / _LOCK, "written", exc) from None


def journal_key(path: Path, *, create: bool = False) -> bytes:
    """The key of what the journal shows of a content; it stays when the outbox is moved aside.

    Where it can be neither read nor made, it is this process's own.

    Args:
        path: the state directory.
        create: make one where there is none.
    """
    file = path / _JOURNAL_KEY
    try:
        key = file.read_bytes()
    except OSError:
        key = b""
    if len(key) >= _JOURNAL_KEY_BYTES:
        return key
    key = os.urandom(_JOURNAL_KEY_BYTES)
    if create:
        with suppress(OSError):
            part = path / f"{_JOURNAL_KEY}.new"
            part.unlink(missing_ok=True)  # half of one, from when the disk was full
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as new:
                new.write(key)
                new.flush()
                os.fsync(fd)  # else a loss of power may leave zeros, a key that everybody has
            part.replace(file)
            _flush_names(path)
    return key


def is_alive(path: Path) -> bool:
    """Whether a daemon holds the lock of this directory.

    Raises:
        PermissionError: this user may not see it.
        StateDirError: nobody can.
    """
    try:
        fd = os.open(path / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise
    except OSError as exc:
        raise _error(path / _LOCK, "read", exc) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        storage.close_fd(fd)
    return False


def quarantine(path: Path, outbox: str) -> Path | None:
    """Move an outbox aside, with the files that belong to it; where to, None if there is none.

    Raises:
        StateDirError: it cannot be moved.
    """
    if not (path / outbox).exists():
        return None
    # To the microsecond: a second one must never take the place of the first.
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = path / f"{outbox}.aside-{stamp}"
    log = path / f"{outbox}-wal"
    try:
        # What was committed last is in the log alone. It has both names for a while, so that it
        # is beside its outbox wherever a loss of power leaves that.
        if log.exists():
            _link(log, path / f"{aside.name}-wal")
            _flush_names(path)
        (path / outbox).rename(aside)
        _flush_names(path)
        for part in (log, path / f"{outbox}-shm"):
            part.unlink(missing_ok=True)
    except OSError as exc:
        raise _error(path / outbox, "moved aside", exc) from None
    return aside


def _link(file: Path, to: Path) -> None:
    try:
        to.hardlink_to(file)
    except OSError:  # FAT has none
        file.rename(to)


def _flush_names(directory: Path) -> None:
    # A directory that may not be read was not made by us.
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno in _FLUSH_FAILED:
            raise
    finally:
        os.close(fd)


def _error(path: Path, done: str, exc: OSError) -> StateDirError:
    detail = f"cannot be {done} ({storage.explain(exc, path.parent)})"
    if exc.errno in storage.NO_ROOM:
        return StateDirFull(path, detail)
    if exc.errno in storage.PASSES:
        return StateDirBlocked(path, detail)
    return StateDirError(path, detail)
