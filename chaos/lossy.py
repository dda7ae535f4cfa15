"""The volatile disk, mounted: a FUSE file system that forgets what was not flushed.

Run as a program, it is the server. The kernel keeps no written page back from it, since it is
asked for no write-back cache; and as it is mounted anew after a loss of power, no page that the
kernel has kept survives one.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import signal
import stat
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from support.fuse import (
    ATTR,
    INIT_REPLY,
    Op,
    answer_requests,
    directory_entries,
    mount_device,
)

from chaos.volatile import Disk, Loss, Node

if TYPE_CHECKING:
    from collections.abc import Iterator

_SETATTR = struct.Struct("<2I6Q8I")
_FATTR_MODE, _FATTR_UID, _FATTR_GID, _FATTR_SIZE = 1, 2, 4, 8
_KEEP_CACHE = 2
#: How these end is not reported.
_NEVER_FAIL = {Op.INIT, Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT, Op.DESTROY}


class LossyDisk:
    """A mount of an empty volatile disk, until the block ends. Needs root and `/dev/fuse`.

    Args:
        path: the directory to mount it at.
        recorded: where all that was done with it is written, for `replayed`.
    """

    def __init__(self, path: Path, recorded: Path | None = None) -> None:
        self.path, self._recorded = path, recorded

    def __enter__(self) -> Self:
        self.path.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "chaos.lossy", str(self.path), str(self._recorded or "")]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._expect_mounted()
        return self

    def __exit__(self, *_: object) -> None:
        # Whoever still uses it keeps no test from its end.
        subprocess.run(["umount", "--lazy", str(self.path)], check=False)
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()

    def lose_power(self, loss: Loss, rng: random.Random) -> None:
        """Forget what was not flushed; nobody may use it any more. It is there again then."""
        subprocess.run(["umount", str(self.path)], check=True)
        assert self._server.stdin is not None
        self._server.stdin.write(f"{loss} {rng.random()}\n")
        self._server.stdin.flush()
        self._expect_mounted()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Within the block all that it is asked for fails with EIO."""
        self._server.send_signal(signal.SIGUSR1)
        yield
        self._server.send_signal(signal.SIGUSR1)

    def die(self) -> None:
        """From here on all that it is asked for fails, and it is never there again."""
        self._server.kill()
        self._server.wait()

    def _expect_mounted(self) -> None:
        assert self._server.stdout is not None
        said = self._server.stdout.readline()
        if said != "mounted\n":
            raise OSError(f"the server said {said!r}")


def replayed(recorded: Path) -> Iterator[Disk]:
    """The disk after each thing that was done with it; it is the same one all the time."""
    disk = Disk()
    for what, args in pickle.loads(recorded.read_bytes()):
        getattr(disk, what)(*args)
        yield disk


