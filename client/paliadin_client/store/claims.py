"""Claims names across the processes of one host; the kernel frees those of a process that dies.

A claim is a lock on one byte of a file, and the name says on which: nothing is written for it, and
no file is made.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
import threading
import time
import weakref
from hashlib import blake2b
from pathlib import Path

_BUSY = {errno.EAGAIN, errno.EACCES}
_PRIVATE = 0o600
#: How long, in seconds, it may go unnoticed that the file was removed.
_CHECK_S = 0.1
#: These calls take a microsecond; Python's own let the other threads go on meanwhile, and to come
#: back from that takes up to a hundred.
_libc = ctypes.PyDLL(None, use_errno=True)


class Claims:
    """What this object has claimed. Another one with the same path is like another process.

    Args:
        path: of the file, made where there is none, for its user alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._check_at = 0.0
        # A file's locks never stand in the way of the one who holds the file, so a claim of our
        # own is found here.
        self._names: set[str] = set()
        self._lock = threading.Lock()
        _all.add(self)

    def take(self, *names: str) -> bool:
        """Claim all of `names`, or none where one of them is claimed already.

        Raises:
            OSError: the file cannot be made or locked.
        """
        with self._lock:
            if not self._names.isdisjoint(names):
                return False
            file = self._current_file()
            locked: list[str] = []
            try:
                for name in names:
                    _set_lock(file, name, fcntl.F_WRLCK)
                    locked.append(name)
            except OSError as exc:
                for name in locked:
                    _set_lock(file, name, fcntl.F_UNLCK)
                if exc.errno in _BUSY:
                    return False
                raise
            self._names.update(names)
            return True

    def drop(self, *names: str) -> None:
        """Let others claim `names`, which were taken."""
        with self._lock:
            self._names.difference_update(names)
            if self._file is not None:
                for name in names:
                    _set_lock(self._file, name, fcntl.F_UNLCK)

    def touch(self) -> None:
        """Let whoever watches the file know that something has happened. It may go unheard.

        It is opened and closed, of which the kernel notifies and which waits for no disk.
        """
        # Elsewhere a file that is closed takes the process's locks with it, and nobody watches.
        if sys.platform == "linux":
            flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC
            if (file := _libc.open(os.fsencode(self.path), flags, _PRIVATE)) >= 0:
                _libc.close(file)

    def close(self) -> None:
        """Let go of the file, and of all claims across processes."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def forget(self) -> None:
        """In the child of a fork: what is claimed is the parent's, and ends with the parent."""
        self._lock = threading.Lock()
        self._names.clear()
        self.close()

    def _current_file(self) -> int:
        # Somebody may have removed it, together with the database: then others lock a new one.
        now = time.monotonic()
        if self._file is not None and (now < self._check_at or self._is_current(self._file)):
            return self._file
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
        self._check_at = now + _CHECK_S
        return self._file

    def _is_current(self, file: int) -> bool:
        self._check_at = time.monotonic() + _CHECK_S
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False


_all: weakref.WeakSet[Claims] = weakref.WeakSet()


def _after_fork() -> None:
    for each in _all:
        each.forget()


os.register_at_fork(after_in_child=_after_fork)


def _set_lock(file: int, name: str, kind: int) -> None:
    # 62 bits: two names that share a byte are no error, since the second one is only refused.
    byte = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") >> 2
    if sys.platform == "linux":
        # It belongs to the open file, and not, like POSIX's own, to the process: so two objects of
        # one process are apart, and none ends because another closes a file of the same name.
        lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
        if _libc.fcntl(file, fcntl.F_OFD_SETLK, lock) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    else:
        how = fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB
        fcntl.lockf(file, how, 1, byte)
