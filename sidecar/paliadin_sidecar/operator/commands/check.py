"""`check`: whether everything is as it must be, and what mends it where not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from paliadin_sidecar.errors import BadSettings
from paliadin_sidecar.operator.findings import wrong
from paliadin_sidecar.operator.instance import environment_of_daemon
from paliadin_sidecar.operator.session import (
    env_file_option,
    environment,
    errors_end_the_command,
    json_option,
)
from paliadin_sidecar.operator.terminal import print_json, print_table
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paliadin_sidecar.operator.findings import Finding

__all__ = ["check"]


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

    with errors_end_the_command():
        environ = environment(env_file)
        try:
            instance, environ = environment_of_daemon(environ, env_file)
            settings = Settings.from_environment(environ)
        except BadSettings as exc:
            if not as_json:
                raise
            _print([wrong("configuration", one) for one in exc.problems], as_json=True)
            sys.exit(exc.exit_code)
    secret_file = environ.get("PALIADIN_CALLBACK_SECRET_FILE")
    findings = examine(
        settings,
        (instance.env_file, Path(secret_file or instance.env_file.parent / "callback-secret")),
        owner_named=bool(environ.get("PALIADIN_OWNER")),
        unknown=Settings.unknown_variables(environ),
        instance=instance,
    )
    if send_ping:
        findings += anyio.run(ping, settings)
    commands = instance.hosting.commands_of_this_host
    _print([replace(each, message=commands(each.message)) for each in findings], as_json=as_json)
    sys.exit(1 if any(each.level == "wrong" for each in findings) else 0)


def _print(findings: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        print_json([msgspec.to_builtins(each) for each in findings])
    else:
        print_table(("", "what", "finding"), [(f.level, f.subject, f.message) for f in findings])
