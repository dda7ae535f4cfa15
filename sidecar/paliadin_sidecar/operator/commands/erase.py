"""`erase`: takes answers, and the trace of a person, out of the outbox."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from paliadin_sidecar.host.storage import user_name
from paliadin_sidecar.operator import session
from paliadin_sidecar.operator.terminal import printable
from paliadin_sidecar.outbox import erasure, queries
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.erasure import Erasable

#: One transaction, for which a delivery may have to wait, and the rest after it.
_MAX_TURNS, _MAX_BYTES, _REST_S = 100, 4 * 1024 * 1024, 0.05
#: Others read for milliseconds.
_EMPTY_WITHIN_S = 10.0
#: As many turns are named.
_MAX_SHOWN = 10


@click.command()
@session.env_file_option
@click.argument("turn_ids", metavar="[TURN_ID]...", nargs=-1)
@click.option(
    "--user", "prefix", metavar="PREFIX", help="All turns of the user whose id begins so."
)
@click.option("--undelivered", is_flag=True, help="Also what the receiver does not have.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(
    env_file: Path | None,
    turn_ids: Sequence[str],
    prefix: str | None,
    *,
    undelivered: bool,
    yes: bool,
) -> None:
    """Erase answers, and the trace of a person, from the outbox.

    That a turn was erased stays, with when and by which system user. What is undelivered is
    refused. The beginning of an id is enough where no other id begins so.
    """
    if bool(turn_ids) == (prefix is not None):
        raise click.UsageError("name turns, or --user")
    with session.opened_outbox(env_file) as (state_dir, outbox):
        turns, missed = _named(outbox, turn_ids) if turn_ids else _of_user(outbox, prefix or "")
        wanted = [turn for turn in turns if undelivered or not turn.is_undelivered]
        if wanted and not yes:
            _ask(wanted)
        erased: list[Erasable] = []
        for portion in erasure.portions(wanted, _MAX_TURNS, _MAX_BYTES):
            time.sleep(_REST_S if erased else 0)
            steps = [
                partial(erasure.erase, outbox, turn.id, _typed_by(), undelivered=undelivered)
                for turn in portion
            ]
            erased += [turn for turn in outbox.transaction(steps) if turn is not None]
        # Also where nothing was left to erase: an earlier run may have been ended before this.
        is_empty = erasure.empty_log(outbox, _EMPTY_WITHIN_S)
        roots = queries.service(outbox)["roots"]
    gone = {turn.id for turn in erased}
    refused = [turn for turn in turns if turn.id not in gone]
    click.echo(_number(len(erased)) + " erased")
    _print_out_of_reach(erased, roots, state_dir)
    if refused:
        names = session.listed([turn.turn_id for turn in refused])
        click.echo(
            f"{_number(len(refused))} undelivered, and kept: {names}. With --undelivered such a "
            "turn is erased, and paliad never gets it",
            err=True,
        )
    if not is_empty:
        click.echo(
            f"{outbox.path}-wal still holds what was erased, since somebody reads the outbox: "
            "type the same again",
            err=True,
        )
    sys.exit(0 if is_empty and not refused and not missed else 1)


def _named(outbox: Outbox, given: Sequence[str]) -> tuple[list[Erasable], bool]:
    ids, missed = session.find_turns(outbox, given)
    found = {turn.id: turn for id_ in ids for turn in erasure.turns_named(outbox, id_)}
    return list(found.values()), missed


def _of_user(outbox: Outbox, prefix: str) -> tuple[list[Erasable], bool]:
    users = erasure.users_beginning(outbox, prefix, _MAX_SHOWN) if prefix else []
    if len(users) == 1 or prefix in users:
        return erasure.turns_of(outbox, prefix if prefix in users else users[0]), False
    if users:
        click.echo(
            f"{printable(prefix)!r} is the beginning of several users' ids, name more of one",
            err=True,
        )
    else:
        click.echo(f"No turn of a user {printable(prefix)!r} is known", err=True)
    return [], True


def _typed_by() -> str:
    # Only root becomes root by sudo, and then it is of interest who did.
    own = user_name(os.geteuid())
    through_sudo = os.environ.get("SUDO_USER", "")
    return through_sudo if own == "root" and through_sudo else own


def _ask(wanted: Sequence[Erasable]) -> None:
    unsent = sum(turn.is_undelivered for turn in wanted)
    lost = f", of which paliad never gets {unsent}" if unsent else ""
    names = session.listed([turn.turn_id for turn in wanted])
    try:
        click.confirm(f"Erase {_number(len(wanted))}{lost} ({names})?", abort=True, err=True)
    except click.Abort:  # somebody said no, or nobody is there who could answer
        click.echo("Nothing was erased; --yes does not ask", err=True)
        sys.exit(1)


def _print_out_of_reach(
    erased: Sequence[Erasable], roots: Sequence[dict[str, str]], state_dir: Path
) -> None:
    if not erased:
        return
    paths = {(root["backend"], root["persona"]): root["path"] for root in roots}
    files = [
        f"{path}/{turn.turn_id}.txt"
        for turn in erased
        if turn.has_file and (path := paths.get((turn.backend, turn.persona)))
    ]
    click.echo("Out of reach of this command, and not erased:")
    if files:
        more = f", and {len(files) - _MAX_SHOWN} more" if len(files) > _MAX_SHOWN else ""
        click.echo(f"- files in the directories: {' '.join(files[:_MAX_SHOWN])}{more}")
    else:
        click.echo("- files in the directories: none of these turns is known to have one")
    click.echo("- the journal: ids and sizes of the turns, and 8 characters of the user's id")
    click.echo("- what the receiver has, and the agent's own records")
    click.echo(f"- copies: reports, exports, backups, and what was moved aside in {state_dir}")


def _number(count: int) -> str:
    return "1 turn" if count == 1 else f"{count} turns"
