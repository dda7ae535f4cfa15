from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.needs import need
from support.users import root_only

from paliadin_sidecar.intake.fingerprint import COARSE_S, TICK_S, Fingerprint, is_conclusive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FILE = Fingerprint(7, 100, 1_500_000_001, 1_500_000_002, 1000, 0o100600, 1)
#: A second that is over, and what is a fraction after it.
SECOND, S = 1_790_000_000, 1_000_000_000


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (FILE, False),
        (FILE._replace(inode=8), True),
        (FILE._replace(size=99), True),
        (FILE._replace(modified_ns=3), True),
        (FILE._replace(changed_ns=3), True),  # its time was put back
        (FILE._replace(changed_ns=3, names=0), False),  # it was deleted
        (FILE._replace(changed_ns=3, names=2), False),  # it was linked
        (FILE._replace(changed_ns=3, names=0, modified_ns=3), True),
    ],
)
def test_content_may_differ(other: Fingerprint, *, differs: bool) -> None:
    """Every time counts, but for a ctime that a name's coming or going explains."""
    assert other.content_may_differ(FILE) is differs


@pytest.mark.parametrize("field", Fingerprint._fields)
def test_text(field: str) -> None:
    """All that a verdict depended on stands in the text."""
    assert str(FILE) == "7:100:1500000001:1500000002:1000:33152:1"
    assert str(FILE._replace(**{field: 3})) != str(FILE)


@pytest.mark.parametrize(
    ("stamp_ns", "granularity_s"),
    [
        (SECOND * S + 1, TICK_S),  # ext4, xfs, btrfs, tmpfs: any fraction
        (SECOND * S + 10_000_000, TICK_S),  # exFAT: hundredths
        (SECOND * S, COARSE_S),  # ext4 with small inodes, ext3: whole seconds; FAT: even ones
        ((SECOND + 1) * S, COARSE_S),
    ],
)
def test_conclusive(stamp_ns: int, granularity_s: float) -> None:
    """A time is believed once a change would bear another one: as fine as the times are."""
    at = stamp_ns / S
    assert not is_conclusive(stamp_ns, at)
    assert not is_conclusive(stamp_ns, at + granularity_s - 0.01)
    assert is_conclusive(stamp_ns, at + granularity_s + 0.01)
    assert is_conclusive(stamp_ns, at - 3600)  # the clock was set back: later times are others


def test_conclusive_of_a_file() -> None:
    """A young ctime proves as little as a young mtime."""
    file = FILE._replace(modified_ns=1, changed_ns=SECOND * S + 1)
    assert not file.is_conclusive(SECOND + 0.01)
    assert file.is_conclusive(SECOND + 1)


# --- real file systems ----------------------------------------------------------------------


def touch(path: Path) -> None:
    info = path.stat()
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1_000_000))


def put_back(path: Path) -> None:
    info = path.stat()
    path.write_bytes(b"No.")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def copy_with_its_time(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"No.")
    info = path.stat()
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    shutil.copy2(other, path)  # as cp -p: the same inode, size and mtime


CHANGES: list[Callable[[Path], object]] = [
    touch,
    put_back,
    copy_with_its_time,
    lambda path: path.write_bytes(b"Yes!"),
    lambda path: path.chmod(0o400),
    lambda path: path.with_name("second").hardlink_to(path),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_real_change(tmp_path: Path, change: Callable[[Path], object]) -> None:
    """Content of the same size with its time put back, mode and names: each shows."""
    path = tmp_path / "t.txt"
    path.write_bytes(b"Yes")
    os.utime(path, ns=(1, 1))
    before = Fingerprint.of(path.stat())
    change(path)
    after = Fingerprint.of(path.stat())
    assert str(after) != str(before)


@pytest.fixture
def whole_seconds(tmp_path: Path) -> Iterator[Path]:
    """A directory of an ext4 with inodes of 128 bytes."""
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(8 * 2**20)
    make = ["mkfs.ext4", "-q", "-I", "128", str(image)]
    mount = ["mount", "-o", "loop", str(image), str(folder)]
    for command in (make, mount):
        need(command[0])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{command[0]}: {done.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@root_only
def test_whole_seconds(whole_seconds: Path) -> None:
    """Two contents of one second and size look alike there, and neither look is believed.

    `test_conclusive` shows the rule without such a file system.
    """
    path = whole_seconds / "t.txt"
    path.write_bytes(b"Yes")
    first = Fingerprint.of(path.stat())
    assert first.changed_ns % S == 0
    assert not first.is_conclusive(first.changed_ns / S + 0.9)
