from __future__ import annotations

import grp
import os
import pwd
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.needs import need
from support.users import root_only

from paliadin_sidecar.intake import trust
from paliadin_sidecar.intake.trust import AclEntry, Tag, is_private_group, parse_acl

if TYPE_CHECKING:
    from pathlib import Path

ME = os.geteuid()
#: A user and a group that this host does not know.
EVE, TEAM = 54321, 54322
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

#: What every ACL has that names somebody.
BASE = (
    AclEntry(Tag.OWNER, 7),
    AclEntry(Tag.OWNING_GROUP, 5),
    AclEntry(Tag.MASK, 7),
    AclEntry(Tag.OTHER, 5),
)


def stored(*entries: AclEntry) -> bytes:
    """As the kernel wants it: in the order of the tags."""
    packed = (struct.pack("<HHI", e.tag, e.permissions, e.id % 2**32) for e in sorted(entries))
    return struct.pack("<I", 2) + b"".join(packed)


def with_entry(*entries: AclEntry) -> bytes:
    tags = {entry.tag for entry in entries} - {Tag.USER, Tag.GROUP}
    return stored(*(entry for entry in BASE if entry.tag not in tags), *entries)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a name that a shell would cut, on a file system with ACLs."""
    folder = tmp_path / "a root"
    folder.mkdir(mode=0o700)
    try:
        os.setxattr(folder, ACCESS, stored(*BASE))
    except OSError as exc:
        pytest.skip(f"no ACLs on the file system of {tmp_path}: {exc.strerror}")
    os.removexattr(folder, ACCESS)
    return folder


def why(folder: Path, *, makes_files: bool = True) -> str | None:
    found = os.open(folder, os.O_PATH)
    try:
        return trust.why_untrusted(found, os.fstat(found), folder, ME, makes_files=makes_files)
    finally:
        os.close(found)


@pytest.mark.parametrize(
    ("attribute", "acl", "what", "mend"),
    [
        (ACCESS, with_entry(AclEntry(Tag.USER, 6, EVE)), f"user {EVE}", f"setfacl -x u:{EVE}"),
        (ACCESS, with_entry(AclEntry(Tag.USER, 2, EVE)), f"user {EVE}", f"setfacl -x u:{EVE}"),
        (ACCESS, with_entry(AclEntry(Tag.GROUP, 7, TEAM)), f"group {TEAM}", f"setfacl -x g:{TEAM}"),
        (ACCESS, with_entry(AclEntry(Tag.OTHER, 7)), "others", "chmod o-w"),
        (DEFAULT, with_entry(AclEntry(Tag.USER, 7, EVE)), f"user {EVE}", f"setfacl -d -x u:{EVE}"),
        (
            DEFAULT,
            with_entry(AclEntry(Tag.GROUP, 7, TEAM)),
            f"group {TEAM}",
            f"setfacl -d -x g:{TEAM}",
        ),
        (DEFAULT, with_entry(AclEntry(Tag.OTHER, 7)), "others", "setfacl -d -m o::rx"),
    ],
)
def test_an_acl_lets_another_in(
    folder: Path, attribute: str, acl: bytes, what: str, mend: str
) -> None:
    """Who it is, and the command that mends it, which does."""
    os.setxattr(folder, attribute, acl)
    found = why(folder)
    assert found is not None
    assert f"writable by {what}" in found
    command = found.rpartition(": ")[2]
    assert command == f"{mend} '{folder}'"
    if command.startswith("setfacl"):
        need("setfacl")
    subprocess.run(["sh", "-ec", command], check=True)
    assert why(folder) is None


@root_only
def test_an_acl_lets_the_group_in(folder: Path) -> None:
    """The directory's own group is judged as without an ACL."""
    os.chown(folder, -1, TEAM)
    acl = with_entry(AclEntry(Tag.OWNING_GROUP, 7), AclEntry(Tag.USER, 5, EVE))
    os.setxattr(folder, ACCESS, acl)
    found = why(folder)
    assert found is not None
    assert f"is writable by group {TEAM} (which is not private to user " in found
    assert found.endswith(f": setfacl -m g::rx '{folder}'")


