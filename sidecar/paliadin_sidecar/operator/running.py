"""The daemon as an operator's commands see it: its lock, its own report, and its systemd unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paliadin_sidecar.host import report as reports
from paliadin_sidecar.host import state_directory as statedir
from paliadin_sidecar.operator import unit
from paliadin_sidecar.operator.advice import Hosting, in_container, unit_name
from paliadin_sidecar.operator.terminal import local_time
from paliadin_sidecar.settings import DEFAULT_ENV_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from paliadin_sidecar.host.report import Report
    from paliadin_sidecar.operator.unit import Unit

__all__ = ["Daemon", "look", "outdated", "problems"]

_TROUBLE = {
    "outbox": "no answer is accepted, since the outbox cannot be written",
    "intake": "new answers wait in their directories",
    "metrics": "no metrics are served, and no answer waits for that",
    "events": "file events cannot be had, so that an answer is only seen by the next scan",
}


@dataclass(frozen=True)
class Daemon:
    """What can be known of it from outside.

    Attributes:
        alive: whether it holds the lock of its state directory; None where this user may not see.
        report: its own word; None where it left none.
        unit: None where systemd has none of its name.
        hosting: how it is run, for the commands in an advice.
    """

    alive: bool | None
    report: Report | None
    unit: Unit | None
    hosting: Hosting


def look(state_dir: Path, env_file: Path | None = None) -> Daemon:
    """See how the daemon of this state directory does.

    Args:
        state_dir: where its outbox is.
        env_file: what the operator named by `--env-file`.
    """
    found = unit.read(unit_name(state_dir)) or _unit_of(env_file or DEFAULT_ENV_FILE)
    hosting = Hosting(found.name if found else None, in_container(), env_file)
    try:
        return Daemon(statedir.is_alive(state_dir), reports.read(state_dir), found, hosting)
    except PermissionError:
        return Daemon(alive=None, report=None, unit=found, hosting=hosting)


def _unit_of(env_file: Path) -> unit.Unit | None:
    # Where PALIADIN_STATE_DIR names no unit's: the one that reads this file, if it is called so.
    name = "paliadin-sidecar" if env_file == DEFAULT_ENV_FILE else env_file.parent.name
    found = unit.read(f"{name}.service")
    return found if found and str(env_file) in found.environment_files else None


def problems(daemon: Daemon) -> list[str]:
    """What keeps it from its work, and what mends that: a sentence each."""
    if daemon.alive is None:
        return []
    if not daemon.alive:
        why = f": {unit.explain(daemon.unit)}" if daemon.unit else ""
        return [f"the daemon does not run{why}"]
    report = daemon.report
    if report is None:
        why = "it is of an older version, or had no room to"
        return [f"the daemon says nothing of itself, since {why}: {daemon.hosting.restart}"]
    found = [
        f"{_TROUBLE.get(each.what, each.what)}: {each.why} (since {local_time(each.since)}); "
        "paliadin-sidecar check says what mends it"
        for each in report.problems
    ]
    if not report.ready:
        found.append(
            f"the daemon starts since {local_time(report.started_at)}, and its first scan is not "
            "done yet"
        )
    return found


def outdated(daemon: Daemon, version: str, variables: Mapping[str, str]) -> list[str]:
    """What changed since the daemon was started, which it does not know until it is restarted.

    Args:
        daemon: it.
        version: of the program that is installed.
        variables: what the environment says now, see `Settings.variables`.
    """
    report = daemon.report
    if not daemon.alive or report is None:
        return []
    found = []
    if report.version != version:
        found.append(f"runs version {report.version}, and {version} is installed")
    now = reports.fingerprints(variables, report.key)
    changed = [name for name in now if report.settings.get(name) != now[name]]
    if changed:
        found.append(f"still runs with another value of {', '.join(sorted(changed))}")
    if daemon.unit and daemon.unit.properties.get("NeedDaemonReload") == "yes":
        reload = f"systemctl daemon-reload && {daemon.hosting.restart}"
        return [f"{what}: {reload}" for what in [*found, "its unit was changed since"]]
    return [f"{what}: {daemon.hosting.restart}" for what in found]
