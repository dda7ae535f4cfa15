"""The printer of events, over a real outbox and real pipes and sockets."""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

import anyio
import anyio.lowlevel
import pytest
from support.waiting import PATIENCE_S

from paliadin_sidecar.audit.lines import Audit
from paliadin_sidecar.audit.printer import EventPrinter
from paliadin_sidecar.outbox import event_rows
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.group_commit import GroupCommit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from paliadin_sidecar.outbox.records import Event


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / FILENAME, create=True) as opened:
        yield opened


def record(outbox: Outbox, *names: str) -> None:
    outbox.transaction(
        [partial(event_rows.record_service_event, outbox, name, {}) for name in names]
    )


def printer(outbox: Outbox, audit: Audit) -> EventPrinter:
    group = GroupCommit(outbox, lambda: None, lambda _: None)
    return EventPrinter(outbox, group, audit)


@contextmanager
def datagrams() -> Iterator[tuple[socket.socket, TextIO]]:
    """What is written, with the bounds of each write."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, os.fdopen(theirs.detach(), "w") as stream:
        ours.settimeout(0)
        yield ours, stream


def received(reader: socket.socket) -> list[list[dict[str, Any]]]:
    writes = []
    while True:
        try:
            writes.append([json.loads(line) for line in reader.recv(1 << 20).splitlines()])
        except BlockingIOError:
            return writes


@pytest.mark.anyio
async def test_what_gathered_is_written_together_in_order(outbox: Outbox) -> None:
    """As much in one write as a pipe takes at once; each event once, under its number."""
    record(outbox, *(f"test.event_{n}" for n in range(250)))
    with datagrams() as (reader, stream):
        await printer(outbox, Audit(stream)).flush()
        writes = received(reader)
    lines = [line for write in writes for line in write]
    assert [line["event"] for line in lines] == [f"test.event_{n}" for n in range(250)]
    assert [line["event_id"] for line in lines] == list(range(1, 251))
    assert len(writes) < len(lines) / 10
    assert all(sum(len(json.dumps(line)) for line in write) <= 2 * 4096 for write in writes)


@pytest.mark.anyio
async def test_what_was_printed_is_not_printed_by_the_next_one(outbox: Outbox) -> None:
    """How far it came is remembered in the outbox."""
    with datagrams() as (reader, stream):
        record(outbox, "test.first")
        await printer(outbox, Audit(stream)).flush()
        record(outbox, "test.second")
        await printer(outbox, Audit(stream)).flush()
        assert [[line["event"] for line in write] for write in received(reader)] == [
            ["test.first"],
            ["test.second"],
        ]


@pytest.mark.anyio
async def test_a_reader_that_stopped_reading_holds_the_printer_alone(outbox: Outbox) -> None:
    """It waits without holding the event loop; who reads again gets every line once."""
    record(outbox, *(f"test.event_{n}" for n in range(1000)))  # more than a pipe holds
    reader, writer = os.pipe()
    read = b""
    with os.fdopen(writer, "w") as stream:
        ours = printer(outbox, Audit(stream))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ours.run)
            await anyio.wait_writable(writer)
            for _ in range(100):  # the loop goes round meanwhile
                await anyio.lowlevel.checkpoint()
            while read.count(b"\n") < 1000:
                await anyio.wait_readable(reader)
                read += os.read(reader, 1 << 20)
            tasks.cancel_scope.cancel()
    os.close(reader)
    assert [json.loads(line)["event_id"] for line in read.splitlines()] == list(range(1, 1001))


@pytest.mark.anyio
async def test_events_are_read_when_there_are_some(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start and after a wake-up, also one while it prints, and not since it was saved."""
    record(outbox, "test.first")
    reads, saves = list[int](), list[int]()
    read, save = event_rows.events, event_rows.set_printed

    class WakingAudit(Audit):
        def write(self, lines: str) -> None:
            super().write(lines)
            if len(reads) == 1:
                record(outbox, "test.second")
                ours.wake()

    def reading(outbox: Outbox, after: int, limit: int) -> list[Event]:
        reads.append(after)
        return read(outbox, after, limit)

    def saving(outbox: Outbox, event: int) -> None:
        saves.append(event)
        save(outbox, event)

    monkeypatch.setattr(event_rows, "events", reading)
    monkeypatch.setattr(event_rows, "set_printed", saving)
    monkeypatch.setattr("paliadin_sidecar.audit.printer._PRINTED_LAG_S", 0.1)
    with datagrams() as (_, stream):
        ours = printer(outbox, WakingAudit(stream))
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ours.run)
                while 2 not in saves:
                    await anyio.lowlevel.checkpoint()
                await ours._group.commit(event_rows.printed)
                for _ in range(100):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
    assert reads == [0, 1]


class RefusingAudit(Audit):
    """Its disk is full for the first two writes."""

    refusals = 2

    def write(self, lines: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOSPC, "no room")
        super().write(lines)


@pytest.mark.anyio
async def test_a_log_that_takes_nothing_is_tried_again(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows keep the lines meanwhile: none is missing when it takes some again."""
    monkeypatch.setattr("paliadin_sidecar.audit.printer.BLOCKED_S", 0.01)
    record(outbox, "test.first", "test.second")
    with datagrams() as (reader, stream):
        await printer(outbox, RefusingAudit(stream)).flush()
        (write,) = received(reader)
    assert [line["event"] for line in write] == ["test.first", "test.second"]
