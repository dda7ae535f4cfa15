from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.users import NOBODY, ORDINARY, root_only, without_privilege
from support.writer import Writer

from paliadin_contract.trailer import TAIL_BYTES
from paliadin_sidecar.errors import Changed, Unreadable
from paliadin_sidecar.intake.fingerprint import FileSnapshot, Fingerprint
from paliadin_sidecar.intake.tokens import read_claims
from paliadin_sidecar.intake.turnfile import (
    TurnFile,
    completed_at,
    fingerprint_at,
    ignore_lease_breaks,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ME = os.geteuid()
NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
NOW_MS = int(NOW.timestamp()) * 1000
TRAILER = b"[paliadin-meta]\nused_tools: a\nrows_seen: 1\nclassifier_tag: b\n"
WHOLE = b"Yes.\n\n" + TRAILER
YEAR_20000 = 569_000_000_000


class Folder:
    """A directory and its descriptor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        os.close(self.fd)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def open(self, name: str = "t.txt", owner: int = ME) -> closing[TurnFile]:
        return closing(TurnFile(self.fd, name, owner, leases_on=self.path.stat().st_dev))

    def look(self, name: str = "t.txt", owner: int = ME) -> FileSnapshot:
        with self.open(name, owner) as file:
            return file.inspect()

    def claims(self, content: bytes) -> tuple[str, str] | None:
        (self / "t.jwt").write_bytes(content)
        return read_claims(self.fd, "t.jwt", ME)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Folder]:
    with closing(Folder(tmp_path)) as folder:
        yield folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """A directory for examples, which write the same file again and again."""
    with closing(Folder(tmp_path_factory.mktemp("scratch"))) as folder:
        yield folder


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- what is seen ---------------------------------------------------------------------------


def test_look(root: Folder) -> None:
    """An inspection finds all that the completion rule asks for."""
    path = root / "t.txt"
    path.write_bytes(WHOLE)
    info = path.stat()
    assert root.look() == FileSnapshot(
        fingerprint=Fingerprint.of(info),
        trusted=True,
        being_written=False,
        ended=True,
        has_text=True,
    )


@pytest.mark.parametrize(
    ("content", "ended", "has_text"),
    [
        (b"", False, False),
        (b" \n", False, False),
        (b"Yes.", False, True),
        (b"Yes.\n[paliadin-meta]\n", False, True),
        (b"Yes.\n" + TRAILER[:-1], False, True),
        (TRAILER, True, False),
        (b"\xff\xfe", False, True),
        (b"x" * TAIL_BYTES + b"\n" + TRAILER, True, True),
        ("ä".encode() * TAIL_BYTES + b"\n" + TRAILER, True, True),
        (b" " * TAIL_BYTES, False, False),
        (b" " * (TAIL_BYTES + 1), False, True),
    ],
)
def test_end_and_text(root: Folder, content: bytes, *, ended: bool, has_text: bool) -> None:
    """The end of a file shows whether it has ended; a long one counts as having text."""
    (root / "t.txt").write_bytes(content)
    look = root.look()
    assert (look.ended, look.has_text, look.fingerprint.size) == (ended, has_text, len(content))


def test_fingerprint_at(root: Folder) -> None:
    """Nothing has no fingerprint; a link has its own; what the system refuses is an error."""
    assert fingerprint_at(root.fd, "t.txt") is None
    (root / "target").write_bytes(b"a")
    (root / "t.txt").symlink_to("target")
    assert fingerprint_at(root.fd, "t.txt") not in (None, fingerprint_at(root.fd, "target"))
    with pytest.raises(Unreadable) as caught:
        fingerprint_at(root.fd, "x" * 300)
    assert caught.value.errno_name == "ENAMETOOLONG"


# --- what is opened -------------------------------------------------------------------------


def test_nothing_there(root: Folder) -> None:
    """A name that is not there (any more) is another error than one that cannot be opened."""
    with pytest.raises(FileNotFoundError):
        TurnFile(root.fd, "t.txt", ME)
    with pytest.raises(Unreadable) as caught:
        TurnFile(root.fd, "x" * 300, ME)
    assert caught.value.errno_name == "ENAMETOOLONG"


def test_not_readable() -> None:
    """A file of ours that we may not read is unreadable, and the error names why."""
    with tempfile.TemporaryDirectory() as name, closing(Folder(Path(name))) as folder:
        path = folder / "t.txt"
        path.write_bytes(WHOLE)
        path.chmod(0)
        os.chown(path, ORDINARY, -1)
        folder.path.chmod(0o755)
        with without_privilege():
            with pytest.raises(Unreadable) as caught:
                TurnFile(folder.fd, "t.txt", ORDINARY)
            with pytest.raises(Unreadable):
                read_claims(folder.fd, "t.txt", ORDINARY)
        assert caught.value.errno_name == "EACCES"


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock, closing(Folder(path.parent)) as folder:
        sock.bind(f"/proc/self/fd/{folder.fd}/{path.name}")  # a socket's path must be short


def foreign_at(path: Path) -> None:
    path.write_bytes(WHOLE)
    os.chown(path, NOBODY, -1)


STRANGE: dict[str, Callable[[Path], None]] = {
    "link": lambda path: path.symlink_to(__file__),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "fifo": os.mkfifo,
    "directory": lambda path: path.mkdir(),
    "socket": socket_at,
}
STRANGE_TO_ROOT: dict[str, Callable[[Path], None]] = {
    "character device": lambda path: os.mknod(path, 0o020600, os.makedev(1, 3)),
    "block device": lambda path: os.mknod(path, 0o060600, os.makedev(7, 0)),
    "file of another owner": foreign_at,
}


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, id=name) for name, make in STRANGE.items()),
        *(pytest.param(make, id=name, marks=root_only) for name, make in STRANGE_TO_ROOT.items()),
    ],
)
def test_untrusted(root: Folder, make: Callable[[Path], None]) -> None:
    """What is no regular file of the owner's is not even opened, not trusted and not read."""
    make(root / "t.txt")
    info = (root / "t.txt").lstat()
    before = descriptors()
    with root.open() as file:
        assert descriptors() == before
        look = file.inspect()
        assert file.inode == (info.st_dev, info.st_ino)
        assert look.fingerprint == fingerprint_at(root.fd, "t.txt")
        with pytest.raises(Changed):
            file.read(look)
    assert (look.trusted, look.ended, look.has_text) == (False, False, False)
    assert read_claims(root.fd, "t.txt", ME) is None


def test_hard_link(root: Folder) -> None:
    """Names are counted: a second one shows, and none is left once it is unlinked."""
    (root / "t.txt").write_bytes(WHOLE)
    os.link(root / "t.txt", root / "other")
    with root.open() as file:
        assert (file.inspect().trusted, file.inspect().fingerprint.names) == (True, 2)
        (root / "other").unlink()
        assert file.inspect().fingerprint.names == 1
        (root / "t.txt").unlink()
        assert file.inspect().fingerprint.names == 0


class Gap:
    """Does something between the stat of a name and what follows it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
        self._stat, self._acts = os.stat, [act]
        # The real calls on real files: only the moment between them is ours to choose.
        monkeypatch.setattr(os, "stat", self)

    def __call__(
        self, path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        found = self._stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        if self._acts:
            self._acts.pop()()
        return found


def test_a_link_since_it_was_looked_at(root: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that becomes a link before it is opened is not followed."""
    path = root / "t.txt"
    path.write_bytes(WHOLE)

    def swap() -> None:
        path.unlink()
        path.symlink_to(__file__)

    Gap(monkeypatch, swap)
    assert not root.look().trusted


def test_a_fifo_since_it_was_looked_at(root: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that becomes a FIFO before it is opened holds nobody up, and is not trusted."""
    path = root / "t.txt"
    path.write_bytes(WHOLE)

    def swap() -> None:
        path.unlink()
        os.mkfifo(path)

    Gap(monkeypatch, swap)
    with root.open() as file:
        look = file.inspect()
    assert not look.trusted


def test_gone_since_it_was_looked_at(root: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that goes before it is opened is not there."""
    path = root / "t.txt"
    path.write_bytes(WHOLE)
    Gap(monkeypatch, path.unlink)
    with pytest.raises(FileNotFoundError):
        TurnFile(root.fd, "t.txt", ME)


def test_close(root: Folder) -> None:
    """A descriptor is closed once, however often it is asked for, and no child inherits it."""
    (root / "t.txt").write_bytes(WHOLE)
    before = descriptors()
    file = TurnFile(root.fd, "t.txt", ME)
    assert descriptors() == before + 1
    assert file._fd is not None
    assert not os.get_inheritable(file._fd)
    file.close()
    file.close()
    assert descriptors() == before


# --- who writes it --------------------------------------------------------------------------


def test_writer(root: Folder) -> None:
    """A file is being written exactly while a process has it open for writing."""
    path = root / "t.txt"
    with Writer(path) as writer:
        assert root.look().being_written is True
        writer.write("Yes.")
        assert root.look().being_written is True
    assert root.look().being_written is False


def test_reader(root: Folder) -> None:
    """Who only reads does not count as a writer."""
    path = root / "t.txt"
    path.write_bytes(WHOLE)
    with path.open("rb"):
        assert root.look().being_written is False


def test_no_lease() -> None:
    """Where the system refuses a lease, nobody knows who writes."""
    with closing(Folder(Path("/etc"))) as folder, without_privilege():
        look = folder.look("passwd", owner=0)
    assert (look.trusted, look.being_written) == (True, None)


def test_the_lease_is_dropped(root: Folder) -> None:
    """After a look and after a reading an opener for writing does not wait."""
    path = root / "t.txt"
    path.write_bytes(WHOLE)
    with root.open() as file:
        for act in (file.inspect, lambda: file.read(file.inspect())):
            act()
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_a_lease_that_is_broken(root: Folder) -> None:
    """An opener who meets the lease in the instant that it is held does not end the process."""
    path = root / "t.txt"
    path.write_bytes(WHOLE)
    before = signal.signal(signal.SIGIO, signal.SIG_DFL)
    try:
        ignore_lease_breaks()
        with path.open("rb") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            with pytest.raises(BlockingIOError):
                os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        assert signal.SIGIO not in signal.sigpending()
    finally:
        signal.signal(signal.SIGIO, before)


# --- what is read ---------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"Yes.", b"\xff\0\xfe", b"x" * 3_000_000])
def test_read(root: Folder, content: bytes) -> None:
    """A file that rests is read whole."""
    (root / "t.txt").write_bytes(content)
    with root.open() as file:
        look = file.inspect()
        assert file.read(look) == content


def test_a_name_that_goes(root: Folder) -> None:
    """What was opened is read to its end, whatever happens to its name."""
    path = root / "t.txt"
    path.write_bytes(WHOLE)
    with root.open() as file:
        inode = file.inode
        path.unlink()
        assert file.read(file.inspect()) == WHOLE
        path.write_bytes(b"another")
        assert file.read(file.inspect()) == WHOLE
        assert file.inode == inode
    with root.open() as file:
        assert file.inode != inode
        assert file.read(file.inspect()) == b"another"


def replace_in_place(path: Path) -> None:
    path.write_bytes(WHOLE[::-1])
    os.utime(path, (1, 1))  # not the same as before, however coarse the clock of files is


CHANGES: dict[str, Callable[[Path], object]] = {
    "grown": lambda path: path.write_bytes(WHOLE + b"x"),
    "truncated": lambda path: os.truncate(path, 5),
    "emptied": lambda path: path.write_bytes(b""),
    "replaced in place": replace_in_place,
    "touched": lambda path: os.utime(path, (1, 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed(root: Folder, change: Callable[[Path], object]) -> None:
    """A file that changed since it was looked at is not read, and can be looked at again."""
    path = root / "t.txt"
    path.write_bytes(WHOLE)
    with root.open() as file:
        look = file.inspect()
        change(path)
        with pytest.raises(Changed):
            file.read(look)
        assert file.read(file.inspect()) == path.read_bytes()


def test_opened_for_writing(root: Folder) -> None:
    """A file that somebody opened for writing since it was looked at is not read."""
    path = root / "t.txt"
    path.write_bytes(WHOLE)
    with root.open() as file:
        look = file.inspect()
        with Writer(path), pytest.raises(Changed):
            file.read(look)
        assert file.read(look) == WHOLE


def test_a_disk_that_fails() -> None:
    """An error of the disk is one that can be tried again."""
    # A regular file of ours whose first byte cannot be read, as on a bad block.
    with closing(Folder(Path("/proc/self"))) as folder, folder.open("mem") as file:
        with pytest.raises(Unreadable) as caught:
            file.inspect()
        assert caught.value.errno_name == "EIO"
        with pytest.raises(Unreadable):
            file.read(FileSnapshot(Fingerprint(0, 0, 0, 0, 0, 0, 0), trusted=True))
        with pytest.raises(Unreadable):
            read_claims(folder.fd, "mem", ME)


def test_no_path_in_a_repr() -> None:
    """What could not be read names no path."""
    error = Unreadable("t.txt", OSError(errno.EIO, "x", "/root/t.txt"))
    assert "/root" not in repr(error) + str(error)
    assert Unreadable("t.txt", OSError("x")).errno_name == "unknown"


# --- when it was completed ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modified_ms", "at"),
    [
        (NOW_MS - 1500, datetime(2026, 11, 22, 7, 59, 58, 500_000, UTC)),
        (NOW_MS, NOW),
        (NOW_MS + 1000, NOW),
        (-86_400_000, datetime(1969, 12, 31, tzinfo=UTC)),
        (YEAR_20000 * 1000, NOW),
        (-(10**15), NOW),
        (10**303, NOW),
    ],
)
def test_completed_at(modified_ms: int, at: datetime) -> None:
    """A file is from when its time says; from now where that is no date, or in the future."""
    assert completed_at(modified_ms * 1_000_000, NOW) == at


@given(st.integers())
def test_completed_at_is_a_date(modified_ns: int) -> None:
    """Whatever a file's time is, the answer's is a date that is not in the future."""
    assert completed_at(modified_ns, NOW) <= NOW


def test_the_year_20000() -> None:
    """A time that no date can hold is a time like any other."""
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("no tmpfs at /dev/shm, and few other file systems keep such times")
    with tempfile.TemporaryDirectory(dir=shm) as name, closing(Folder(Path(name))) as folder:
        path = folder / "t.txt"
        path.write_bytes(WHOLE)
        os.utime(path, (YEAR_20000, YEAR_20000))
        look = folder.look()
        info = path.stat()
        assert look.fingerprint.modified_ns == YEAR_20000 * 1_000_000_000
        assert str(look.fingerprint) == str(Fingerprint.of(info))
        with folder.open() as file:
            assert file.read(look) == WHOLE
        assert completed_at(look.fingerprint.modified_ns, NOW) == NOW


def test_before_1970(root: Folder) -> None:
    """A file from before the epoch is one like any other."""
    (root / "t.txt").write_bytes(WHOLE)
    os.utime(root / "t.txt", (-86_400, -86_400))
    look = root.look()
    assert look.fingerprint.modified_ns == -86_400 * 1_000_000_000
    assert completed_at(look.fingerprint.modified_ns, NOW).year == 1969
