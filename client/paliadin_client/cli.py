"""The command `paliadin`: asks the assistant from a terminal or a script.

It submits and waits for the backend's own response; the pushes are the web application's.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NoReturn, TypeVar

import anyio

from paliadin_client.turn import Paliadin

try:
    import click
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from paliadin_client.render import Answer
except ModuleNotFoundError as exc:  # every install brings the command, and only the extra its needs
    sys.exit(f"paliadin: {exc.name} is not installed: docs/client.md says how")

from paliadin_client.backend import TurnRequest, User
from paliadin_client.connection import connect
from paliadin_client.errors import ConfigError, PaliadinError
from paliadin_client.store.postgresql.opening import require_driver
from paliadin_client.store.postgresql.schema import create_sql
from paliadin_client.text import strip_controls

_T = TypeVar("_T")

#: Signals that end a command as Ctrl-C does, unless whoever started it ignores them.
_ENDING = (signal.SIGTERM, signal.SIGHUP)

_user_id = click.option("--user-id", required=True, help="UUID of the user who asks.")
_email = click.option("--email", help="The user's e-mail address, which names their window.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paliadin")
def main() -> None:
    """Ask paliad's assistant. PALIADIN_BACKEND and its variables say where it is."""
    if sys.stdout is None:  # nobody would see the answer
        sys.exit("paliadin: the output is closed")
    for stream in (sys.stdout, sys.stderr):
        # A character that the output's encoding lacks gets a stand-in, and costs no answer.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for number in _ENDING:
        # They end it as Ctrl-C does: the backend sees that nobody waits, and ssh's key is removed.
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores one of them
            signal.signal(number, signal.default_int_handler)


@main.command()
@click.argument("message")
@_user_id
@_email
def ask(message: str, user_id: str, email: str | None) -> None:
    """Ask MESSAGE, and print the answer: rendered in a terminal, as it is in a pipe."""
    request = TurnRequest(user=User(user_id, email=email), message=message)
    result = _do(lambda paliadin: paliadin.run_turn(request), waiting=_spinner())
    with _output():
        if sys.stdout.isatty():
            Console().print(Answer(result.text), crop=False)
        else:
            # `file` is given, since click takes ASCII for a mistake otherwise, and writes UTF-8.
            click.echo(strip_controls(result.text), file=sys.stdout)


@main.command()
def health() -> None:
    """Say whether the backend is well: each host, where there are several."""
    found = _do(lambda paliadin: paliadin.health_of_hosts())
    unwell = {host: exc for host, exc in found.items() if exc is not None}
    if len(found) == 1 and unwell:
        _fail(*unwell.values())
    with _output():
        for host in found:
            shown = str(unwell.get(host, "ok"))
            click.echo(shown if len(found) == 1 else f"{host} {shown}")
    for host, exc in unwell.items():
        for line in filter(None, (exc.detail, exc.remedy)):
            click.echo(f"paliadin: {host}: {line}", err=True)
    if unwell:
        sys.exit(max(exc.exit_code for exc in unwell.values()))


@main.command()
@_user_id
@_email
def reset(user_id: str, email: str | None) -> None:
    """End the session that the user's turns use; the next turn begins a new one."""
    _do(lambda paliadin: paliadin.reset_session(User(user_id, email=email)))
    with _output():
        click.echo("reset")


@main.group()
def store() -> None:
    """Make the tables of a store in PostgreSQL, which PALIADIN_STORE names."""


@store.command("init")
def store_init() -> None:
    """Make the tables, or bring those of an earlier version to this one."""
    done = _reported(lambda: anyio.run(_migrate))
    with _output():
        click.echo(done)


@store.command("sql")
def store_sql() -> None:
    """Print the SQL that makes the tables, to be reviewed and run in one transaction."""
    with _output():
        click.echo(create_sql(), nl=False)


async def _migrate() -> str:
    url = os.environ.get("PALIADIN_STORE", "").strip()
    if not url.startswith(("postgresql://", "postgres://")):
        # It is not shown, since it may be one that somebody misspelt, with its password.
        problem = "is no postgresql:// URL" if url else "is not set"
        raise ConfigError([f"PALIADIN_STORE {problem}"])
    require_driver()
    from paliadin_client.store.postgresql.migration import migrate  # noqa: PLC0415 - psycopg is an extra

    return await migrate(url)


@contextmanager
def _output() -> Iterator[None]:
    # A pipe that somebody made non-blocking takes what fits, and the rest would be lost.
    os.set_blocking(sys.stdout.fileno(), True)
    try:
        yield
    except OSError as exc:
        if exc.errno == errno.EPIPE:
            raise  # whoever read it has read enough, which click takes care of
        # What is left unwritten is dropped, or the interpreter would try again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"paliadin: it is done, and the output cannot be written: {exc.strerror}")


def _spinner() -> Progress:
    console = Console(stderr=True)
    columns = (SpinnerColumn("line"), TextColumn("{task.description}"), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    progress.add_task("waiting for the answer", total=None)
    return progress


def _do(
    action: Callable[[Paliadin], Awaitable[_T]],
    waiting: AbstractContextManager[object] | None = None,
) -> _T:
    async def connected() -> _T:
        # An exception that a handler raises would hit whatever task is running, and be printed as
        # one that nobody handles. So the loop hears the signals, and the command is cancelled.
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for number in _ENDING:
            if signal.getsignal(number) is signal.default_int_handler:
                loop.add_signal_handler(number, task.cancel)
        async with connect() as paliadin:
            return await action(paliadin)

    def run() -> _T:
        try:
            with waiting or nullcontext():
                return anyio.run(connected)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    return _reported(run)


def _reported(action: Callable[[], _T]) -> _T:
    """What `action` returns; its error is printed, and ends the command."""
    try:
        return action()
    except PaliadinError as exc:
        _fail(exc)


def _fail(exc: PaliadinError) -> NoReturn:
    for line in filter(None, (str(exc), exc.detail, exc.remedy)):
        click.echo(f"paliadin: {line}", err=True)
    sys.exit(exc.exit_code)