class _Server:
    def __init__(self, disk: Disk, recorded: list[tuple[str, tuple[Any, ...]]]) -> None:
        self.disk, self._recorded = disk, recorded
        self._fails = False
        signal.signal(signal.SIGUSR1, self._toggle)

    def _toggle(self, *_: object) -> None:
        self._fails = not self._fails

    def reply(self, op: int, number: int, args: bytes) -> bytes | int | None:
        """The answer's body, or an error number, or None where none is expected."""
        if self._fails and op not in _NEVER_FAIL:
            return errno.EIO
        try:
            return self._reply(op, number, args)
        except KeyError:
            return errno.ENOENT
        except OSError as exc:
            return exc.errno or errno.EIO

    def _do(self, what: str, *args: Any) -> Any:  # noqa: ANN401 - each request has types of its own
        self._recorded.append((what, args))
        return getattr(self.disk, what)(*args)

    def _reply(  # noqa: C901, PLR0911, PLR0912 - a case for each request that the kernel makes
        self, op: int, number: int, args: bytes
    ) -> bytes | int | None:
        node = self.disk.nodes.get(number) or Node(0, b"", b"")
        match op:
            case Op.FORGET | Op.BATCH_FORGET | Op.INTERRUPT:
                return None
            case Op.INIT:
                return INIT_REPLY
            case Op.LOOKUP:
                return self._entry(node.content[_names(args)[0]])
            case Op.GETATTR:
                return bytes(16) + self._attr(number)
            case Op.SETATTR:
                return self._set_attributes(number, node, args)
            case Op.MKDIR:
                mode, _ = struct.unpack_from("<2I", args)
                return self._entry(self._make(number, _names(args[8:])[0], stat.S_IFDIR | mode))
            case Op.CREATE:
                _, mode, _, _ = struct.unpack_from("<4I", args)
                made = self._make(number, _names(args[16:])[0], stat.S_IFREG | mode)
                return self._entry(made) + _opened()
            case Op.OPEN | Op.OPENDIR:
                return _opened()
            case Op.READ:
                _, offset, size = struct.unpack_from("<2QI", args)
                return bytes(node.content[offset : offset + size])
            case Op.WRITE:
                _, offset, size = struct.unpack_from("<2QI", args)
                self._do("write", number, offset, args[40 : 40 + size])
                return struct.pack("<2I", size, 0)
            case Op.FSYNC | Op.FSYNCDIR:
                self._do("flush", number)
                return b""
            case Op.UNLINK | Op.RMDIR:
                self._remove(number, node, _names(args)[0])
                return b""
            case Op.RENAME | Op.RENAME2:
                (to,) = struct.unpack_from("<Q", args)
                name, new = _names(args[16 if op == Op.RENAME2 else 8 :])
                if op == Op.RENAME2 and struct.unpack_from("<I", args, 8) != (0,):
                    return errno.EINVAL
                self._do("rename", number, name, to, new)
                return b""
            case Op.LINK:
                (linked,) = struct.unpack_from("<Q", args)
                self._do("link", number, _names(args[8:])[0], linked)
                return self._entry(linked)
            case Op.READDIR:
                _, offset, size = struct.unpack_from("<2QI", args)
                listed = [
                    (name, each, self.disk.nodes[each].mode)
                    for name, each in sorted(node.content.items())
                ]
                return directory_entries(listed, offset, size)
            case Op.STATFS:
                return struct.pack(
                    "<5Q4I24x", 2**20, 2**19, 2**19, 2**20, 2**19, 4096, 255, 4096, 0
                )
            case Op.RELEASE | Op.RELEASEDIR | Op.FLUSH | Op.DESTROY:
                return b""
        return errno.ENOSYS

    def _make(self, directory: int, name: str, mode: int) -> int:
        if name in self.disk.nodes[directory].content:
            raise FileExistsError(errno.EEXIST, name)
        made: int = self._do("make", directory, name, mode)
        return made

    def _remove(self, number: int, node: Node, name: str) -> None:
        gone = self.disk.nodes[node.content[name]]
        if gone.is_directory and gone.content:
            raise OSError(errno.ENOTEMPTY, name)
        self._do("remove", number, name)

    def _set_attributes(self, number: int, node: Node, args: bytes) -> bytes:
        valid, _, _, size, *_, mode, _, uid, gid, _ = _SETATTR.unpack_from(args)
        if valid & _FATTR_SIZE:
            self._do("resize", number, size)
        if valid & _FATTR_MODE:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        if valid & _FATTR_UID:
            node.owner = uid, node.owner[1]
        if valid & _FATTR_GID:
            node.owner = node.owner[0], gid
        return bytes(16) + self._attr(number)

    def _entry(self, number: int) -> bytes:
        # Neither names nor attributes may be remembered.
        return struct.pack("<4Q2I", number, 0, 0, 0, 0, 0) + self._attr(number)

    def _attr(self, number: int) -> bytes:
        node = self.disk.nodes[number]
        size = 0 if node.is_directory else len(node.content)
        seconds, rest = divmod(node.mtime_ns, 10**9)
        return ATTR.pack(
            number, size, (size + 511) // 512, *[seconds] * 3, *[rest] * 3,
            node.mode, 1, *node.owner, 0, 4096, 0,
        )  # fmt: skip


def _opened() -> bytes:
    return struct.pack("<Q2I", 0, _KEEP_CACHE, 0)


def _names(args: bytes) -> list[str]:
    return [os.fsdecode(name) for name in args.split(b"\0")[:-1]]


def _main(path: str, recorded: str) -> None:
    done: list[tuple[str, tuple[Any, ...]]] = []
    disk = Disk()
    while True:
        try:
            device = mount_device(Path(path))
        except OSError as exc:
            print(exc.strerror, flush=True)
            return
        print("mounted", flush=True)
        answer_requests(device, _Server(disk, done).reply)
        os.close(device)
        if not (order := sys.stdin.readline().split()):
            break
        disk = disk.left(Loss(order[0]), random.Random(order[1]))
    if recorded:
        Path(recorded).write_bytes(pickle.dumps(done))


if __name__ == "__main__":
    _main(*sys.argv[1:])
