"""What the system gives: file events and read leases."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, cast

from paliadin_contract.ids import turn_id_of
from paliadin_sidecar.errors import Unreadable
from paliadin_sidecar.host.users import user_name
from paliadin_sidecar.intake.filesystem import LOCAL, type_of
from paliadin_sidecar.intake.notifications import why_no_events
from paliadin_sidecar.intake.roots import Root
from paliadin_sidecar.intake.turnfile import TurnFile, ignore_lease_breaks
from paliadin_sidecar.operator.findings import Finding, note, ok, wrong

if TYPE_CHECKING:
    from paliadin_sidecar.settings import Settings

__all__ = ["file_events", "read_leases"]

#: Source: linux/capability.h.
_CAP_LEASE = 28


def file_events(settings: Settings) -> Finding:
    """Whether the engine that is configured can watch the roots now."""
    subject = "file events"
    roots = [spec.path for spec in settings.roots if os.access(spec.path, os.R_OK)]
    why = why_no_events(roots, inotify=settings.events == "inotify")
    if why is None:
        return ok(subject, f"come by {settings.events}: an answer is seen at once")
    count = len(settings.roots)
    text = (
        f"cannot be had ({why}), so an answer is only seen by the next scan. {count} instances of "
        f"inotify and {count} watches are needed, the rest of {_limit('instances')} and "
        f"{_limit('watches')} is other programs': printf 'fs.inotify.max_user_instances=512\\n"
        "fs.inotify.max_user_watches=524288\\n' > /etc/sysctl.d/inotify.conf && sysctl --system"
    )
    return wrong(subject, text)


def _limit(of: str) -> str:
    try:
        return Path(f"/proc/sys/fs/inotify/max_user_{of}").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def read_leases(settings: Settings) -> list[Finding]:
    """Whether they can be taken, and prove that nobody writes. Call it in the main thread."""
    ignore_lease_breaks()
    subject = "read leases"
    found = []
    for spec in settings.roots:
        kind = _shared_file_system(spec.path)
        if kind is not None:
            text = (
                f"prove nothing in {spec.path}: it is on a file system ({kind}) that somebody may "
                "write from another machine or behind another mount. An answer there waits until "
                f"it was quiet for {settings.quiet_s:g} s (PALIADIN_QUIET_S), also with its end "
                "mark, and a writer that pauses for longer is pushed in part first: let the agent "
                "write to a local disk or a tmpfs"
            )
            found.append(note(subject, text))
    if found:
        return found
    granted = _lease_granted(settings)
    if granted is None:
        granted = os.geteuid() == settings.owner or _has_capability(_CAP_LEASE)
    if granted:
        return [ok(subject, "can be taken: a closed file is known at once")]
    text = (
        f"cannot be taken on files of user {user_name(settings.owner)}, so every answer waits "
        "until its file was quiet: run as that user, or with CAP_LEASE and CAP_DAC_READ_SEARCH, "
        "as the unit does"
    )
    return [note(subject, text)]


def _shared_file_system(path: Path) -> str | None:
    # The type of its file system, if that is not one that this kernel alone writes.
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None  # the root's finding says so
    try:
        kind = type_of(fd)
    finally:
        os.close(fd)
    return None if kind in LOCAL else kind or "unknown: /proc tells nothing of it"


def _lease_granted(settings: Settings) -> bool | None:
    # Tried on the first answer that is found; None where there is none.
    for spec in settings.roots:
        root = Root(spec.path, settings.owner)
        root.check()
        try:
            for name in filter(turn_id_of, root.names(always=True) or ()):
                fd = cast("int", root.fd)
                file = TurnFile(fd, name, settings.owner, leases_on=root.leases_on)
                with closing(file):
                    snapshot = file.inspect()
                if snapshot.trusted:
                    return snapshot.being_written is not None
        except (OSError, Unreadable):
            continue  # gone between two calls, or not ours to open: the next root
        finally:
            root.close()
    return None


def _has_capability(number: int) -> bool:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return False
    return bool(int(effective.split()[1], 16) >> number & 1)
