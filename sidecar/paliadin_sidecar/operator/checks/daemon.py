"""The daemon itself, and what its systemd unit hides from it."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from paliadin_sidecar import misspelt
from paliadin_sidecar.operator.findings import Finding, note, ok, wrong
from paliadin_sidecar.operator.systemd_unit import complaints

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paliadin_sidecar.operator.instance import Instance
    from paliadin_sidecar.operator.systemd_unit import Unit
    from paliadin_sidecar.settings import Settings

__all__ = ["misspelt_variables", "state", "what_the_unit_hides"]

#: Settings of a unit that hide directories: the values that do not, and which directories.
_HIDING = {
    "PrivateTmp": (("no",), ("/tmp", "/var/tmp")),  # noqa: S108 - a place, not a file
    "ProtectHome": (("no", "read-only"), ("/home", "/root", "/run/user")),
}


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
    problems = instance.problems() + instance.outdated(version("paliadin"), variables)
    found = [wrong("daemon", text) for text in problems]
    if not found:
        found = [ok("daemon", "runs, with what this environment says")]
    if unit and unit.properties.get("UnitFileState") == "disabled":
        enable = f"systemctl enable {unit.name}"
        found.append(note("daemon", f"nothing starts it at the next boot: {enable}"))
    return found


def misspelt_variables(unknown: Iterable[tuple[str, str]]) -> list[Finding]:
    """Variables that look like ours, and are ignored."""
    return [wrong("variable", misspelt.sentence(*one)) for one in unknown]


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
