"""`paliadin`: ask the assistant from a terminal or a script.

It submits and waits for the backend's own response; the pushes are the web application's.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import anyio

try:
    import click
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from paliadin_client.render import Answer
except ModuleNotFoundError as exc:  # the command comes with every install, its extra does not
    sys.exit(f"paliadin: {exc.name} is not installed: docs/client.md says how")

from paliadin_client.backend import TurnRequest, User
from paliadin_client.connection import connect
from paliadin_client.errors import (
    BadRequest,
    ConfigError,
    NotConfigured,
    PaliadinError,
    Unreachable,
)
from paliadin_client.text import strip_controls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager

    from paliadin_client.turn import Paliadin

__all__ = ["main"]

_T = TypeVar("_T")

#: Anything else is 1: the answer is no.
_EXIT_CODES = ((BadRequest, 2), (ConfigError, 78), (NotConfigured, 78))
_ADVICE = {
    "auth_failed": "Is AICHAT_TOKEN the backend's?",
    "bad_config": "Set them in the environment; docs/client.md has the table.",
    "bootstrap_failed": "The host could not start the agent: look at its tmux session there.",
    "mriver_unreachable": "Is the host up? `paliadin health` tells when it is again.",
    "not_configured": "Set PALIADIN_REMOTE_HOST, or PALIADIN_BACKEND=aichat and its variables.",
    "persona_unknown": "Is AICHAT_PERSONA one that the backend has?",
    "shim_auth_failed": "Are PALIADIN_SSH_PRIVATE_KEY and PALIADIN_KNOWN_HOSTS the host's?",
    "shim_error": "The backend's own log says more.",
    "timeout": "The agent may still be at it. `paliadin reset` ends its session.",
}

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
    for number in (signal.SIGTERM, signal.SIGHUP):
        # As Ctrl-C does: the backend sees that nobody waits, and ssh's key does not stay behind.
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
            # To the very stream: click would take ASCII for a mistake, and write UTF-8.
            click.echo(strip_controls(result.text), file=sys.stdout)


@main.command()
def health() -> None:
    """Say whether the backend is well."""
    _do(lambda paliadin: paliadin.health())
    with _output():
        click.echo("ok")


@main.command()
@_user_id
@_email
def reset(user_id: str, email: str | None) -> None:
    """End the session that the user's turns use; the next turn begins a new one."""
    _do(lambda paliadin: paliadin.reset_session(User(user_id, email=email)))
    with _output():
        click.echo("reset")


@contextmanager
def _output() -> Iterator[None]:
    # A pipe that somebody made non-blocking would take what fits, and the rest would be lost.
    os.set_blocking(sys.stdout.fileno(), True)
    try:
        yield
    except OSError as exc:
        if exc.errno == errno.EPIPE:
            raise  # whoever read it has read enough, which click takes care of
        # What is left unwritten is let go, or the interpreter would try again at its end.
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
        async with connect() as paliadin:
            return await action(paliadin)

    try:
        with waiting or nullcontext():
            return anyio.run(connected)
    except PaliadinError as exc:
        for line in (str(exc), exc.detail, _advice(exc)):
            if line:
                click.echo(f"paliadin: {line}", err=True)
        sys.exit(next((code for kind, code in _EXIT_CODES if isinstance(exc, kind)), 1))


def _advice(exc: PaliadinError) -> str | None:
    # Where waiting does not help, the error itself says what does.
    if isinstance(exc, Unreachable) and not exc.retryable:
        return None
    return _ADVICE.get(exc.code)
