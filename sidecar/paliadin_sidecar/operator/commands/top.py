"""`top`: how the daemon and its turns are, live in a terminal."""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from paliadin_sidecar.operator import session
from paliadin_sidecar.operator.glance import Watched
from paliadin_sidecar.operator.language import Code, Language

#: It is drawn no more often, and asked no more often whether something happened.
_EVERY_S = 1.0


@click.command()
@session.env_file_option
@click.option("--language", type=click.Choice(["de", "en"]), default="en", show_default=True)
def top(env_file: Path | None, language: Code) -> None:
    """Show what is under way and what came last, until q or Ctrl-C; in a pipe, a line a second."""
    if importlib.util.find_spec("rich") is None:
        raise click.ClickException(
            "top draws with the package rich, which is not installed; "
            "requirements/sidecar.txt has it"
        )
    with session.opened_outbox(env_file, read_only=True) as (state_dir, outbox), _ended_in_order():
        watched = Watched(state_dir, outbox)
        if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            _draw(watched, Language(language))
        else:
            _print_lines(watched, Language(language))


def _draw(watched: Watched, language: Language) -> None:
    from rich.console import Console  # noqa: PLC0415 - an extra, and slow to load
    from rich.live import Live  # noqa: PLC0415 - same

    from paliadin_sidecar.operator.top_view import screen  # noqa: PLC0415 - same

    console = Console(highlight=False)
    drawn: object = None
    with _keys() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            now = (watched.version(), console.size)
            if drawn != now:
                glance = watched.look()
                live.update(screen(glance, language, *console.size), refresh=True)
                # Where ages are shown, each second is another one.
                drawn = None if glance.has_ages else now
            if _is_ended(keyboard, time.monotonic() + _EVERY_S):
                return


def _print_lines(watched: Watched, language: Language) -> None:
    from paliadin_sidecar.operator.top_view import line  # noqa: PLC0415 - slow to load

    at = time.monotonic()
    while True:
        watched.version()
        session.print_text(line(watched.look(), language) + "\n")
        at = max(at + _EVERY_S, time.monotonic())
        time.sleep(max(0.0, at - time.monotonic()))


@contextmanager
def _keys() -> Iterator[int | None]:
    """The keyboard, whose keys come at once and unseen; None where there is none."""
    if not sys.stdin.isatty():
        yield None
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        # Ctrl-C also takes away what was typed before it. So no read may wait for a key that was
        # there a moment ago: the signal may have come just before it waits.
        now = termios.tcgetattr(keyboard)
        now[6][termios.VMIN] = 0
        termios.tcsetattr(keyboard, termios.TCSANOW, now)
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _is_ended(keyboard: int | None, until: float) -> bool:
    """Wait until then, or until somebody types q; whether that was so, or nobody is there."""
    events = select.poll()
    if keyboard is not None:
        events.register(keyboard, select.POLLIN)
    while (left_s := until - time.monotonic()) > 0:
        for found, event in events.poll(left_s * 1000):
            if event & ~select.POLLIN or os.read(found, 1) in {b"q", b"Q"}:
                return True
    return False


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """A signal ends the command as any other end, so that the terminal is as before."""
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, _end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: object) -> None:
    sys.exit(0 if number == signal.SIGINT else 128 + number)
