"""What the commands have in common: their options, the outbox, and how errors end them."""

from __future__ import annotations

import errno
import os
import pwd
import re
import shlex
import signal
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click

from paliadin_contract.ids import is_turn_id, turn_id_of
from paliadin_sidecar.environment import find_state_dir, merged_environment, seconds_of
from paliadin_sidecar.errors import BadSettings, OutboxError, SidecarError, Unwritable
from paliadin_sidecar.host import streams
from paliadin_sidecar.operator import instance as instances
from paliadin_sidecar.operator.instance import Hosting, is_unit, unit_name
from paliadin_sidecar.operator.terminal import local_time, printable
from paliadin_sidecar.outbox import queries
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.records import State
from paliadin_sidecar.outbox.sqlite_errors import translated, unreachable

#: The states of a delivery, as they are listed.
STATES = tuple(state.value for state in State)
ID_RULE = "a turn's file is <id>.txt, and an id has 1 to 64 of A-Z, a-z, 0-9, - and _"
#: As many candidates, or names, are shown.
_MAX_SHOWN = 10
#: What writers leave beside their target until it is renamed.
_DRAFT = re.compile(r"\.tmp(\.|\Z)|\A\.|~\Z")

env_file_option = click.option(
    "--env-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Read variables from this file where the environment does not set them. "
    "Default: /etc/paliadin/sidecar.env, if it is there.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a program.")


def since(text: str, option: str = "--since") -> float:
    """The time, in epoch seconds, that an age such as `7d` or a date means; 0 for `0`.

    Args:
        text: what was typed.
        option: behind which option.

    Raises:
        click.BadParameter: it is neither.
    """
    if text == "0":
        return 0.0
    if (age_s := seconds_of(text)) is not None:
        return max(0.0, time.time() - age_s)
    try:
        at = datetime.fromisoformat(text).timestamp()
        local_time(at)  # of a year that can be shown
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no age such as 30m, 12h or 7d, and no date such as 2026-11-22T08:00",
            param_hint=option,
        ) from None
    return at


def print_text(text: str) -> None:
    """Print a part of what may be long; where it cannot be written, that ends the command."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as exc:
        streams.discard_unwritten(sys.stdout)
        sys.exit(f"paliadin-sidecar: the output cannot be written: {exc.strerror}")


@contextmanager
def opened_outbox(
    env_file: Path | None, *, read_only: bool = False
) -> Iterator[tuple[Path, Outbox]]:
    """The state directory, and its outbox open; what goes wrong ends the command.

    Args:
        env_file: what the operator named by `--env-file`.
        read_only: the command only looks.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `… | head` is no error
    with errors_end_the_command(env_file):
        state_dir = find_state_dir(merged_environment(os.environ, env_file))
        path = state_dir / FILENAME
        try:
            with path.open("rb"):
                pass
            outbox = Outbox(path, read_only=read_only)
        except (FileNotFoundError, NotADirectoryError):
            click.echo(
                f"There is no outbox in {state_dir}: the daemon makes one when it starts. Is "
                "PALIADIN_STATE_DIR the daemon's?",
                err=True,
            )
            instance = instances.inspect(state_dir, env_file)
            for text in instance.hosting.texts(instance.problems()):
                click.echo(text, err=True)
            sys.exit(1)
        except Unwritable:
            raise PermissionError(errno.EACCES, "", str(path)) from None
        except PermissionError:
            raise
        except OSError as exc:
            raise unreachable(exc, path) from None
        with outbox:
            try:
                yield state_dir, outbox
            except sqlite3.Error as exc:
                raise translated(exc, path) from None


def find_turns(
    outbox: Outbox,
    given: Sequence[str],
    unknown: str = "No turn {!r} is known; `paliadin-sidecar turns` lists them.",
    *,
    may_come: bool = False,
) -> tuple[list[str], bool]:
    """The ids that are meant, each once, and whether one means none, or several, which is printed.

    An id is meant by all of it, by a beginning that no other has, or by its file's name.

    Args:
        outbox: where they are looked for.
        given: what the operator typed.
        unknown: what is printed of one that no turn has, with `{}` in its place.
        may_come: one that no turn has is itself, since it may come.
    """
    ids, missed = [], False
    for one in given:
        wanted = one.rpartition("/")[2].removesuffix(".txt")
        found = queries.find_ids(outbox, wanted, _MAX_SHOWN + 1) if is_turn_id(wanted) else []
        if not found and may_come and is_turn_id(wanted):
            found = [one]
        if len(found) == 1:
            ids += found
            continue
        missed = True
        if found:
            text = f"{one!r} is the beginning of several ids, name more of one: {listed(found)}"
        elif is_turn_id(wanted):
            text = unknown.format(one)
        else:
            text = f"{printable(one)!r} names no turn, and such a file is ignored: {ID_RULE}"
        click.echo(text, err=True)
    return list(dict.fromkeys(ids)), missed


def foreign_names(names: Iterable[str]) -> list[str]:
    """The names that are no turn's, no token's and no writer's draft: nothing is taken of them."""
    return sorted(
        name
        for name in names
        if not (turn_id_of(name) or turn_id_of(name, ".jwt") or _DRAFT.search(name))
    )


def listed(names: list[str]) -> str:
    """A list for a person, cut where it gets long, and that is said."""
    # A blank in a name, or at its end, shows between quotes.
    shown = ", ".join(n if is_turn_id(n) else f"'{printable(n)}'" for n in names[:_MAX_SHOWN])
    return f"{shown}, and more" if len(names) > _MAX_SHOWN else shown


@contextmanager
def errors_end_the_command(env_file: Path | None) -> Iterator[None]:
    """End the command with a sentence and the exit code of the error that ends the block."""
    try:
        yield
    except PermissionError as exc:
        click.echo(f"{exc.filename} may not be read by this user. {_sudo(exc.filename)}", err=True)
        sys.exit(1)
    except BadSettings as exc:
        for problem in _of_this_host(exc.problems, env_file):
            click.echo(problem, err=True)
        sys.exit(exc.exit_code)
    except SidecarError as exc:
        remedy = exc.remedy
        if isinstance(exc, OutboxError):
            state_dir = exc.path.parent
            unit = Hosting(unit_name(state_dir)) if is_unit() else None
            remedy = (unit or instances.inspect(state_dir, env_file).hosting).remedy(exc)
        mark = "." if remedy[:1].isupper() else ":"
        click.echo(f"{exc}{mark} {remedy}" if remedy else exc, err=True)
        sys.exit(exc.exit_code)


def _of_this_host(problems: list[str], env_file: Path | None) -> list[str]:
    # The environment of an operator's command is not the unit's.
    if is_unit():
        return problems
    try:
        state_dir = find_state_dir(merged_environment(os.environ, env_file))
    except (BadSettings, PermissionError):
        return problems
    instance = instances.inspect(state_dir, env_file)
    of_daemon = instance.hosting.texts(instance.problems())
    return instance.hosting.setting_problems(problems) + of_daemon


def _sudo(filename: str) -> str:
    typed = shlex.join(["paliadin-sidecar", *sys.argv[1:]])
    if sys.argv[1:2] == ["check"]:
        # The daemon's user has the unit's capabilities in the unit alone, and would see less.
        return f"Try: sudo {typed}"
    path = Path(filename)
    while not os.access(path.parent, os.X_OK) and path != path.parent:
        path = path.parent
    try:
        owner = pwd.getpwuid(path.stat().st_uid).pw_name
    except (OSError, KeyError):
        owner = "root"
    return f"Try: sudo -u {owner} {typed}"
