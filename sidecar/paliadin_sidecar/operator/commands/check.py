"""`check`: whether everything is as it must be, and what mends it where not."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from paliadin_sidecar.environment import DEFAULT_ENV_FILE, find_state_dir, merged_environment
from paliadin_sidecar.errors import BadSettings
from paliadin_sidecar.operator import instance as instances
from paliadin_sidecar.operator.findings import wrong
from paliadin_sidecar.operator.hosting import unit_name
from paliadin_sidecar.operator.session import clear_errors, env_file_option, json_option
from paliadin_sidecar.operator.terminal import print_json, print_table
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from paliadin_sidecar.operator.findings import Finding
    from paliadin_sidecar.operator.instance import Instance

__all__ = ["check"]

_SECRET_VARIABLES = (
    "PALIADIN_CALLBACK_SECRET", "PALIADIN_CALLBACK_SECRET_FILE", "CREDENTIALS_DIRECTORY",
)  # fmt: skip


@click.command()
@env_file_option
@click.option(
    "--ping",
    "send_ping",
    is_flag=True,
    help="Also ping the receiver: signed well, then with a wrong signature.",
)
@json_option
def check(env_file: Path | None, *, send_ping: bool, as_json: bool) -> None:
    """Say whether everything is as it must be, and what mends it where not."""
    # Imported here, since the help loads this module too.
    import anyio  # noqa: PLC0415

    from paliadin_sidecar.operator.checks.examine import examine  # noqa: PLC0415
    from paliadin_sidecar.operator.checks.receiver import ping  # noqa: PLC0415

    settings_file = env_file or DEFAULT_ENV_FILE
    with clear_errors():
        environ = merged_environment(os.environ, env_file)
        try:
            instance = instances.inspect(_state_dir(environ), env_file)
            environ = _environment_of(instance, environ, settings_file)
            settings = Settings.from_environment(environ)
        except BadSettings as exc:
            if not as_json:
                raise
            _print([wrong("configuration", one) for one in exc.problems], as_json=True)
            sys.exit(exc.exit_code)
    secret_file = environ.get("PALIADIN_CALLBACK_SECRET_FILE")
    findings = examine(
        settings,
        (settings_file, Path(secret_file or settings_file.parent / "callback-secret")),
        owner_named=bool(environ.get("PALIADIN_OWNER")),
        unknown=Settings.unknown_variables(environ),
        instance=instance,
    )
    if send_ping:
        findings += anyio.run(ping, settings)
    commands = instance.hosting.commands_of_this_host
    _print([replace(each, message=commands(each.message)) for each in findings], as_json=as_json)
    sys.exit(1 if any(each.level == "wrong" for each in findings) else 0)


def _state_dir(environ: Mapping[str, str]) -> Path:
    state_dir = find_state_dir(environ)
    if os.geteuid() and state_dir.is_dir() and not os.access(state_dir, os.R_OK | os.X_OK):
        # Most of what follows would look wrong to this user, and not be so.
        raise PermissionError(errno.EACCES, "", str(state_dir))
    return state_dir


def _environment_of(
    instance: Instance, environ: Mapping[str, str], env_file: Path
) -> dict[str, str]:
    # Drop-ins may say more than the file, and later ones other things. A file that is not the
    # unit's is an operator's trial.
    found = dict(environ)
    unit = instance.unit
    if unit is not None and str(env_file) in unit.environment_files:
        found |= unit.environment
        for path in map(Path, unit.environment_files):
            with suppress(BadSettings):
                found |= merged_environment({}, path)
        found |= os.environ
    if not any(map(found.get, _SECRET_VARIABLES)):
        # An operator's command signs with the service's secret.
        folder = _credentials(find_state_dir(environ), env_file)
        found |= {"CREDENTIALS_DIRECTORY": str(folder)} if folder else {}
    return found


def _credentials(state_dir: Path, env_file: Path) -> Path | None:
    # The directory with the service's callback-secret. It lies beside the environment file; where
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


def _print(findings: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        print_json([msgspec.to_builtins(each) for each in findings])
    else:
        print_table(("", "what", "finding"), [(f.level, f.subject, f.message) for f in findings])
