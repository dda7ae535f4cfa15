"""Which names moved? Hints, from one of two engines: they spare waiting for the next scan."""

from __future__ import annotations

import threading
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

__all__ = ["WatchFailed", "changes", "why_no_events"]

#: An event is seen after one to two steps, and a thread wakes once in each: short ones for so
#: long after something moved, since an answer follows its token, and long ones when all rests.
_STEP_MS, _FLIGHT_MS, _RESTING_STEP_MS = 1, 300_000, 50
#: A directory that never rests is reported this often.
_DEBOUNCE_MS = 50


class WatchFailed(Exception):
    """No events until the watch is made anew. Known causes: a file name that is not UTF-8 (for
    watchfiles), a directory that went, the system's limit of watches."""  # noqa: D205, D209


def changes(paths: list[Path], *, inotify: bool) -> AsyncGenerator[set[str], None]:
    """Paths that were touched, as they are, until it is closed.

    An empty set says: from here on events are seen, scan for what came before. Events may
    still be lost without notice.

    Args:
        paths: directories; what lies below is not looked at.
        inotify: by asyncinotify, which must be installed, and not by watchfiles.

    Raises:
        WatchFailed: the watch is of no more use.
    """
    return _by_inotify(paths) if inotify else _by_watchfiles(paths)


async def _by_watchfiles(paths: list[Path]) -> AsyncGenerator[set[str], None]:
    from watchfiles._rust_notify import (  # noqa: PLC0415 - 0.7 MB that inotify does without
        RustNotify,
        WatchfilesRustInternalError,
    )

    stop = threading.Event()
    try:
        with RustNotify([str(p) for p in paths], False, False, 0, False, False) as notify:  # noqa: FBT003 - the library takes them by place
            step_ms, timeout_ms = _RESTING_STEP_MS, 0
            yield set()
            while True:
                found = await anyio.to_thread.run_sync(
                    notify.watch, _DEBOUNCE_MS, step_ms, timeout_ms, stop, abandon_on_cancel=True
                )
                if isinstance(found, str):
                    # The timeout: watchfiles forgets what arrives in the instant that it ends.
                    step_ms, timeout_ms = _RESTING_STEP_MS, 0
                    yield set()
                else:
                    step_ms, timeout_ms = _STEP_MS, _FLIGHT_MS
                    yield {path for _, path in found}
    except (OSError, RuntimeError, WatchfilesRustInternalError) as exc:
        raise WatchFailed(type(exc).__name__) from exc
    finally:
        stop.set()  # its thread waits on it


async def _by_inotify(paths: list[Path]) -> AsyncGenerator[set[str], None]:
    from asyncinotify import Inotify, Mask  # noqa: PLC0415 - an extra, and Linux only

    # What may have made a file complete, or trusted, or took it away.
    moves = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.ATTRIB | Mask.DELETE | Mask.ONLYDIR
    try:
        with Inotify(cache_size=256) as notify:
            for path in paths:
                notify.add_watch(path, moves)
            yield set()
            async for event in notify:
                if Mask.Q_OVERFLOW in event.mask:
                    yield set()
                elif event.path is not None:
                    yield {str(event.path)}
    except OSError as exc:
        raise WatchFailed(type(exc).__name__) from exc


def why_no_events(paths: list[Path], *, inotify: bool) -> str | None:
    """Why the system would tell of no change in these directories; None where it would."""

    async def begin() -> None:
        async with aclosing(changes(paths, inotify=inotify)) as found:
            await anext(found)

    try:
        anyio.run(begin)
    except WatchFailed as exc:
        return str(exc.__cause__)
    return None
