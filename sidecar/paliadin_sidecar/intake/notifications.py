"""Best-effort file notifications, from one of two engines.

They only shorten the wait for the next scan.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Self

import anyio

from paliadin_sidecar.errors import WatchFailed
from paliadin_sidecar.host.resources import wait_within

#: An event is seen after one to two steps, and a thread wakes once in each: short ones for so
#: long after something moved, since an answer follows its token, and long ones when all rests.
_STEP_MS, _FLIGHT_MS, _RESTING_STEP_MS = 1, 300_000, 50
#: A directory that never rests is reported this often, and a file that is being written.
_DEBOUNCE_MS, _WRITTEN_S = 50, 0.05
#: So many batches of names wait at most while the event loop is held: the library keeps the rest.
_MAX_REPORTS = 100
#: So many bytes of events are taken at a time, some hundreds, before others have their turn.
_MAX_READ = 16 * 1024
#: What stands before the name of an event, which is padded with NULs: see inotify(7).
_EVENT = struct.Struct("iIII")


def changes(directory: int, *, inotify: bool) -> AsyncGenerator[set[str], None]:
    """Names in a directory that were touched, until it is closed.

    An empty set says: from here on events are seen, scan for what came before. Events may
    still be lost without notice.

    Args:
        directory: a descriptor of it, which alone decides what is watched: its path may lead
            elsewhere by now. What is in directories below is not looked at.
        inotify: by asyncinotify, which must be installed, and not by watchfiles.

    Raises:
        WatchFailed: the watch is of no more use.
    """
    watched = f"/proc/self/fd/{directory}"
    return _by_inotify(watched) if inotify else _by_watchfiles(watched)


async def _by_watchfiles(watched: str) -> AsyncGenerator[set[str], None]:
    from watchfiles._rust_notify import (  # noqa: PLC0415 - 0.7 MB that inotify does without
        RustNotify,
        WatchfilesRustInternalError,
    )

    loop, stop = asyncio.get_running_loop(), threading.Event()
    found: asyncio.Queue[set[str] | BaseException] = asyncio.Queue()
    room = threading.Semaphore(_MAX_REPORTS)

    def report(what: set[str] | BaseException) -> None:
        room.acquire()
        with suppress(RuntimeError):  # the loop has ended, and nobody asks
            loop.call_soon_threadsafe(found.put_nowait, what)

    def watch() -> None:
        # All in one thread: the library blocks, and the server of a file system may hang.
        try:
            with RustNotify([watched], False, False, 0, False, False) as notify:  # noqa: FBT003 - the library takes them by place
                report(set())
                step_ms, timeout_ms = _RESTING_STEP_MS, 0
                while not stop.is_set():
                    changed = notify.watch(_DEBOUNCE_MS, step_ms, timeout_ms, stop)
                    if isinstance(changed, str):
                        # The timeout: watchfiles forgets what arrives in the instant that it ends.
                        step_ms, timeout_ms = _RESTING_STEP_MS, 0
                        report(set())
                    else:
                        step_ms, timeout_ms = _STEP_MS, _FLIGHT_MS
                        report({path.removeprefix(f"{watched}/") for _, path in changed})
        except BaseException as exc:  # noqa: BLE001 - whoever asks for events gets it
            report(exc)

    try:
        threading.Thread(target=watch, name="watch", daemon=True).start()
        while True:
            what = await found.get()
            room.release()
            if isinstance(what, BaseException):
                raise what
            yield what
    except (OSError, RuntimeError, WatchfilesRustInternalError) as exc:
        raise WatchFailed(type(exc).__name__) from exc
    finally:
        stop.set()  # its thread waits on it, or for room
        room.release()


async def _by_inotify(watched: str) -> AsyncGenerator[set[str], None]:
    from asyncinotify import Inotify, Mask  # noqa: PLC0415 - an extra, and Linux only

    # What may have made a file complete, readable or trusted, or took it away: written and closed,
    # by mmap too; a first or a further name, of an O_TMPFILE too; renamed; times, mode, owner, ACL.
    at_once = int(Mask.CLOSE_WRITE | Mask.CREATE | Mask.MOVE | Mask.ATTRIB | Mask.DELETE)
    overflow = int(Mask.Q_OVERFLOW)
    try:
        with Inotify() as notify:
            # truncate(2) and utimensat(2) of the modification time raise MODIFY alone.
            begin = partial(notify.add_watch, watched, Mask(at_once) | Mask.MODIFY | Mask.ONLYDIR)
            await anyio.to_thread.run_sync(begin, abandon_on_cancel=True)
            yield set()
            with _Reader(notify.fd) as events:
                written = _Written()
                while True:
                    named = list(_masks_and_names(await events.next(written.rest_s())))
                    if any(mask & overflow for mask, _ in named):
                        yield set()
                    found = {name for mask, name in named if mask & at_once}
                    written.add({name for _, name in named} - found)
                    found |= written.take(found)
                    if found:
                        yield found
    except OSError as exc:
        raise WatchFailed(type(exc).__name__) from exc


class _Reader:
    # Reads what comes as soon as it can be read: to wait for each event anew costs more.

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._events = bytearray()
        self._failed: OSError | None = None
        self._came = asyncio.Event()
        os.set_blocking(fd, False)

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)

    def _read(self) -> None:
        try:
            self._events += os.read(self._fd, _MAX_READ)
        except OSError as exc:
            self._failed = exc
        self._came.set()

    async def next(self, within_s: float | None) -> bytes:
        # What came since the last time; nothing where the time is up.
        await wait_within(self._came, within_s)
        if self._failed is not None:
            raise self._failed
        self._came.clear()
        events, self._events = bytes(self._events), bytearray()
        return events


def _masks_and_names(events: bytes) -> Iterator[tuple[int, str]]:
    # The library makes objects of each event and its path, a tenth of what a turn costs. What
    # happens to the directory itself, or to the queue, has no name.
    at = 0
    while at < len(events):
        _, mask, _, length = _EVENT.unpack_from(events, at)
        at += _EVENT.size + length
        yield mask, os.fsdecode(events[at - length : at].rstrip(b"\0"))


class _Written:
    # Each write is an event, and the file is inspected again anyway, so these are collected.

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._report_at = 0.0

    def add(self, names: set[str]) -> None:
        if names and not self.names:
            self._report_at = anyio.current_time() + _WRITTEN_S
        self.names |= names

    def take(self, reported: set[str]) -> set[str]:
        # What is due, without what is reported anyway.
        self.names -= reported
        due, self.names = (self.names, set[str]()) if self.rest_s() == 0.0 else (set(), self.names)
        return due

    def rest_s(self) -> float | None:
        return max(0.0, self._report_at - anyio.current_time()) if self.names else None


def why_no_events(paths: list[Path], *, inotify: bool) -> str | None:
    """Why the system would report no change in these directories; None where it would."""

    async def begin() -> None:
        async with AsyncExitStack() as stack:
            for path in paths:
                try:
                    directory = os.open(path, os.O_PATH | os.O_DIRECTORY)
                except OSError:
                    continue  # gone, or no directory: its root's state says so
                stack.callback(os.close, directory)
                found = aclosing(changes(directory, inotify=inotify))
                await anext(await stack.enter_async_context(found))

    try:
        anyio.run(begin)
    except WatchFailed as exc:
        return str(exc.__cause__)
    return None
