"""Every way in which a file becomes complete under its name, or changes there.

Each is a function of the path of the turn file. Ways to appear find nothing there; ways to change
find a whole answer, and leave another one. Only `os` and the system's own calls are used, as a
writer in any language would.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from support.sidecar import TRAILER

if TYPE_CHECKING:
    from collections.abc import Callable


_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _AT_EMPTY_PATH, _RENAME_EXCHANGE = -100, 0x1000, 2


def content(path: Path) -> bytes:
    """What a way leaves in the file."""
    return f"Antwort {path.stem}{TRAILER}".encode()


#: What a way to change finds. It is as long as what all leave but those that say otherwise.
BEFORE = b"x" * 100


def _call(name: str, *args: int | bytes) -> None:
    if getattr(_LIBC, name)(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _outside(path: Path) -> Path:
    folder = path.parent.with_name("outside")
    folder.mkdir(exist_ok=True)
    made = folder / f"{path.stem}.tmp"
    made.write_bytes(content(path))
    return made


def _inside(path: Path) -> Path:
    made = path.with_suffix(".tmp")
    made.write_bytes(content(path))
    return made


def _write(path: Path) -> None:
    path.write_bytes(content(path))


def _rename(path: Path) -> None:
    _inside(path).rename(path)


def _rename_from_outside(path: Path) -> None:
    _outside(path).rename(path)


def _rename_exchange(path: Path) -> None:
    made = _inside(path)
    _call("renameat2", _AT_FDCWD, bytes(made), _AT_FDCWD, bytes(path), _RENAME_EXCHANGE)
    made.unlink()


def _link(path: Path) -> None:
    made = _inside(path)
    path.hardlink_to(made)
    made.unlink()


def _link_from_outside(path: Path) -> None:
    made = _outside(path)
    path.hardlink_to(made)
    made.unlink()


def _tmpfile(path: Path) -> None:
    fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, content(path))
    _call("linkat", fd, b"", _AT_FDCWD, bytes(path), _AT_EMPTY_PATH)
    os.close(fd)


def _tmpfile_read_only(path: Path) -> None:
    # No close reports it: whoever links has it open for reading only.
    fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, content(path))
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    _call("linkat", reading, b"", _AT_FDCWD, bytes(path), _AT_EMPTY_PATH)
    os.close(reading)


def _mapped(path: Path) -> None:
    data = content(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, len(data))
    with mmap.mmap(fd, len(data)) as view:
        os.close(fd)
        view[:] = data
        view.flush()


def _mapped_in_place(path: Path) -> None:
    # The content has the same length, so that no call shows a new one.
    data = content(path)
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, len(data)) as view:
        os.close(fd)
        view[:] = data
        view.flush()


def _fallocate(path: Path) -> None:
    data = content(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.posix_fallocate(fd, 0, len(data))
    os.ftruncate(fd, len(data))
    os.pwrite(fd, data, 0)
    os.close(fd)


def _copy_file_range(path: Path) -> None:
    made = _outside(path)
    source, fd = os.open(made, os.O_RDONLY), os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.copy_file_range(source, fd, made.stat().st_size)
    os.ftruncate(fd, made.stat().st_size)
    os.close(fd)
    os.close(source)


def _sendfile(path: Path) -> None:
    made = _outside(path)
    source, fd = os.open(made, os.O_RDONLY), os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.sendfile(fd, source, 0, made.stat().st_size)
    os.ftruncate(fd, made.stat().st_size)
    os.close(fd)
    os.close(source)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(content(path))


def _truncate(path: Path) -> None:
    os.truncate(path, 50)


def _chmod(path: Path) -> None:
    path.chmod(0o640)


def _utime(path: Path) -> None:
    os.utime(path, (1, 1))


def _utime_of_the_content(path: Path) -> None:
    # utimensat(2) with UTIME_OMIT for the access time, as `touch -m` does.
    times = struct.pack("<4q", 0, 0x3FFFFFFE, 2, 0)
    _call("utimensat", _AT_FDCWD, bytes(path), times, 0)


def _setfacl(path: Path) -> None:
    entries = ((0x01, 6, -1), (0x02, 4, 54321), (0x04, 4, -1), (0x10, 4, -1), (0x20, 0, -1))
    acl = b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + acl)


#: A whole answer comes under a name that was not there.
APPEAR: dict[str, Callable[[Path], None]] = {
    "write": _write,
    "append": _append,
    "rename": _rename,
    "rename from outside": _rename_from_outside,
    "link": _link,
    "link from outside": _link_from_outside,
    "O_TMPFILE": _tmpfile,
    "O_TMPFILE, linked later": _tmpfile_read_only,
    "mmap": _mapped,
    "fallocate": _fallocate,
    "copy_file_range": _copy_file_range,
    "sendfile": _sendfile,
}
#: What was there becomes another content.
CHANGE: dict[str, Callable[[Path], None]] = {
    "write": _write,
    "append": _append,
    "rename": _rename,
    "rename from outside": _rename_from_outside,
    "exchange": _rename_exchange,
    "mmap": _mapped_in_place,
    "copy_file_range": _copy_file_range,
    "sendfile": _sendfile,
    "truncate": _truncate,
}
#: What was there stays, and may now be read or trusted, or is to be looked at again.
TOUCH: dict[str, Callable[[Path], None]] = {
    "chmod": _chmod,
    "utime": _utime,
    "utime of the content": _utime_of_the_content,
    "setfacl": _setfacl,
    "unlink": Path.unlink,
}
