"""`check`: whether everything is as it must be, and what mends it where not."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from paliadin_sidecar.environment import merged_environment, unknown_sentence
from paliadin_sidecar.errors import BadSettings
from paliadin_sidecar.operator import session, terminal
from paliadin_sidecar.operator.diagnosis import Finding, ok, wrong
from paliadin_sidecar.operator.instance import environment_of_daemon
from paliadin_sidecar.settings import Settings


@click.command()
@session.env_file_option
@click.option(
    "--ping",
    "send_ping",
    is_flag=True,
    help="Also ping the receiver: signed well, then with a wrong signature.",
)
@session.json_option
def check(env_file: Path | None, *, send_ping: bool, as_json: bool) -> None:
    """Say whether everything is as it must be, and what mends it where not."""
    import anyio  # noqa: PLC0415 - the help loads this module too

    from paliadin_sidecar.operator.checks import daemon, directories, receiver  # noqa: PLC0415 - the help loads this module too

    with session.errors_end_the_command(env_file):
        environ = merged_environment(os.environ, env_file)
        try:
            instance, environ = environment_of_daemon(environ, env_file)
            settings = Settings.from_environment(environ)
        except BadSettings as exc:
            if not as_json:
                raise
            _print([wrong("configuration", one) for one in exc.problems], as_json=True)
            sys.exit(exc.exit_code)
    owner_named = bool(environ.get("PALIADIN_OWNER"))
    secret_file = environ.get("PALIADIN_CALLBACK_SECRET_FILE")
    secret_file = secret_file or f"{instance.env_file.parent}/callback-secret"
    of_roots, answering = directories.roots(settings, owner_named=owner_named)
    reachable = replace(settings, roots=answering)
    # In the order of what depends on what.
    findings = [
        ok("configuration", "every variable can be read"),
        *daemon.state(settings, instance, owner_named=owner_named),
        *(wrong("variable", unknown_sentence(*one)) for one in settings.unknown),
        *directories.state_directory(settings.state_dir),
        *directories.outbox(settings, instance.hosting),
        *of_roots,
        *directories.room_for_answers(reachable),
        *daemon.what_the_unit_hides(settings, instance.unit),
        daemon.file_events(reachable),
        *daemon.read_leases(reachable),
        receiver.callback_secrets(settings),
        *receiver.exposed_secrets((instance.env_file, Path(secret_file))),
        receiver.callback_url(settings),
    ]
    if send_ping:
        findings += anyio.run(receiver.ping, settings)
    commands = instance.hosting.commands_of_this_host
    _print([replace(each, message=commands(each.message)) for each in findings], as_json=as_json)
    sys.exit(1 if any(each.level == "wrong" for each in findings) else 0)


def _print(findings: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        shown = ("level", "subject", "message")
        terminal.print_json([{name: getattr(each, name) for name in shown} for each in findings])
    else:
        causes = [each.sentence for each in findings if each.level == "wrong"]
        click.echo(terminal.printable(f"WRONG: {causes[0]}" if causes else "nothing is wrong"))
        terminal.print_table(
            ("", "what", "finding"), [(f.level, f.subject, f.message) for f in findings]
        )
