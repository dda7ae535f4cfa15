"""The door of the audit, over a real outbox."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from support.sidecar import new_secret

from paliadin_sidecar.audit.service import AuditService
from paliadin_sidecar.host import report
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.outbox import Outbox
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO


class Place:
    """An audit with its outbox and its log."""

    def __init__(self, path: Path, stream: TextIO, outbox: Outbox) -> None:
        self.path = path
        self.log = path / "log"
        self.blocked = 0
        settings = Settings.from_environment(
            {
                "PALIADIN_CALLBACK_URL": "https://paliad.example.org/callback",
                "PALIADIN_CALLBACK_SECRET": new_secret(),
                "PALIADIN_STATE_DIR": str(path),
                "PALIADIN_HOST_LABEL": "mriver",
                "PALIADIN_RESCAN": "1",
            }
        )
        self.audit = AuditService(settings, stream, lambda _: None, self._on_blocked)
        group = GroupCommit(outbox, self.audit.events_recorded, self.audit.outbox_blocked)
        self.audit.attach(outbox, group)

    def _on_blocked(self) -> None:
        self.blocked += 1

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with (
        (tmp_path / "log").open("w", encoding="utf-8") as stream,
        Outbox(tmp_path / FILENAME, create=True) as outbox,
    ):
        yield Place(tmp_path, stream, outbox)


@pytest.mark.anyio
async def test_an_event_is_printed_from_its_row(place: Place) -> None:
    """It has a number, and what it says."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(place.audit.run, lambda: (0, 0))
        await place.audit.record("service.stopping", why="asked")
        await place.audit.flush()
        tasks.cancel_scope.cancel()
    (line,) = place.lines()
    assert (line["event"], line["why"], line["event_id"]) == ("service.stopping", "asked", 1)


@pytest.mark.anyio
async def test_an_event_that_cannot_be_recorded_is_printed_all_the_same(place: Place) -> None:
    """At once, and without a number."""
    with closing(sqlite3.connect(place.path / FILENAME)) as other:
        other.execute("BEGIN IMMEDIATE")
        await place.audit.record("service.stopping")
    (line,) = place.lines()
    assert line["event"] == "service.stopping"
    assert "event_id" not in line


@pytest.mark.anyio
async def test_a_start_is_shown_before_its_line(place: Place) -> None:
    """With what it runs as, and which variables look misspelt."""
    await place.audit.record_started()
    found = report.read(place.path)
    assert found is not None
    assert found.ready
    await place.audit.flush()
    started, misspelt = place.lines()
    assert started["event"] == "service.started"
    assert (started["pid"], started["host"]) == (os.getpid(), "mriver")
    assert misspelt["event"] == "service.unknown_variable"
    assert (misspelt["variable"], misspelt["nearest"]) == ("PALIADIN_RESCAN", "PALIADIN_RESCAN_S")


def test_an_outbox_that_cannot_be_opened_yet_is_said(place: Place) -> None:
    """Where it would be, and why not."""
    place.audit.opening_blocked("no room")
    (line,) = place.lines()
    assert (line["event"], line["path"], line["why"]) == (
        "outbox.blocked",
        str(place.path),
        "no room",
    )
