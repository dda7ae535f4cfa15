"""`turns`, `show`, `log` and `replay`: what was accepted, what became of it, and sending again."""

from __future__ import annotations

import select
import signal
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import click

from paliadin_sidecar.audit.lines import Audit, redacted
from paliadin_sidecar.host import state_directory
from paliadin_sidecar.operator import session, terminal
from paliadin_sidecar.operator.diagnosis import answer_name, likely_cause
from paliadin_sidecar.outbox import event_rows, queries, transitions
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.records import Event

#: What the line above a turn's table says already, or nobody needs to see.
_HIDDEN = {
    "turn_id", "backend", "persona", "submitted_turn_id", "user", "sha256", "webhook_id",
}  # fmt: skip
#: Who follows all sees so many lines first, as with `tail -f`.
_FIRST_LINES = 10
#: Another process's commits are no event that could be awaited.
_POLL_MS = 250


@click.command()
@session.env_file_option
@click.option("--state", type=click.Choice(session.STATES), help="Only these.")
@click.option(
    "--since", "since_text", default="0", help="Accepted since: 30m, 12h, 7d, or 2026-11-22T08:00."
)
@click.option("--limit", default=50, type=click.IntRange(1, 100_000), show_default=True)
@session.json_option
def turns(
    env_file: Path | None, state: str | None, since_text: str, limit: int, *, as_json: bool
) -> None:
    """List deliveries, the newest first."""
    from_s = session.since(since_text)
    with session.opened_outbox(env_file, read_only=True) as (_, outbox):
        rows = queries.deliveries(outbox, state, from_s, limit)
        number = queries.count_deliveries(outbox, state, from_s)
    more = f"{len(rows)} of {number} deliveries; --limit {number} shows all"
    if as_json:
        terminal.print_json([terminal.with_utc_times(row) for row in rows])
        if number > len(rows):
            click.echo(more, err=True)
        return
    if not rows:
        when = "" if since_text == "0" else f" accepted since {terminal.local_time(from_s)}"
        click.echo("No deliveries" + (f" that are {state}" if state else "") + when)
        return
    _print_deliveries(rows)
    if number > len(rows):
        click.echo(more)


def _print_deliveries(rows: Sequence[Mapping[str, Any]]) -> None:
    terminal.print_table(
        ("turn", "rev", "backend", "user", "state", "tries", "last answer", "bytes", "accepted"),
        [
            (
                row["turn_id"],
                row["revision"],
                f"{row['backend']}/{row['persona']}",
                row["user"] or "",
                f"{row['state']} ({row['reason']})" if row["reason"] else row["state"],
                row["attempts"],
                answer_name(*_last_answer(row)),
                row["bytes"],
                terminal.local_time(row["accepted_at"]),
            )
            for row in rows
        ],
    )
    failed = {_last_answer(row) for row in rows if row["state"] in {"pending", "dead"}}
    for answer in sorted(failed, key=str):
        if any(answer):
            click.echo(f"{answer_name(*answer)}: {likely_cause(*answer)}")


def _last_answer(row: Mapping[str, Any]) -> tuple[int | None, str | None, str | None]:
    return row["last_status"], row["last_error"], row["last_detail"]


@click.command()
@session.env_file_option
@click.argument("turn_ids", metavar="TURN_ID...", nargs=-1, required=True)
@session.json_option
def show(env_file: Path | None, turn_ids: Sequence[str], *, as_json: bool) -> None:
    """Print all that happened to turns, by their own ids or those they were submitted under.

    The beginning of an id is enough where no other id begins so.
    """
    with session.opened_outbox(env_file, read_only=True) as (_, outbox):
        ids, missed = session.find_turns(outbox, turn_ids)
        found = [turn for id_ in ids for turn in queries.timelines(outbox, id_)]
    if as_json:
        terminal.print_json([_timeline_json(turn) for turn in found])
    for turn in [] if as_json else found:
        _print_timeline(turn)
    sys.exit(1 if missed else 0)


def _timeline_json(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **turn,
        "deliveries": [terminal.with_utc_times(row) for row in turn["deliveries"]],
        "events": [
            {"id": event.id, "at": terminal.utc_time(event.at), "event": event.name, **event.fields}
            for event in turn["events"]
        ],
    }


