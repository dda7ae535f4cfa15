"""A daemon as the commands see it: how it is run here, its lock, its own report, and its unit."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from paliadin_sidecar.environment import DEFAULT_ENV_FILE, find_state_dir, merged_environment
from paliadin_sidecar.errors import BadSettings, Damaged, Older, SidecarError, StateDirError
from paliadin_sidecar.host import report as reports
from paliadin_sidecar.host import state_directory
from paliadin_sidecar.host.report import Report
from paliadin_sidecar.operator import systemd_unit
from paliadin_sidecar.operator.diagnosis import Problem
from paliadin_sidecar.operator.systemd_unit import Unit
from paliadin_sidecar.operator.terminal import local_time

_SECRET_VARIABLES = (
    "PALIADIN_CALLBACK_SECRET", "PALIADIN_CALLBACK_SECRET_FILE", "CREDENTIALS_DIRECTORY",
)  # fmt: skip
_PROBLEMS = {
    "outbox": "no answer is accepted, since the outbox cannot be written",
    "disk": "answers wait, since the outbox's disk hangs or is slow",
    "intake": "new answers wait in their directories",
    "metrics": "no metrics are served, and no answer waits for that",
    "events": "file events cannot be had, so that an answer is only seen by the next scan",
}
#: Of these, those that keep no answer from its way.
_HARMLESS = {"events", "metrics"}
#: What only the image has, beside its Python: see the Dockerfile.
_OF_THE_IMAGE = "bin/python-with-capabilities"
#: compose.yaml's commands, typed on the host.
_COMPOSE, _SERVICE = "docker compose", "sidecar"
_COMMAND = re.compile(r"\bpaliadin-sidecar (check|status|turns|show|replay|log|export)\b")


@dataclass(frozen=True)
class Hosting:
    """Who starts the daemon.

    Attributes:
        unit: the name of its systemd unit, None where systemd has none.
        container: whether this is the project's image.
        env_file: the `--env-file` that the operator named, None for the default one.
    """

    unit: str | None = None
    container: bool = False
    env_file: Path | None = None

    @property
    def restart(self) -> str:
        """The command that restarts the daemon."""
        if self.unit:
            return f"systemctl restart {self.unit}"
        if self.container:
            return f"{_COMPOSE} restart {_SERVICE}"
        return "restart it, which where it is a unit is: systemctl restart paliadin-sidecar"

    def begin_anew(self, state_dir: Path) -> str:
        """The commands that move a damaged outbox aside and start the daemon without it."""
        if not self.unit and not self.container:
            return "paliadin-sidecar run --quarantine"
        folder = shlex.quote(str(state_dir))
        # A directory of its own: a second damaged one does not take the place of the first.
        aside = (
            f'd=$(mktemp -d {folder}/aside.XXXXXX) && mv {folder}/outbox.db* "$d" && sync -f "$d"'
        )
        if self.unit:
            return f"systemctl stop {self.unit}; {aside}; systemctl start {self.unit}"
        return (
            f"{_COMPOSE} stop {_SERVICE}; {_COMPOSE} run --rm --entrypoint sh {_SERVICE} "
            f"-c {shlex.quote(aside)}; {_COMPOSE} up -d"
        )

    def remedy(self, exc: SidecarError) -> str:
        """What an operator does about an error, on this host."""
        match exc:
            case Damaged():
                return f"{exc.remedy}: {self.begin_anew(exc.path.parent)}"
            case Older():
                return f"{exc.remedy}: {self.restart}"
            case _:
                return exc.remedy

    def setting_problems(self, problems: Sequence[str]) -> list[str]:
        """What is wrong with the configuration, for an operator beside a unit.

        Who makes a second secret because a command knows none cuts the unit off from paliad.
        """
        if not self.unit:
            return list(problems)
        secret = (
            f"PALIADIN_CALLBACK_SECRET is not set: systemd hands it to {self.unit} from the file "
            f"of its LoadCredential= (systemctl cat {self.unit} | grep LoadCredential), and no "
            "other command needs it. If that file is missing or empty, put the secret there that "
            "paliad has"
        )
        found = [secret if "make one with" in problem else problem for problem in problems]
        return [*found, f"{self.unit} runs it on this host: mend that, and {self.restart}"]

    def commands_of_this_host(self, text: str) -> str:
        """A sentence whose `paliadin-sidecar` commands are those for this host and instance."""
        named = f" --env-file {shlex.quote(str(self.env_file))}" if self.env_file else ""
        inside = f"{_COMPOSE} exec {_SERVICE} " if self.container and not self.unit else ""
        return _COMMAND.sub(rf"{inside}paliadin-sidecar \1{named}", text)

    def texts(self, problems: Iterable[Problem]) -> list[str]:
        """What is said of each problem, on this host."""
        return [self.commands_of_this_host(each.text) for each in problems]


@dataclass(frozen=True)
class Instance:
    """What can be known from outside of the daemon of one state directory.

    Attributes:
        alive: whether it holds the lock of its state directory; None where that cannot be seen.
        report: what it says of itself; None where it left nothing.
        unit: None where systemd has none of its name.
        hosting: how it is run, for the commands in an advice.
    """

    alive: bool | None
    report: Report | None
    unit: Unit | None
    hosting: Hosting

    @property
    def env_file(self) -> Path:
        """The file of its variables: the one that the operator named, or the default one."""
        return self.hosting.env_file or DEFAULT_ENV_FILE

    def problems(self) -> list[Problem]:
        """What keeps it from its work, the worst first."""
        if self.alive is None:
            return []
        if not self.alive:
            if self.unit is None:
                return [Problem("no unit of systemd runs it here", "the daemon does not run")]
            why = systemd_unit.explain(self.unit)
            return [Problem(systemd_unit.cause(self.unit), f"the daemon does not run: {why}")]
        if self.report is None:
            cause = "the daemon says nothing of itself"
            why = "it is of an older version, had no room to, or its disk fails"
            return [Problem(cause, f"{cause}, since {why}: {self.hosting.restart}")]
        found = [
            Problem(
                f"{_PROBLEMS.get(each.what, each.what)}: {each.why.partition('; ')[0]}",
                f"{_PROBLEMS.get(each.what, each.what)}: {each.why} "
                f"(since {local_time(each.since)}); paliadin-sidecar check says what mends it",
            )
            for each in sorted(self.report.problems, key=lambda each: each.what in _HARMLESS)
        ]
        if not self.report.ready:
            starts = f"the daemon starts since {local_time(self.report.started_at)}"
            text = f"{starts}, and its first scan is not done yet"
            found.append(Problem(text, text))
        return found

    def outdated(self, version: str, variables: Mapping[str, str]) -> list[str]:
        """What changed since it was started, which it does not know until it is restarted.

        Args:
            version: of the program that is installed.
            variables: what the environment says now, see `Settings.variables`.
        """
        report = self.report
        if not self.alive or report is None:
            return []
        found = []
        if report.version != version:
            found.append(f"runs version {report.version}, and {version} is installed")
        now = reports.fingerprints(variables, report.key)
        changed = [name for name in now if report.settings.get(name) != now[name]]
        if changed:
            found.append(f"still runs with another value of {', '.join(sorted(changed))}")
        restart = self.hosting.restart
        if self.unit and self.unit.properties.get("NeedDaemonReload") == "yes":
            found.append("its unit was changed since")
            restart = f"systemctl daemon-reload && {restart}"
        return [f"{what}: {restart}" for what in found]


def unit_name(state_dir: Path) -> str:
    """The unit of an instance, whose StateDirectory= has the same name."""
    return f"{state_dir.name}.service"


def is_unit() -> bool:
    """Whether this very process was started by systemd for a unit (systemd.exec(5))."""
    return os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def inspect(state_dir: Path, env_file: Path | None = None) -> Instance:
    """See how the daemon of this state directory does.

    Args:
        state_dir: where its outbox is.
        env_file: what the operator named by `--env-file`.
    """
    unit = systemd_unit.read(unit_name(state_dir)) or _unit_of(env_file or DEFAULT_ENV_FILE)
    container = (Path(sys.prefix) / _OF_THE_IMAGE).exists()  # so that it runs as compose.yaml says
    hosting = Hosting(unit.name if unit else None, container, env_file)
    try:
        alive, report = state_directory.is_alive(state_dir), reports.read(state_dir)
    except (PermissionError, StateDirError):
        alive, report = None, None
    return Instance(alive, report, unit, hosting)


def _unit_of(env_file: Path) -> Unit | None:
    # Where PALIADIN_STATE_DIR names no unit's: the one that reads this file, if it is called so.
    name = "paliadin-sidecar" if env_file == DEFAULT_ENV_FILE else env_file.parent.name
    unit = systemd_unit.read(f"{name}.service")
    return unit if unit and str(env_file) in unit.environment_files else None


def environment_of_daemon(
    environ: Mapping[str, str], env_file: Path | None
) -> tuple[Instance, dict[str, str]]:
    """The daemon that an environment means, and the environment that this daemon has.

    Args:
        environ: what `merged_environment` gives.
        env_file: what the operator named by `--env-file`.

    Raises:
        BadSettings: it names no state directory.
        PermissionError: this user may not see the daemon's files.
    """
    state_dir = find_state_dir(environ)
    if os.geteuid() and _is_dir(state_dir) and not os.access(state_dir, os.R_OK | os.X_OK):
        # Most of what a check would say to this user would look wrong, and not be so.
        raise PermissionError(errno.EACCES, "", str(state_dir))
    instance = inspect(state_dir, env_file)
    found, unit = dict(environ), instance.unit
    # Drop-ins may say more than the file, and later ones other things. A file that is not the
    # unit's is an operator's trial.
    if unit is not None and str(instance.env_file) in unit.environment_files:
        found |= unit.environment
        for path in map(Path, unit.environment_files):
            with suppress(BadSettings):
                found |= merged_environment({}, path)
        found |= os.environ
    if not any(map(found.get, _SECRET_VARIABLES)):
        # An operator's command signs with the service's secret.
        folder = _credentials(state_dir, instance.env_file)
        found |= {"CREDENTIALS_DIRECTORY": str(folder)} if folder else {}
    return instance, found


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError:
        raise
    except OSError:  # a disk that fails; what is examined next says so
        return False


def _credentials(state_dir: Path, env_file: Path) -> Path | None:
    # The directory with the service's callback-secret. It is beside the environment file; where
    # it is kept elsewhere, it is what systemd gave the unit. In this order: a secret that was
    # changed is the daemon's only after a restart, and that is to be seen.
    denied = None
    for folder in (env_file.parent, Path("/run/credentials") / unit_name(state_dir)):
        try:
            (folder / "callback-secret").open("rb").close()
        except PermissionError as exc:
            denied = denied or exc
        except OSError:
            continue
        else:
            return folder
    if denied is not None:
        raise denied
    return None
