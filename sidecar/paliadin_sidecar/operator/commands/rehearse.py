"""`rehearse`: does a receiver keep the protocol? Played with turns that nobody has."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click

from paliadin_sidecar.environment import merged_environment
from paliadin_sidecar.operator import session, terminal
from paliadin_sidecar.operator.instance import environment_of_daemon
from paliadin_sidecar.operator.rehearsal.callbacks import PERSONA
from paliadin_sidecar.operator.rehearsal.rules import Judgement
from paliadin_sidecar.settings import Settings, is_loopback

#: Exit code where nothing was sent, since nobody said that it may be.
_NOT_CONFIRMED = 2


@click.command()
@session.env_file_option
@click.option(
    "--url", help="Where the receiver is. Default: PALIADIN_CALLBACK_URL, whose rules it follows."
)
@click.option("--yes", is_flag=True, help="Do not ask before sending to another host.")
@session.json_option
def rehearse(env_file: Path | None, url: str | None, *, yes: bool, as_json: bool) -> None:
    """Play docs/protocol.md against a receiver, with turns that nobody has.

    Says of each rule whether the receiver keeps it and, where not, what that costs. The receiver
    stores these turns like others, one of them of 4 MiB: their persona is `rehearsal`. Exit code 0:
    it keeps all that was played; 1: it breaks a rule, or does not answer; 2: nothing was sent.
    """
    import anyio  # noqa: PLC0415 - the help loads this module too

    from paliadin_sidecar.operator.rehearsal import play  # noqa: PLC0415 - the same

    with session.errors_end_the_command(env_file):
        _, environ = environment_of_daemon(merged_environment(os.environ, env_file), env_file)
        if url is not None:
            environ["PALIADIN_CALLBACK_URL"] = url
        settings = Settings.from_environment(environ)
    if not (yes or is_loopback(urlsplit(settings.callback_url).hostname or "")):
        _confirm(settings.callback_url)
    judgements = anyio.run(play.rehearse, settings)
    if as_json:
        terminal.print_json([_row(each) for each in judgements])
    else:
        broken = [each.rule.name for each in judgements if each.level == "breaks"]
        click.echo(f"BREAKS: {'; '.join(broken)}" if broken else "keeps all that was played")
        terminal.print_table(
            ("", "rule", "where it stands", "what came of it"),
            [(each.level, each.rule.name, each.rule.place, each.message) for each in judgements],
        )
    sys.exit(1 if any(each.level == "breaks" for each in judgements) else 0)


def _confirm(url: str) -> None:
    question = (
        f"{url} is not on this host. It gets about 60 requests, 60 MB in all, and stores turns "
        f"that nobody asked, one of them of 4 MiB: their persona is {PERSONA}. Send them?"
    )
    try:
        if click.confirm(question, err=True):
            return
        click.echo("Nothing was sent.", err=True)
    except click.Abort:
        click.echo("\nNothing was sent: --yes sends without asking.", err=True)
    sys.exit(_NOT_CONFIRMED)


def _row(judgement: Judgement) -> dict[str, str]:
    return {
        "level": judgement.level,
        "rule": judgement.rule.name,
        "place": judgement.rule.place,
        "message": judgement.message,
    }