@pytest.mark.parametrize(
    "acl",
    [
        with_entry(AclEntry(Tag.USER, 5, EVE)),  # may look
        with_entry(AclEntry(Tag.USER, 7, ME), AclEntry(Tag.USER, 7, 0)),  # the owner, and root
        with_entry(AclEntry(Tag.USER, 7, EVE), AclEntry(Tag.MASK, 5)),  # the mask takes it
        with_entry(AclEntry(Tag.GROUP, 7, TEAM), AclEntry(Tag.MASK, 1)),
    ],
)
def test_an_acl_lets_nobody_write(folder: Path, acl: bytes) -> None:
    """An entry that does not let anybody else write costs nothing."""
    for attribute in (ACCESS, DEFAULT):
        os.setxattr(folder, attribute, acl)
    assert why(folder) is None


def test_a_default_acl_above(folder: Path) -> None:
    """What directories above hand down is judged where it has arrived."""
    os.setxattr(folder, DEFAULT, with_entry(AclEntry(Tag.USER, 7, EVE)))
    assert why(folder, makes_files=False) is None


@pytest.mark.parametrize("mode", [0o720, 0o730, 0o775, 0o770])
def test_a_group_with_others_in_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """They are named, and so is what shuts them out."""
    # The users and groups of this host are not ours to make.
    group = grp.getgrgid(folder.stat().st_gid)
    users = [*pwd.getpwall(), person("eve", EVE, group.gr_gid)]
    monkeypatch.setattr(pwd, "getpwall", lambda: users)
    folder.chmod(mode)
    found = why(folder)
    assert found is not None
    assert f"is writable by group {group.gr_name} (" in found
    assert "eve" in found
    assert found.endswith(f": chmod g-w '{folder}'")
    folder.chmod(mode & ~0o020)
    assert why(folder) is None


def person(name: str, uid: int, gid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, gid, "", "/", ""))


def team(name: str, gid: int, *members: str) -> grp.struct_group:
    return grp.struct_group((name, "x", gid, list(members)))


M = person("m", 1000, 1000)
ALIAS, EVE_TOO = person("m-alias", 1000, 1000), person("eve", 1001, 1001)


@pytest.mark.parametrize(
    ("gid", "users", "groups", "private"),
    [
        (1000, [M], [team("m", 1000)], True),
        (1000, [M], [team("m", 1000, "m", "root")], True),
        (1000, [M, ALIAS], [team("m", 1000, "m-alias")], True),
        (1000, [M, EVE_TOO], [team("m", 1000, "eve")], False),
        (1000, [M], [team("m", 1000, "whoever")], False),  # who is not known here, yet
        (1000, [M, person("eve", 1001, 1000)], [team("m", 1000)], False),  # her primary group
        (1000, [M, EVE_TOO], [team("m", 1000), team("same", 1000, "eve")], False),
        (100, [person("m", 1000, 100)], [team("users", 100)], False),
        (50, [M], [team("staff", 50)], False),
        (50, [M], [team("staff", 50, "m")], False),
        (1000, [M], [], False),
        (0, [M], [team("root", 0)], True),
        (0, [M, EVE_TOO], [team("root", 0, "eve")], False),
        (0, [M, person("operator", 11, 0)], [team("root", 0)], False),
        (0, [], [team("root", 0)], True),
    ],
)
def test_private_groups(
    monkeypatch: pytest.MonkeyPatch,
    gid: int,
    users: list[pwd.struct_passwd],
    groups: list[grp.struct_group],
    *,
    private: bool,
) -> None:
    """A group is private where nobody but root and the owner can be in it, in whatever way."""

    def getpwuid(uid: int) -> pwd.struct_passwd:
        return {user.pw_uid: user for user in reversed([*users, person("root", 0, 0)])}[uid]

    def getgrgid(found: int) -> grp.struct_group:
        return {group.gr_gid: group for group in reversed(groups)}[found]

    # The users and groups of this host are not ours to make.
    monkeypatch.setattr(pwd, "getpwall", lambda: [person("root", 0, 0), *users])
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.setattr(grp, "getgrall", lambda: groups)
    monkeypatch.setattr(grp, "getgrgid", getgrgid)
    assert is_private_group(gid, 1000) == private


def test_parse_acl() -> None:
    """What the kernel stores is read back; anything else is no ACL."""
    raw = with_entry(AclEntry(Tag.USER, 6, EVE))
    assert AclEntry(Tag.USER, 6, EVE) in parse_acl(raw)
    for bad in (b"", b"\x02\0\0", b"\x03\0\0\0", raw[:-1]):
        with pytest.raises(ValueError, match="POSIX ACL"):
            parse_acl(bad)
