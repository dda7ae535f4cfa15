"""`log`: the events as `run` prints them on a terminal, from the outbox's rows.

They are the journal's lines before they became JSON: none is cut by a level, and they are there as
long as the turn is, also where the journal was rotated or is read by root alone.
"""

from __future__ import annotations

import select
import signal
import sys
from typing import TYPE_CHECKING, TextIO

import click

from paliadin_sidecar.errors import NoSuchTurn, Replaced
from paliadin_sidecar.host import state_directory
from paliadin_sidecar.operator import session
from paliadin_sidecar.outbox.records import Event

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from paliadin_sidecar.outbox.outbox import Outbox

__all__ = ["log"]

#: Who follows all sees so many lines first, as with `tail -f`.
_FIRST_LINES = 10
#: Another process's commits are no event that could be awaited.
_POLL_MS = 250


@click.command()
@session.env_file_option
@click.argument("turn_ids", metavar="[TURN_ID]...", nargs=-1)
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until Ctrl-C.")
def log(env_file: Path | None, turn_ids: Sequence[str], *, follow: bool) -> None:
    """Print the events, as the journal has them, for a person; of these turns, or all.

    The beginning of an id is enough where no other id begins so.
    """
    # Imported here, since the help loads this module too.
    from paliadin_sidecar.audit.lines import Audit, unconfirmable  # noqa: PLC0415

    audit, missed = Audit(session.stdout(), readable=True), False
    with session.opened_outbox(env_file) as (state_dir, outbox):
        key = state_directory.journal_key(state_dir)
        if follow:
            signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
            events = _follow(outbox, _find_or_await(outbox, turn_ids), session.stdout())
        else:
            ids, missed = session.find_turns(outbox, turn_ids)
            # Where none of those that were named is known, it is not all that is meant.
            events = _past(outbox, ids) if ids or not turn_ids else iter(())
        for event in events:
            audit.line(event.name, event.at, unconfirmable(event.fields, key))
    sys.exit(1 if missed else 0)


def _past(outbox: Outbox, ids: Collection[str]) -> Iterator[Event]:
    """The events of these turns, or all where none is named, in their order."""
    if not ids:
        yield from _after(outbox, 0)
        return
    found = {
        event["id"]: event
        for id_ in ids
        for turn in outbox.timelines(id_)
        for event in turn["events"]
    }
    for number in sorted(found):
        fields = dict(found[number])
        del fields["id"]
        yield Event(number, fields.pop("at"), fields.pop("event"), fields)


def _find_or_await(outbox: Outbox, given: Sequence[str]) -> list[str]:
    """The ids that are meant; one that no turn has yet is itself: it may come.

    Raises:
        NoSuchTurn: one can be no id, or several begin so.
    """
    ids = []
    for one in given:
        try:
            ids.append(session.find_turn(outbox, one))
        except NoSuchTurn as exc:
            if not exc.is_unknown:
                raise
            ids.append(one)
    return ids


def _follow(outbox: Outbox, ids: Collection[str], output: TextIO) -> Iterator[Event]:
    """The events of these turns, or the last ten of all, and what comes while `output` is read.

    Raises:
        Replaced: the outbox was moved aside.
    """
    path = outbox.path
    identity = (path.stat().st_dev, path.stat().st_ino)
    reader = select.poll()
    reader.register(output, 0)  # that nobody reads any more is told in any case
    after = outbox.newest_event()
    if ids:
        yield from (event for event in _past(outbox, ids) if event.id <= after)
    else:
        after = max(0, after - _FIRST_LINES)
    while True:
        for event in _after(outbox, after):
            after = event.id
            told = event.fields
            if not ids or told.get("turn_id") in ids or told.get("submitted_turn_id") in ids:
                yield event
        if reader.poll(_POLL_MS):
            return
        try:
            now = path.stat()
        except FileNotFoundError:
            raise Replaced(path) from None
        if (now.st_dev, now.st_ino) != identity:
            raise Replaced(path)


def _after(outbox: Outbox, event: int) -> Iterator[Event]:
    # In portions: a year's do not fit into memory.
    while events := outbox.events(event):
        yield from events
        event = events[-1].id
