"""The daemon, what its systemd unit hides from it, and what the system gives it."""

from __future__ import annotations

import os
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import cast

from paliadin_contract.ids import turn_id_of
from paliadin_sidecar.errors import Unreadable
from paliadin_sidecar.host.storage import user_name
from paliadin_sidecar.intake.filesystem import LOCAL, directory_type
from paliadin_sidecar.intake.notifications import why_no_events
from paliadin_sidecar.intake.roots import Root
from paliadin_sidecar.intake.turnfile import TurnFile, ignore_lease_breaks
from paliadin_sidecar.operator.diagnosis import Finding, note, ok, wrong
from paliadin_sidecar.operator.instance import Instance
from paliadin_sidecar.operator.systemd_unit import Unit, complaints
from paliadin_sidecar.settings import Settings

#: Settings of a unit that hide directories: the values that do not, and which directories.
_HIDING = {
    "PrivateTmp": (("no",), ("/tmp", "/var/tmp")),  # noqa: S108 - a place, not a file
    "ProtectHome": (("no", "read-only"), ("/home", "/root", "/run/user")),
}
#: Source: linux/capability.h.
_CAP_LEASE = 28


def state(settings: Settings, instance: Instance, *, owner_named: bool) -> list[Finding]:
    """Whether it runs, well, and with what this environment says."""
    if instance.alive is None:
        return []  # the state directory's finding says so
    unit = instance.unit
    if not instance.alive and instance.report is None and unit is None:
        return [note("daemon", "has not run here yet")]
    variables = settings.variables()
    if not owner_named:
        del variables["PALIADIN_OWNER"]  # the default is whoever runs it: another one here
    found = [wrong("daemon", one.text, one.cause) for one in instance.problems()]
    outdated = instance.outdated(version("paliadin"), variables)
    found += [wrong("daemon", text) for text in outdated]
    if not found:
        found = [ok("daemon", "runs, with what this environment says")]
    if unit and unit.properties.get("UnitFileState") == "disabled":
        enable = f"systemctl enable {unit.name}"
        found.append(note("daemon", f"nothing starts it at the next boot: {enable}"))
    return found


def what_the_unit_hides(settings: Settings, unit: Unit | None) -> list[Finding]:
    """Whether the unit's settings keep the daemon from what it needs, also while it does not run.

    That is read from the settings, and not seen: what a process sees, only root may look at, and
    only while it runs.
    """
    if unit is None:
        return []
    subject, properties, found = f"unit {unit.name}", unit.properties, []
    needed = [spec.path for spec in settings.roots]
    if settings.callback_ca_file:
        needed.append(settings.callback_ca_file)
    for name, (harmless, places) in _HIDING.items():
        hidden = [str(path) for path in needed if any(map(path.is_relative_to, places))]
        if properties.get(name, "no") not in harmless and hidden:
            folder = f"/etc/systemd/system/{unit.name}.d"
            text = (
                f"has {name}={properties[name]}, so the daemon does not see {', '.join(hidden)}, "
                f"and no answer ever arrives: mkdir -p {folder} && printf "
                f"'[Service]\\n{name}={harmless[-1]}\\n' > {folder}/{name}.conf && "
                f"systemctl daemon-reload && systemctl restart {unit.name}"
            )
            found.append(wrong(subject, text))
    for path in needed:
        for place in properties.get("InaccessiblePaths", "").split():
            if path.is_relative_to(place.lstrip("-+")):
                text = (
                    f"has InaccessiblePaths={place}, so the daemon does not see {path}: move it, "
                    f"since that place may hold secrets, then: systemctl restart {unit.name}"
                )
                found.append(wrong(subject, text))
    for line in complaints(unit):
        text = (
            f"has what systemd does not take, so it is not as somebody meant it ({line}): "
            f"systemctl cat {unit.name} shows where. Mend it, then: "
            f"systemctl daemon-reload && systemctl restart {unit.name}"
        )
        found.append(wrong(subject, text))
    return found or [ok(subject, "sees the real directories")]


def file_events(settings: Settings) -> Finding:
    """Whether the engine that is configured can watch the roots now."""
    subject = "file events"
    paths = [spec.path for spec in settings.roots if os.access(spec.path, os.R_OK)]
    # What is wrong with one that fails, its own finding says.
    roots = [path for path in paths if os.path.isdir(path)]  # noqa: PTH112 - a Path's raises
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
        granted = os.geteuid() == settings.owner or _may_lease()
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
        kind = directory_type(path)
    except OSError:
        return None  # the root's finding says so
    return None if kind in LOCAL else kind or "unknown: /proc says nothing of it"


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


def _may_lease() -> bool:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return False
    return bool(int(effective.split()[1], 16) >> _CAP_LEASE & 1)
