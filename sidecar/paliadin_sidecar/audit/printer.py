"""Prints the outbox's event rows, each at least once and in their order."""

from __future__ import annotations

import math
import select
from collections.abc import Iterable, Iterator
from contextlib import suppress

import anyio

from paliadin_sidecar.audit.lines import Audit, redacted
from paliadin_sidecar.errors import Blocked
from paliadin_sidecar.failpoints import failpoint
from paliadin_sidecar.host.state_directory import journal_key
from paliadin_sidecar.outbox import event_rows
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.group_commit import BLOCKED_S, GroupCommit
from paliadin_sidecar.outbox.records import Event

#: How far the memory of what was printed may lag: so many seconds of lines may be repeated
#: after a crash, and none is missing.
_PRINTED_LAG_S = 1.0
#: A turn's lines follow each other within this time: read together, and out of its way.
_GATHER_S = 0.05
#: So many events are read at a time: few enough that no turn waits for their printing.
_MAX_READ = 100


class EventPrinter:
    """Prints events as they are committed, from their rows and nothing else.

    Args:
        outbox: has the events, and how far they were printed before, which is asked for when it
            can be told: somebody may hold its lock now. Beside it is the key of what is shown of an
            answer, see `lines.redacted`.
        group: runs the outbox's functions.
        audit: writes the lines.
    """

    def __init__(self, outbox: Outbox, group: GroupCommit, audit: Audit) -> None:
        self._group = group
        self._audit = audit
        self._key = journal_key(outbox.path.parent, create=True)
        self._printed: int | None = None  # until it was asked for
        self._printing = anyio.Lock()
        self._wake = anyio.Event()
        self._wake.set()  # those of before

    def wake(self) -> None:
        """Some were committed."""
        self._wake.set()

    async def run(self) -> None:
        """Print until cancelled."""
        saved, save_at = await self._last_printed(), math.inf
        while True:
            if self._wake.is_set():
                self._wake = anyio.Event()  # before they are read: what is committed then wakes
                await self._print_new()
            if self._printed != saved:
                # Later, since its flush would hold the turns whose lines these are.
                save_at = min(save_at, anyio.current_time() + _PRINTED_LAG_S)
            with anyio.CancelScope(deadline=save_at):
                await self._wake.wait()
                await anyio.sleep(_GATHER_S)
                continue
            await self._remember_printed()
            saved, save_at = await self._last_printed(), math.inf

    async def flush(self) -> None:
        """Print what is there now, and remember how far it came."""
        await self._print_new()
        await self._remember_printed()

    async def _last_printed(self) -> int:
        if self._printed is None:
            self._printed = await self._group.commit_when_possible(event_rows.printed)
        return self._printed

    async def _print_new(self) -> None:
        async with self._printing:
            more = True
            while more:
                events = await self._group.commit_when_possible(
                    event_rows.events, await self._last_printed(), _MAX_READ
                )
                more = len(events) == _MAX_READ
                for last, lines in self._batches(events):
                    await self._write(lines)
                    self._printed = last

    def _batches(self, events: Iterable[Event]) -> Iterator[tuple[int, str]]:
        # As many lines as a pipe that takes something takes at once, with the id of the last event.
        lines, size, last = "", 0, 0
        for event in events:
            fields = {"event_id": event.id, **redacted(event.fields, self._key)}
            line = self._audit.render(event.name, event.at, fields)
            length = len(line.encode())
            if lines and size + length > select.PIPE_BUF:
                yield last, lines
                lines, size = "", 0
            lines += line
            size += length
            last = event.id
        if last:
            yield last, lines

    async def _write(self, lines: str) -> None:
        while True:
            try:
                await self._writable()
                failpoint("before a line is printed")
                self._audit.write(lines)
                failpoint("after a line was printed")
            except OSError:
                # Nobody reads, or the log's disk is full. The rows keep it; turns go on.
                await anyio.sleep(BLOCKED_S)
            else:
                return

    async def _remember_printed(self) -> None:
        with suppress(Blocked):  # lines may then be repeated, should we crash now
            await self._group.commit(event_rows.set_printed, await self._last_printed())

    async def _writable(self) -> None:
        # A pipe that nobody reads would hold a thread, and with it the end of the process.
        if not select.select([], [self._audit.stream], [], 0)[1]:
            await anyio.wait_writable(self._audit.stream)
