"""How the daemon is run on this host, and so which commands an operator is told to type."""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paliadin_sidecar.errors import Damaged, Older

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paliadin_sidecar.errors import SidecarError

__all__ = ["Hosting", "in_container", "is_unit", "unit_name"]

#: What only the image has, beside its Python: see the Dockerfile.
_OF_THE_IMAGE = "bin/python-with-capabilities"
#: compose.yaml's commands, typed on the host.
_COMPOSE, _SERVICE = "docker compose", "sidecar"
_COMMAND = re.compile(r"\bpaliadin-sidecar (check|status|turns|show|replay|log)\b")


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
        aside = f'd=$(mktemp -d {folder}/aside.XXXXXX) && mv {folder}/outbox.db* "$d"'
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


def unit_name(state_dir: Path) -> str:
    """The unit of an instance, whose StateDirectory= has the same name."""
    return f"{state_dir.name}.service"


def is_unit() -> bool:
    """Whether this very process was started by systemd for a unit (systemd.exec(5))."""
    return os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def in_container() -> bool:
    """Whether this process runs from the project's image, and so as compose.yaml says."""
    return (Path(sys.prefix) / _OF_THE_IMAGE).exists()
