from __future__ import annotations

import os
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.users import root_only

from paliadin_sidecar.intake.filesystem import LOCAL, device_with_leases, mount_in, type_of
from paliadin_sidecar.intake.turnfile import TurnFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 27 0:31 / /mnt/a\\040-\\040b rw shared:2 master:1 - fuse.sshfs m@example.org: rw,user_id=0
32 27 0:32 / /mnt/c rw - nfs4 192.0.2.1:/x rw,addr=192.0.2.1
"""


@pytest.mark.parametrize(
    ("mount_id", "kind", "local"),
    [
        ("27", "ext4", True),
        ("31", "fuse.sshfs", False),
        ("32", "nfs4", False),
        ("2", "", False),  # no prefix of another's
        ("", "", False),
    ],
)
def test_mount_in(mount_id: str, kind: str, *, local: bool) -> None:
    """The type is in the kernel's list of mounts; what is not listed there is not local."""
    assert mount_in(MOUNTS, mount_id)[0] == kind
    assert (kind in LOCAL) is local


@pytest.mark.parametrize(
    "kind",
    ["9p", "virtiofs", "fuse", "fuseblk", "fuse.x", "nfs", "cifs", "smb3", "overlay", "ceph"],
)
def test_not_local(kind: str) -> None:
    """Where others may write unseen, no lease is believed."""
    assert kind not in LOCAL


def test_type_of(tmp_path: Path) -> None:
    """Asked of an open directory: of the one that was opened, whatever its path is now."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    kind = type_of(fd)
    assert kind
    device = tmp_path.stat().st_dev
    assert device_with_leases(fd) == (device if kind in LOCAL else None)
    os.close(fd)
    assert type_of(fd) == ""
    assert device_with_leases(fd) is None


def test_a_lease_elsewhere(tmp_path: Path) -> None:
    """A lease that is given where it proves nothing leaves open whether somebody writes.

    One that is refused for a writer is believed anywhere: he is there.
    """
    path = tmp_path / "t.txt"
    path.write_bytes(b"Yes.")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with closing(TurnFile(fd, "t.txt", os.geteuid(), leases_on=None)) as file:
        assert file.inspect().being_written is None
        with path.open("ab"):
            assert file.inspect().being_written is True
    os.close(fd)


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An overlay, and the directory that is its upper layer, on a tmpfs of their own."""
    mounts = [tmp_path / "layers", tmp_path / "merged"]
    for folder in mounts:
        folder.mkdir()
    lower, upper, work = (mounts[0] / name for name in ("lower", "upper", "work"))
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    try:
        mount("-t", "tmpfs", "none", mounts[0])
        for folder in (lower, upper, work):
            folder.mkdir(mode=0o700)
        mount("-t", "overlay", "-o", layers, "none", mounts[1])
        yield mounts[1], upper
    finally:
        for folder in reversed(mounts):
            if folder.is_mount():
                subprocess.run(["umount", folder], check=True)


def mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount: {done.stderr}")


@root_only
def test_a_writer_behind_a_mount(overlay: tuple[Path, Path]) -> None:
    """Whoever writes into an overlay's layer is not seen, so no lease is believed there.

    `test_a_lease_elsewhere` shows the rule without such a mount.
    """
    merged, upper = overlay
    fd = os.open(merged, os.O_RDONLY | os.O_DIRECTORY)
    assert device_with_leases(fd) is None
    with (upper / "t.txt").open("wb") as writer:
        writer.write(b"Half")
        writer.flush()
        with closing(TurnFile(fd, "t.txt", os.geteuid(), leases_on=merged.stat().st_dev)) as file:
            assert file.inspect().being_written is not True  # the kernel does not know
        with closing(TurnFile(fd, "t.txt", os.geteuid())) as file:
            assert file.inspect().being_written is None
    os.close(fd)
