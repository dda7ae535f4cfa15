"""The state directory, the outbox in it, and the room on the disks."""

from __future__ import annotations

import os
import shlex
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from paliadin_sidecar.errors import OutboxError
from paliadin_sidecar.host.users import user_name
from paliadin_sidecar.intake.roots import Root
from paliadin_sidecar.operator.findings import Finding, note, ok, wrong
from paliadin_sidecar.operator.hosting import unit_name
from paliadin_sidecar.operator.lookup import listed
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from paliadin_sidecar.operator.hosting import Hosting

__all__ = ["outbox", "room_for_answers", "state_directory"]

#: Less is nearly none: the largest answers that can wait at the same time take more.
_MIN_FREE_BYTES = 100 * 2**20
#: An outbox of which not every page was read by then is not read further.
_READ_S = 5.0


def state_directory(path: Path) -> list[Finding]:
    """Whether the daemon can keep answers there, and nobody else can take them away."""
    subject = f"state directory {path}"
    if not os.access(path, os.F_OK):
        return [note(subject, "does not exist yet; `run` makes it"), _room(path)]
    info = path.stat()
    if not stat.S_ISDIR(info.st_mode):
        place = shlex.quote(str(path))
        aside = f"mv {place} {place}.aside"
        return [wrong(subject, f"is no directory, so no answer can be kept: {aside}")]
    user, owner = user_name(os.geteuid()), user_name(info.st_uid)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        text = (
            f"belongs to user {owner} and cannot be written by user {user}, so no answer could be "
            "kept. If that user runs the daemon: sudo paliadin-sidecar check; else: "
            f"chown {user} {path}"
        )
        return [wrong(subject, text), _room(path)]
    found = [ok(subject, "can be written")]
    if info.st_uid != os.geteuid():
        text = (
            f"belongs to user {owner}, as whom the daemon runs, and this is user {user}: what that "
            "user may not do does not show here"
        )
        found = [note(subject, text)]
    if info.st_mode & 0o077:
        found = [note(subject, f"is open to others, its files are not: chmod 700 {path}")]
    if others := _files_of_others(path, info.st_uid):
        text = (
            f"{listed(others)} in it: not of user {owner}, as whom the daemon runs, so that it "
            f"cannot write there: chown -R {owner} {shlex.quote(str(path))}"
        )
        found.append(wrong(subject, text))
    way = Root(path.resolve(), info.st_uid)
    way.check()
    way.close()
    if "is writable by" in way.why:
        text = f"whoever may change it can take the outbox away: {way.why}"
        found.append(wrong(subject, text))
    return [*found, _room(path)]


def _files_of_others(path: Path, owner: int) -> list[str]:
    # As a copy that was made, or a command that was tried, as root leaves them.
    found = [(entry.name, entry.lstat()) for entry in path.iterdir()]
    return sorted(
        name for name, info in found if stat.S_ISREG(info.st_mode) and info.st_uid != owner
    )


def _room(path: Path) -> Finding:
    there = next(folder for folder in (path, *path.parents) if os.access(folder, os.F_OK))
    free = _free_bytes(there)
    free_here = f"{free // 2**20} MiB are free where the outbox is"
    if free < _MIN_FREE_BYTES:
        full = "and once it is full no answer is accepted"
        return wrong("disk", f"{free_here}, {full}: {_make_room(str(there))}")
    return ok("disk", free_here)


def room_for_answers(roots: Iterable[Path], max_bytes: int) -> Iterator[Finding]:
    """Whether the largest answer fits into each root's file system.

    A writer that meets a full disk leaves an answer that is empty or cut, and nobody sees that.
    """
    seen = set()
    for root in roots:
        with suppress(OSError):
            free, device = _free_bytes(root), root.stat().st_dev
            if free < max_bytes and device not in seen:
                mount = f"$(df --output=target {shlex.quote(str(root))} | tail -n 1)"
                text = (
                    f"{free // 2**10} KiB are free in {root}, so that the agent's answers are "
                    f"cut or empty: {_make_room(mount)}"
                )
                yield wrong("disk", text)
            seen.add(device)


def _free_bytes(path: Path) -> int:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def _make_room(place: str) -> str:
    return f"make room; du -xh {place} | sort -h | tail shows where it went"


def outbox(state_dir: Path, roots: Iterable[Path], hosting: Hosting) -> list[Finding]:
    """Whether it can be read, to its last page, and is of these roots."""
    try:
        with Outbox(state_dir / FILENAME) as opened:
            whole = opened.check_pages(_READ_S)
            (service,) = opened.transaction([opened.service])
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []  # `run` makes it, or the state directory's finding says why not
    except OutboxError as exc:
        return [wrong("outbox", f"{exc}: {hosting.remedy(exc)}")]
    found = [ok("outbox", "each page can be read")]
    if not whole:
        found = [note("outbox", f"too large to be read within {_READ_S:.0f} s")]
    watched = {root["path"] for root in service["roots"]}
    if watched and watched != set(map(str, roots)):
        text = (
            f"the daemon watches {', '.join(sorted(watched))}, which this environment does not "
            "say, so what is said here is not of the daemon: name the daemon's with --env-file, "
            f"or: systemctl restart {unit_name(state_dir)}"
        )
        found.append(wrong("environment", text))
    return found
