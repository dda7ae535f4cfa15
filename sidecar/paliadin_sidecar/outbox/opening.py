"""Opens the outbox in its state directory, under the lock of the one daemon that may use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

import anyio

from paliadin_sidecar.errors import Busy, Full, StateDirFull
from paliadin_sidecar.host import state_directory
from paliadin_sidecar.host.resources import since_boot_s
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.group_commit import BLOCKED_S
from paliadin_sidecar.outbox.records import Retention
from paliadin_sidecar.settings import Settings


async def open_outbox(
    stack: AsyncExitStack, settings: Settings, on_blocked: Callable[[str], None]
) -> Outbox:
    """The outbox and its lock, made where there is none; lack of room is waited for.

    Args:
        stack: what closes both.
        settings: where it is, and how large it may get.
        on_blocked: called with why it waits, once for each reason.

    Raises:
        OutboxError, StateDirError, Locked: waiting does not help.
    """
    reported = ""
    while True:
        try:
            return stack.enter_context(_opened(settings))
        except (Full, Busy, StateDirFull) as exc:
            if reported != str(exc):
                reported = str(exc)
                on_blocked(reported)
        await anyio.sleep(BLOCKED_S)


def quarantine_outbox(settings: Settings) -> None:
    """Move the outbox aside, so that the next start makes a new one.

    Raises:
        StateDirError, Locked: it cannot be moved, or a daemon uses it.
    """
    state_directory.prepare(settings.state_dir)
    with state_directory.lock(settings.state_dir):
        # Before it goes: what was undelivered in it must never become history.
        state_directory.remember_outbox(settings.state_dir)
        state_directory.quarantine(settings.state_dir, FILENAME)


@contextmanager
def _opened(settings: Settings) -> Iterator[Outbox]:
    state_directory.prepare(settings.state_dir)
    with (
        state_directory.lock(settings.state_dir) as held_one,
        Outbox(
            settings.state_dir / FILENAME,
            host=settings.host_label,
            steady=since_boot_s,  # a person waits while the machine is suspended, too
            create=True,
            successor=held_one,
            max_bytes=settings.max_outbox,
            retention=Retention(settings.keep_answers, settings.keep_turns),
        ) as outbox,
    ):
        state_directory.remember_outbox(settings.state_dir)
        yield outbox
