"""A FUSE mount whose server is a process of its own: it fails as it is asked to, hangs and dies.

Run as a program, it is the server. It speaks the kernel's protocol (linux/fuse.h) itself, since
a library would hide the errors that are asked for.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
import subprocess
import sys
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT_NODE = 1
_IN = struct.Struct("<IIQQIIII")  # fuse_in_header
_OUT = struct.Struct("<IiQ")  # fuse_out_header
ATTR = struct.Struct("<6Q10I")  # fuse_attr
_MAX_WRITE = 128 * 1024
#: Version 7.31, no flags, and sizes.
INIT_REPLY = struct.pack("<4I2H2I36x", 7, 31, 2**17, 0, 12, 10, _MAX_WRITE, 1)


class Op(IntEnum):
    """What the kernel asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    RENAME2 = 45


class FuseMount:
    """One directory of regular files, mounted until the block ends.

    Needs root and `/dev/fuse`; without them the test is skipped.

    Args:
        path: where to mount it; the files are those of the directory `<path>.files`.
        user: user id of whoever serves it.
    """

    def __init__(self, path: Path, *, user: int = 0) -> None:
        self.path = path
        self.files = path.with_name(f"{path.name}.files")
        self._fails = path.with_name(f"{path.name}.fails")
        self._user = user
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        for folder in (self.path, self.files):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.fail()
        self.serve()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self.unmount()

    def fail(self, *which: Op, error: int = errno.EIO) -> None:
        """Answer these requests with this error from now on, and all others well."""
        new = self._fails.with_name("fails.new")
        new.write_text("".join(f"{op:d} {error}\n" for op in which), encoding="ascii")
        new.rename(self._fails)

    def serve(self) -> None:
        """Mount it, by a new server."""
        if os.geteuid() != 0:
            pytest.skip("needs root, to mount")
        args = [str(self.path), str(self.files), str(self._fails), str(self._user)]
        command = [sys.executable, __file__, *args]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        said = self._server.stdout.readline()
        if said != "mounted\n":
            pytest.skip(f"needs a FUSE mount, which this machine refuses: {said}")

    def die(self) -> None:
        """End the server, and leave the mount behind (ENOTCONN)."""
        if self._server is not None:
            self._server.kill()
            self._server.communicate()

    def hang(self) -> None:
        """Answer nothing from now on, until `resume`."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Answer again, also what was asked meanwhile."""
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def unmount(self) -> None:
        """Take the mount away; what was below it shows again."""
        subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)


class _Server:
    def __init__(self, files: Path, fails: Path) -> None:
        self._files, self._fails = files, fails
        self._names: list[str] = [""]  # by node, from _ROOT_NODE on

    def reply(self, op: int, node: int, args: bytes) -> bytes | int | None:
        """The answer's body, or an error number, or None where none is expected."""
        if op in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT):
            return None
        for line in self._fails.read_text(encoding="ascii").splitlines():
            failing, error = map(int, line.split())
            if op == failing:
                return error
        try:
            return self._reply(op, node, args)
        except OSError as exc:
            return exc.errno or errno.EIO

    def _reply(  # noqa: PLR0911 - one return for each kind of request
        self, op: int, node: int, args: bytes
    ) -> bytes | int:
        match op:
            case Op.INIT:
                return INIT_REPLY
            case Op.LOOKUP:
                name = os.fsdecode(args.rstrip(b"\0"))
                (self._files / name).lstat()
                node = self._node(name)
                return struct.pack("<4Q2I", node, 0, 0, 0, 0, 0) + self._attr(node)
            case Op.GETATTR:
                return struct.pack("<Q2I", 0, 0, 0) + self._attr(node)
            case Op.OPEN | Op.OPENDIR:
                return struct.pack("<Q2I", 0, 0, 0)
            case Op.READ:
                _, offset, size = struct.unpack_from("<2QI", args)
                return self._path(node).read_bytes()[offset : offset + size]
            case Op.READDIR:
                return self._entries(*struct.unpack_from("<2QI", args)[1:])
            case Op.RELEASE | Op.RELEASEDIR | Op.FLUSH:
                return b""
        return errno.ENOSYS

    def _node(self, name: str) -> int:
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name) + _ROOT_NODE

    def _path(self, node: int) -> Path:
        return self._files / self._names[node - _ROOT_NODE]

    def _attr(self, node: int) -> bytes:
        info = self._path(node).lstat()
        times = [info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns]
        return ATTR.pack(
            node, info.st_size, info.st_blocks,
            *(t // 10**9 for t in times), *(t % 10**9 for t in times),
            info.st_mode, info.st_nlink, info.st_uid, info.st_gid, 0, 4096, 0,
        )  # fmt: skip

    def _entries(self, offset: int, size: int) -> bytes:
        names = sorted(path.name for path in self._files.iterdir())
        nodes = [(name, self._node(name), stat.S_IFREG) for name in names]
        return directory_entries(nodes, offset, size)


def directory_entries(entries: list[tuple[str, int, int]], offset: int, size: int) -> bytes:
    """What READDIR is answered: as many of these names, nodes and modes as have room."""
    found = b""
    for at, (name, node, mode) in enumerate(entries[offset:], offset + 1):
        raw = os.fsencode(name)
        entry = struct.pack("<2Q2I", node, at, len(raw), stat.S_IFMT(mode) >> 12) + raw
        entry += bytes(-len(entry) % 8)
        if len(found) + len(entry) > size:
            break
        found += entry
    return found


def mount_device(path: Path, user: int = 0) -> int:
    """Mount at this path what `answer_requests` answers for; returns the device's descriptor.

    Raises:
        OSError: this machine refuses it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id={user},group_id={user},allow_other".encode()
    if libc.mount(b"paliadin-test", os.fsencode(path), b"fuse", 0, options):
        os.close(device)
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return device


def answer_requests(device: int, reply: Callable[[int, int, bytes], bytes | int | None]) -> None:
    """Answer what the kernel asks for, until it is unmounted.

    Args:
        device: of `mount_device`.
        reply: takes the request's `Op`, its node and its arguments; returns the answer's body, or
            an error number, or None where none is expected.
    """
    while True:
        try:
            request = os.read(device, _MAX_WRITE + 4096)
        except OSError as exc:
            if exc.errno == errno.ENODEV:  # unmounted
                return
            continue  # one that was interrupted
        _, op, unique, node, *_ = _IN.unpack_from(request)
        answer = reply(op, node, request[_IN.size :])
        if answer is None:
            continue
        body, error = (b"", -answer) if isinstance(answer, int) else (answer, 0)
        with suppress(FileNotFoundError):  # whoever asked has gone
            os.write(device, _OUT.pack(_OUT.size + len(body), error, unique) + body)


def _main(path: str, files: str, fails: str, user: str) -> None:
    try:
        device = mount_device(Path(path), int(user))
    except OSError as exc:
        print(exc.strerror)
        return
    print("mounted", flush=True)
    answer_requests(device, _Server(Path(files), Path(fails)).reply)


if __name__ == "__main__":
    _main(*sys.argv[1:])
