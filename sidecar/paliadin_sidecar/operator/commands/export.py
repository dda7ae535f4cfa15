"""`export`: all that the audit knows, for a spreadsheet or a program."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from paliadin_sidecar.audit.catalogue import FIELDS, level_of
from paliadin_sidecar.audit.pages import TURN_COLUMNS, event_pages, turn_pages
from paliadin_sidecar.host import streams
from paliadin_sidecar.operator import session
from paliadin_sidecar.operator.spreadsheet import csv_lines
from paliadin_sidecar.operator.terminal import utc_time, with_utc_times
from paliadin_sidecar.outbox import event_rows
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.records import Event

#: What an event of another version has beside what is known here, as JSON.
_OTHER = "other"
#: The columns of exported events.
EVENT_COLUMNS = ("event_id", "timestamp", "level", "event", *FIELDS, _OTHER)


@click.command()
@session.env_file_option
@click.option(
    "--since", "since_text", default="0", help="Since: 30m, 12h, 7d, or 2026-11-22T08:00."
)
@click.option("--until", "until_text", help="And before: an age or a date, as for --since.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "jsonl"]),
    default="csv",
    show_default=True,
    help="For a spreadsheet; or a JSON object on each line, with each value as it is.",
)
@click.option(
    "--turns/--events",
    "of_turns",
    default=False,
    show_default="--events",
    help="A row for each delivery of a turn, or for each event.",
)
@click.option(
    "--after",
    type=click.IntRange(0),
    help="Only events after this one, by its event_id: what an earlier export did not have.",
)
def export(
    env_file: Path | None,
    since_text: str,
    until_text: str | None,
    form: str,
    after: int | None,
    *,
    of_turns: bool,
) -> None:
    """Print all that the audit knows, in the order in which it happened; docs/audit.md explains it.

    It holds no answer, no token and no secret.
    """
    if of_turns and after is not None:
        raise click.UsageError("--after names an event, and --turns prints none")
    since = session.since(since_text)
    until = math.inf if until_text is None else session.since(until_text, "--until")
    with session.opened_outbox(env_file, read_only=True) as (_, outbox):
        if of_turns:
            columns: Sequence[str] = TURN_COLUMNS
            turns = turn_pages(outbox, since=since, until=until)
            pages = ([with_utc_times(row) for row in rows] for rows in turns)
        else:
            _expect_given(outbox, after or 0)
            columns = EVENT_COLUMNS
            events = event_pages(outbox, after=after or 0, since=since, until=until)
            pages = ([_row(event) for event in page] for page in events)
        streams.as_utf8(sys.stdout)
        is_csv, encode = form == "csv", msgspec.json.Encoder().encode_lines
        if is_csv:
            session.print_text(",".join(columns) + "\n")
        for rows in pages:
            session.print_text(
                csv_lines(columns, rows, _OTHER) if is_csv else encode(rows).decode()
            )


def _expect_given(outbox: Outbox, event: int) -> None:
    newest = event_rows.newest_id(outbox)
    if event > newest:
        # Not merely nothing new: what follows in this outbox would be passed over.
        raise click.ClickException(
            f"no event {event} was recorded in {outbox.path} yet, its last one is {newest}: an "
            "outbox that was begun anew counts from 1, so export it with --after 0"
        )


def _row(event: Event) -> dict[str, Any]:
    return {
        "event_id": event.id,
        "timestamp": utc_time(event.at),
        "level": level_of(event.name),
        "event": event.name,
        **event.fields,
    }
