"""`replay`: settled turns are sent again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from paliadin_sidecar.host import state_directory
from paliadin_sidecar.operator.session import env_file_option, find_turns, opened_outbox, since

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["replay"]


@click.command()
@env_file_option
@click.argument("turn_ids", metavar="[TURN_ID]...", nargs=-1)
@click.option("--dead", is_flag=True, help="All that were given up.")
@click.option(
    "--since", "since_text", help="All accepted since: 30m, 12h, 7d, or 2026-11-22T08:00."
)
def replay(
    env_file: Path | None, turn_ids: Sequence[str], *, dead: bool, since_text: str | None
) -> None:
    """Send again what was settled, with the same id and body.

    The beginning of an id is enough where no other id begins so.
    """
    if not turn_ids and not dead and since_text is None:
        raise click.UsageError("name turns, or --dead, or --since")
    if turn_ids and (dead or since_text is not None):
        raise click.UsageError("name turns, or say --dead and --since, not both")
    from_s = since(since_text or "0")
    with opened_outbox(env_file) as (state_dir, outbox):
        ids, missed = find_turns(outbox, turn_ids, "{}: not known: nothing to replay")
        if turn_ids and not ids:
            sys.exit(1)
        (results,) = outbox.transaction(
            [
                lambda: [
                    outbox.replay(turn_id=turn_id, dead=dead, since=from_s)
                    for turn_id in (ids or (None,))
                ]
            ]
        )
        alive = state_directory.is_alive(state_dir)
    sent, without_body = (sum(column) for column in zip(*results, strict=True))
    click.echo(f"{sent} will be sent again" + ("" if alive else " as soon as the daemon runs"))
    for turn_id, result in zip(ids, results, strict=False):
        if result == (0, 0):
            click.echo(f"{turn_id}: not settled yet: nothing to replay", err=True)
            missed = True
    if without_body:
        click.echo(
            f"{without_body} cannot be: bodies are let go 72 h after their acknowledgement, or "
            "earlier where the outbox takes more than PALIADIN_MAX_OUTBOX",
            err=True,
        )
    sys.exit(1 if missed or without_body else 0)
