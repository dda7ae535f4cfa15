"""Who else may write in a directory: by its mode, its POSIX ACLs, and who is in its groups."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shlex
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from paliadin_sidecar.host.storage import user_name

_WRITE = 0o2
#: Source: linux/posix_acl_xattr.h. A version, then (tag, permissions, id) for each entry.
_HEAD, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_ACL_VERSION = 2
#: As many of a group's members are named as help to recognise it.
_MAX_NAMED = 5


class Tag(IntEnum):
    """Whom an entry of an ACL is about; the numbers are the kernel's."""

    OWNER = 0x01  #: the file's owner
    USER = 0x02  #: the user with the entry's id
    OWNING_GROUP = 0x04  #: the file's group
    GROUP = 0x08  #: the group with the entry's id
    MASK = 0x10  #: the most that the three kinds above may do
    OTHER = 0x20  #: everybody else


class AclEntry(NamedTuple):
    """One entry of a POSIX ACL."""

    tag: int
    permissions: int  #: bits: read 4, write 2, search 1
    id: int = -1  #: of a user or a group, where the tag names one


def why_untrusted(
    directory: int, info: os.stat_result, path: Path, owner: int, *, makes_files: bool
) -> str | None:
    """Who besides root and the owner may write in this directory, and what mends it.

    What is to be said after the directory's path; None where nobody may. A directory on a file
    system with ACLs of another kind (NFSv4) is judged by its mode alone.

    Args:
        directory: a descriptor of it; `O_PATH` is enough.
        info: what `fstat` says of that.
        path: where it is, for the command.
        owner: user id of whoever may write.
        makes_files: also look at its default ACL, by which files that are made in it get theirs.

    Raises:
        OSError: the system would not say.
    """
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # With an ACL, the mode's bits of the group are the mask: without them no entry counts.
        acl = _read_acl(directory, "system.posix_acl_access")
        mode = acl or (
            AclEntry(Tag.OWNING_GROUP, info.st_mode >> 3 & 0o7),
            AclEntry(Tag.OTHER, info.st_mode & 0o7),
        )
        for who, entry in _other_writers(mode, info.st_gid, owner):
            mend = f"{_mend(entry, by_acl=bool(acl))} {shlex.quote(str(path))}"
            return f"is writable by {who}: {mend}"
    if makes_files:
        acl = _read_acl(directory, "system.posix_acl_default")
        for who, entry in _other_writers(acl, info.st_gid, owner):
            mend = f"{_mend(entry, by_acl=True, default=True)} {shlex.quote(str(path))}"
            return f"has a default ACL, so files in it are writable by {who}: {mend}"
    return None


def parse_acl(raw: bytes) -> tuple[AclEntry, ...]:
    """The entries of an ACL as the kernel stores it in an extended attribute.

    Raises:
        ValueError: it is none that this version knows.
    """
    if len(raw) < _HEAD.size or _HEAD.unpack_from(raw) != (_ACL_VERSION,):
        raise ValueError("no POSIX ACL of a known version")
    try:
        return tuple(AclEntry(*entry) for entry in _ENTRY.iter_unpack(raw[_HEAD.size :]))
    except struct.error as exc:
        raise ValueError("a POSIX ACL that was cut") from exc


def is_private_group(gid: int, owner: int) -> bool:
    """Whether nobody but root and this user can be in the group.

    Either root's group, or the one that was made with the user and has the user's name. A
    directory service that does not list its users hides whose primary group it is.
    """
    if _members(gid, owner):
        return False
    try:
        user, group = pwd.getpwuid(owner), grp.getgrgid(gid)
    except KeyError:
        return gid == 0
    return gid == 0 or (gid == user.pw_gid and group.gr_name == user.pw_name)


def _members(gid: int, owner: int) -> set[str]:
    # Several entries may have one number. A primary group's members are not in the group's entry.
    users = {user.pw_name: user.pw_uid for user in pwd.getpwall()}
    names = {user.pw_name for user in pwd.getpwall() if user.pw_gid == gid}
    for group in grp.getgrall():
        if group.gr_gid == gid:
            names.update(group.gr_mem)
    with suppress(KeyError):  # a number that no group has
        names.update(grp.getgrgid(gid).gr_mem)
    return {name for name in names if users.get(name) not in (0, owner)}


def _read_acl(directory: int, attribute: str) -> tuple[AclEntry, ...]:
    # By /proc, since fgetxattr(2) takes no descriptor that was opened with O_PATH.
    try:
        return parse_acl(os.getxattr(f"/proc/self/fd/{directory}", attribute))
    except ValueError:
        raise OSError(errno.EINVAL, "has an ACL that cannot be read") from None
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return ()
        raise


def _other_writers(acl: Iterable[AclEntry], gid: int, owner: int) -> Iterator[tuple[str, AclEntry]]:
    mask = next((entry.permissions for entry in acl if entry.tag == Tag.MASK), 0o7)
    # Everybody first: whoever reads one reason should read the worst.
    for entry in sorted(acl, key=lambda entry: -entry.tag):
        permissions = entry.permissions if entry.tag == Tag.OTHER else entry.permissions & mask
        if not permissions & _WRITE:
            continue
        if entry.tag == Tag.OTHER:
            yield "others", entry
        elif entry.tag == Tag.USER and entry.id not in (0, owner):
            yield f"user {user_name(entry.id)}", entry
        elif entry.tag in (Tag.GROUP, Tag.OWNING_GROUP):
            found = gid if entry.tag == Tag.OWNING_GROUP else entry.id
            if not is_private_group(found, owner):
                yield _group_name(found, owner), entry


def _mend(entry: AclEntry, *, by_acl: bool, default: bool = False) -> str:
    if entry.tag == Tag.OTHER and not default:
        return "chmod o-w"
    if not by_acl:
        return "chmod g-w"
    setfacl = "setfacl -d" if default else "setfacl"
    match entry.tag:
        case Tag.USER:
            return f"{setfacl} -x u:{entry.id}"
        case Tag.GROUP:
            return f"{setfacl} -x g:{entry.id}"
        case _:
            whose = "o" if entry.tag == Tag.OTHER else "g"
            return f"{setfacl} -m {whose}::rx"


def _group_name(gid: int, owner: int) -> str:
    try:
        name = grp.getgrgid(gid).gr_name
    except KeyError:
        name = str(gid)
    members = sorted(_members(gid, owner))
    more = ["…"] if len(members) > _MAX_NAMED else []
    named = ", ".join(members[:_MAX_NAMED] + more)
    return f"group {name} ({named or f'which is not private to user {user_name(owner)}'})"
