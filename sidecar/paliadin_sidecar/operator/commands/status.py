"""`status`: how the daemon does, and what is wrong."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import click

from paliadin_sidecar.host import storage
from paliadin_sidecar.operator import diagnosis, session, terminal
from paliadin_sidecar.operator import instance as instances
from paliadin_sidecar.operator.diagnosis import Problem
from paliadin_sidecar.operator.instance import Instance
from paliadin_sidecar.outbox import queries
from paliadin_sidecar.outbox.database import Outbox

#: So many names of a root are looked through for those that are ignored.
_MAX_LISTED = 10_000
#: Undelivered for longer than this is wrong, whatever the reason; the alert has the same limit.
_OVERDUE_S = 300.0
#: A directory that is missing for longer than this is wrong; the alert has the same limit.
_MISSING_S = 600.0
#: So many attempts without success are wrong at once: they take a second or two.
_ATTEMPTS = 3
#: A turn that was given up is wrong for a day; then it is history that `turns` shows.
_DEAD_S = 86_400.0


@click.command()
@session.env_file_option
@session.json_option
@click.option("--quiet", is_flag=True, help="Print nothing; the exit code says it.")
def status(env_file: Path | None, *, as_json: bool, quiet: bool) -> None:
    """Say how the daemon does; exit 1 when something is wrong."""
    with session.opened_outbox(env_file, read_only=True) as (state_dir, outbox):
        found = _status(instances.inspect(state_dir, env_file), outbox, state_dir)
    if as_json:
        terminal.print_json(found)
    elif not quiet:
        _print_status(found)
    sys.exit(1 if found["problems"] else 0)


def _status(instance: Instance, outbox: Outbox, state_dir: Path) -> dict[str, Any]:
    now = time.time()
    service = queries.service(outbox)
    oldest_s = queries.oldest_pending_s(outbox)
    dead = queries.dead_since(outbox, now - _DEAD_S)
    problems = instance.problems()
    if storage.is_read_only(state_dir):
        # The daemon cannot say so where it says all else, and an idle one does not know.
        cause = "no answer is accepted, since the outbox's file system is read-only"
        problems.insert(0, Problem(cause, f"{cause}; paliadin-sidecar check says what mends it"))
    failing = queries.failing(outbox, attempts=_ATTEMPTS, dead_since=now - _DEAD_S)
    if service["paused_at"] is not None:
        paused_for, paused_at = service["paused_for"], service["paused_at"]
        problems.append(diagnosis.pause_problem(paused_for, paused_at, failing))
    problems += diagnosis.root_problems(service["roots"], now - _MISSING_S)
    problems += diagnosis.waiting_problems(service["roots"])
    if oldest_s is not None and oldest_s > _OVERDUE_S:
        text = f"a turn has been undelivered for {_age(oldest_s)}"
        problems.append(Problem(text, text))
    problems += diagnosis.failing_problems(failing, dead=dead, paused_for=service["paused_for"])
    return {
        "alive": instance.alive,
        "cause": problems[0].cause if problems else None,
        "problems": instance.hosting.texts(problems),
        "counts": dict.fromkeys(session.STATES, 0) | queries.counts(outbox),
        "outbox_bytes": outbox.used_bytes(),
        "oldest_undelivered_s": oldest_s,
        "paused": service["paused_at"] is not None,
        "paused_for": service["paused_for"],
        "roots": list(map(_root, service["roots"])),
    }


def _root(root: dict[str, Any]) -> dict[str, Any]:
    waiting = [terminal.with_utc_times(file, "since") for file in root["waiting"]]
    return terminal.with_utc_times(root, "since") | {"waiting": waiting}


def _age(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))


def _print_status(found: Mapping[str, Any]) -> None:
    state = "running" if found["alive"] else "not running"
    click.echo(terminal.printable(f"{state}: {found['cause'] or 'nothing is wrong'}"))
    for problem in found["problems"]:
        click.echo(f"WRONG: {problem}")
    terminal.print_table(("state", "deliveries"), list(found["counts"].items()))
    if found["oldest_undelivered_s"] is not None:
        click.echo(f"oldest undelivered: {_age(found['oldest_undelivered_s'])}")
    columns = ("path", "state", "turn_files", "foreign_files")
    terminal.print_table(
        ("root", "path", "state", "turn files", "others"),
        [
            (f"{root['backend']}/{root['persona']}", *(root[name] for name in columns))
            for root in found["roots"]
        ],
    )
    _print_foreign_names(found["roots"])


def _print_foreign_names(roots: Sequence[Mapping[str, Any]]) -> None:
    for root in roots:
        if root["state"] != "armed" or not root["foreign_files"]:
            continue  # one that does not answer is not asked
        try:
            with os.scandir(root["path"]) as names:
                found = session.foreign_names(entry.name for entry in islice(names, _MAX_LISTED))
        except OSError:
            continue  # its state says so
        if found:
            click.echo(f"ignored in {root['path']}: {session.listed(found)} ({session.ID_RULE})")
