"""A disk that knows what of it was flushed, and what a loss of power leaves of it.

It promises no more than POSIX does: a flushed file has the content that it had then, a flushed
directory the names. What was not flushed may be there or not, each page and each name for itself.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from pathlib import Path

ROOT = 1  #: the number of the root directory
_PAGE = 4096


class Loss(StrEnum):
    """What a loss of power takes of what was not flushed."""

    ALL = "all"
    TORN = "torn"  #: each page of a file and each change of a name stays or goes by chance
    LATEST = "latest"  #: what came after some moment, as a disk that keeps the order


@dataclass(frozen=True)
class _Change:
    at: int
    apply: Callable[[Any], None]


@dataclass(eq=False)
class Node:
    """A file or a directory.

    Attributes:
        mode: as `st_mode`.
        content: the bytes of a file, or a directory's names, each with the number of its node.
        flushed: the same as of the last flush.
        pending: what was changed since.
    """

    mode: int
    content: Any
    flushed: Any
    owner: tuple[int, int] = (0, 0)
    mtime_ns: int = field(default_factory=time.time_ns)
    pending: list[_Change] = field(default_factory=list)

    @property
    def is_directory(self) -> bool:
        """Whether it has names."""
        return stat.S_ISDIR(self.mode)


class Disk:
    """Files and directories in memory; each is known by its number."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self._last = ROOT - 1
        self._changes = 0
        self._new(stat.S_IFDIR | 0o755)

    # --- what is done with it -------------------------------------------------------------

    def make(self, directory: int, name: str, mode: int) -> int:
        """A new file or directory; returns its number."""
        number = self._new(mode)
        self._change(directory, _named(name, number))
        return number

    def write(self, file: int, offset: int, data: bytes) -> None:
        """Write a file; each page that this touches reaches the disk for itself.

        So does the file's new length, and before its bytes, as on ext4 and XFS.
        """
        if len(self.nodes[file].content) < offset + len(data):
            self.resize(file, offset + len(data))
        at = 0
        while at < len(data):
            size = _PAGE - (offset + at) % _PAGE
            self._change(file, _written(offset + at, data[at : at + size]))
            at += size

    def resize(self, file: int, size: int) -> None:
        """Cut a file, or let it grow by zeros."""
        self._change(file, _resized(size))

    def link(self, directory: int, name: str, number: int) -> None:
        """Give a file another name."""
        self._change(directory, _named(name, number))

    def remove(self, directory: int, name: str) -> None:
        """Take a name away."""
        self._change(directory, _named(name, None))

    def rename(self, directory: int, name: str, to: int, new: str) -> None:
        """Rename; within a directory this is one change."""
        number = self.nodes[directory].content[name]
        if directory == to:
            self._change(directory, _named(name, None, new, number))
        else:
            self._change(to, _named(new, number))
            self._change(directory, _named(name, None))

    def flush(self, number: int) -> None:
        """Put on the disk what was changed of this file or directory, and of no other."""
        node = self.nodes[number]
        for change in node.pending:
            change.apply(node.flushed)
        node.pending.clear()

    # --- the loss of power ----------------------------------------------------------------

    def left(self, loss: Loss, rng: random.Random) -> Disk:
        """What is there when the power is back; this disk stays as it is."""
        until = rng.randint(0, self._changes)
        share = rng.random()

        def stays(change: _Change) -> bool:
            if loss is Loss.LATEST:
                return change.at <= until
            return loss is Loss.TORN and rng.random() < share

        found = Disk()
        found._last = self._last
        names = [ROOT]
        for number in names:  # grows meanwhile
            node = self.nodes[number]
            content = type(node.flushed)(node.flushed)
            for change in node.pending:
                if stays(change):
                    change.apply(content)
            if node.is_directory:
                names += sorted(set(content.values()) - set(names))
            flushed = type(content)(content)
            found.nodes[number] = Node(node.mode, content, flushed, node.owner, node.mtime_ns)
        return found

    def put(self, folder: Path, number: int = ROOT) -> None:
        """Write what is there into a real directory."""
        for name, each in self.nodes[number].content.items():
            node, path = self.nodes[each], folder / name
            if node.is_directory:
                path.mkdir(stat.S_IMODE(node.mode))
                self.put(path, each)
            else:
                path.write_bytes(node.content)
                path.chmod(stat.S_IMODE(node.mode))

    def _new(self, mode: int) -> int:
        self._last += 1
        kind = dict if stat.S_ISDIR(mode) else bytearray
        self.nodes[self._last] = Node(mode, kind(), kind())
        return self._last

    def _change(self, number: int, apply: Callable[[Any], None]) -> None:
        self._changes += 1
        node = self.nodes[number]
        apply(node.content)
        node.pending.append(_Change(self._changes, apply))
        node.mtime_ns = time.time_ns()


def _named(*pairs: str | int | None) -> Callable[[dict[str, int]], None]:
    def apply(names: dict[str, int]) -> None:
        for name, number in zip(pairs[::2], pairs[1::2], strict=True):
            assert isinstance(name, str)
            if number is None:
                names.pop(name, None)
            else:
                assert isinstance(number, int)
                names[name] = number

    return apply


def _written(offset: int, data: bytes) -> Callable[[bytearray], None]:
    def apply(content: bytearray) -> None:
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data

    return apply


def _resized(size: int) -> Callable[[bytearray], None]:
    def apply(content: bytearray) -> None:
        del content[size:]
        content.extend(bytes(size - len(content)))

    return apply
