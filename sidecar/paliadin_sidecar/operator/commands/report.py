"""`report`: how the assistant did, as one HTML file."""

from __future__ import annotations

import gc
import os
import secrets
import socket
import stat
import sys
import time
from importlib.metadata import version
from pathlib import Path

import click

from paliadin_sidecar.audit.turn_history import read_history
from paliadin_sidecar.environment import Reader, merged_environment
from paliadin_sidecar.host.priority import at_low_priority
from paliadin_sidecar.operator import instance as instances
from paliadin_sidecar.operator import session
from paliadin_sidecar.operator.language import Code, Language
from paliadin_sidecar.outbox import event_rows, queries
from paliadin_sidecar.outbox.records import State, to_ms, to_ms_or_none

#: What the extra `report` brings.
_EXTRA = frozenset({"jinja2", "markupsafe", "svg"})
#: A period that has no event at all is shown as so long.
_DAY_S = 86_400.0


@click.command()
@session.env_file_option
@click.option(
    "--since",
    "since_text",
    default="7d",
    show_default=True,
    help="From then on: 12h, 7d, 2026-11-22, or 0 for all that is kept.",
)
@click.option("--until", "until_text", help="Up to then; without it, up to now.")
@click.option(
    "--out",
    default="report.html",
    show_default=True,
    help="The file that is written, or replaced; - for standard output.",
)
@click.option("--anonymous", is_flag=True, help="Name nobody.")
@click.option("--language", type=click.Choice(["de", "en"]), default="en", show_default=True)
def report(
    env_file: Path | None,
    since_text: str,
    until_text: str | None,
    out: str,
    language: Code,
    *,
    anonymous: bool,
) -> None:
    """Write how the assistant did as an HTML file, to look at and to print."""
    now = time.time()
    asked_since = session.since(since_text)
    until = now if until_text is None else min(now, session.since(until_text, "--until"))
    if until <= asked_since:
        raise click.BadParameter("the period is empty: it ends before it begins")
    # Of a hundred thousand turns none is part of a circle, and to look for one took a third.
    gc.disable()
    try:
        html = _html(env_file, asked_since, until, now, language, anonymous=anonymous)
    finally:
        gc.enable()
    if out == "-":
        click.echo(html, nl=False)
        return
    try:
        _write(Path(out), html)
    except OSError as exc:
        click.echo(f"{out} cannot be written: {exc.strerror}; name another file by --out", err=True)
        sys.exit(1)
    click.echo(out)


def _html(
    env_file: Path | None,
    asked_since: float,
    until: float,
    now: float,
    language: Code,
    *,
    anonymous: bool,
) -> bytes:
    try:
        from paliadin_sidecar.operator.report import contents, facts, page  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        if exc.name not in _EXTRA:
            raise
        click.echo(
            f"The report needs the package {exc.name}, which is not installed. In a checkout: "
            f"{sys.executable} -m pip install --only-binary :all: --require-hashes "
            "-r requirements/report.txt",
            err=True,
        )
        sys.exit(1)
    with session.opened_outbox(env_file, read_only=True) as (state_dir, outbox):
        oldest = event_rows.oldest_event_at(outbox)
        since = max(asked_since, min(until - _DAY_S if oldest is None else oldest, until - 1))
        history = at_low_priority(lambda: read_history(outbox, since=since, until=until))
        known = facts.Facts(
            history=history,
            language=Language(language),
            made_at=to_ms(now),
            anonymous=anonymous,
            dead=queries.counts(outbox).get(State.DEAD, 0),
            command=instances.inspect(state_dir, env_file).hosting.commands_of_this_host,
        )
        environ = Reader(merged_environment(os.environ, env_file))

    def render() -> str:
        all_of_it = contents.page(
            known,
            host=environ.text("PALIADIN_HOST_LABEL", socket.gethostname()),
            version=version("paliadin"),
            oldest=to_ms_or_none(oldest),
            asked_since=to_ms(asked_since) if 0 < asked_since < since else None,
        )
        return page.render(all_of_it, known.language)

    return at_low_priority(render).encode()


def _write(path: Path, content: bytes) -> None:
    """Make or replace the file at once, readable by its owner alone.

    Raises:
        OSError: it cannot be written, or is there and no regular file.
    """
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(0, "it is no regular file")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