def _print_timeline(turn: Mapping[str, Any]) -> None:
    about = f"{turn['turn_id']} {turn['backend']}/{turn['persona']}"
    if turn["submitted_turn_id"]:
        about += f", submitted as {turn['submitted_turn_id']} by {turn['user']}"
    click.echo(about)
    terminal.print_table(
        ("when", "event", "what"),
        [
            (
                terminal.local_time(event.at),
                event.name,
                " ".join(f"{k}={v}" for k, v in event.fields.items() if k not in _HIDDEN),
            )
            for event in turn["events"]
        ],
    )
    for delivery in turn["deliveries"]:
        if delivery["said"] is not None:
            click.echo(f"Revision {delivery['revision']} was refused with: {delivery['said']}")


@click.command()
@session.env_file_option
@click.argument("turn_ids", metavar="[TURN_ID]...", nargs=-1)
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until Ctrl-C.")
def log(env_file: Path | None, turn_ids: Sequence[str], *, follow: bool) -> None:
    """Print the events, as the journal has them, for a person; of these turns, or all.

    The beginning of an id is enough where no other id begins so.
    """
    audit = Audit(sys.stdout, readable=True)
    with session.opened_outbox(env_file, read_only=True) as (state_dir, outbox):
        key = state_directory.journal_key(state_dir)
        ids, missed = session.find_turns(outbox, turn_ids, may_come=follow)
        if missed and (follow or not ids):
            sys.exit(1)  # where none of those that were named is known, it is not all that is meant
        if follow:
            signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        events = _follow(outbox, ids, sys.stdout) if follow else _past(outbox, ids)
        for event in events:
            audit.line(event.name, event.at, redacted(event.fields, key))
    sys.exit(1 if missed else 0)


def _past(outbox: Outbox, ids: Collection[str]) -> Iterator[Event]:
    """The events of these turns, or all where none is named, in their order."""
    if not ids:
        yield from _after(outbox, 0)
        return
    timelines = [turn for id_ in ids for turn in queries.timelines(outbox, id_)]
    found = {event.id: event for turn in timelines for event in turn["events"]}
    for number in sorted(found):
        yield found[number]


def _follow(outbox: Outbox, ids: Collection[str], output: TextIO) -> Iterator[Event]:
    """The events of these turns, or the last ten of all, and what comes while `output` is read.

    Raises:
        Replaced: the outbox was moved aside.
    """
    reader = select.poll()
    reader.register(output, 0)  # that nobody reads any more is reported in any case
    after = event_rows.newest_id(outbox)
    if ids:
        yield from (event for event in _past(outbox, ids) if event.id <= after)
    else:
        after = max(0, after - _FIRST_LINES)
    while True:
        for event in _after(outbox, after):
            after = event.id
            fields = event.fields
            if not ids or fields.get("turn_id") in ids or fields.get("submitted_turn_id") in ids:
                yield event
        if reader.poll(_POLL_MS):
            return
        outbox.files.expect_in_place()


def _after(outbox: Outbox, event: int) -> Iterator[Event]:
    # In portions: a year's do not fit into memory.
    while events := event_rows.events(outbox, event):
        yield from events
        event = events[-1].id


@click.command()
@session.env_file_option
@click.argument("turn_ids", metavar="[TURN_ID]...", nargs=-1)
@click.option("--dead", is_flag=True, help="All that were given up.")
@click.option(
    "--since",
    "since_text",
    help="All accepted or acknowledged since: 30m, 12h, 7d, or 2026-11-22T08:00.",
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
    from_s = session.since(since_text or "0")
    with session.opened_outbox(env_file) as (state_dir, outbox):
        ids, missed = session.find_turns(outbox, turn_ids, "{}: not known: nothing to replay")
        if turn_ids and not ids:
            sys.exit(1)
        replay_each = partial(transitions.replay, outbox, dead=dead, since=from_s)
        results = outbox.transaction([partial(replay_each, turn_id=one) for one in ids or (None,)])
        alive = state_directory.is_alive(state_dir)
    sent = sum(count for count, _ in results)
    without_body = list(chain.from_iterable(ids_left for _, ids_left in results))
    click.echo(f"{sent} will be sent again" + ("" if alive else " as soon as the daemon runs"))
    for turn_id, result in zip(ids, results, strict=False):
        if result == (0, []):
            click.echo(f"{turn_id}: not settled yet, or erased: nothing to replay", err=True)
            missed = True
    if without_body:
        click.echo(
            f"{len(without_body)} cannot be ({session.listed(without_body)}): bodies are let go "
            "PALIADIN_KEEP_ANSWERS (72h unless it is set) after their acknowledgement, or earlier "
            "where the outbox takes more than PALIADIN_MAX_OUTBOX. What is still in its directory, "
            "as <id>.txt, goes again from a new outbox: docs/operate.md, Send again",
            err=True,
        )
    sys.exit(1 if missed or without_body else 0)
