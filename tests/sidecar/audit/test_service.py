"""The door of the audit, over a real outbox."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from support.manager import Manager
from support.sidecar import new_secret

from paliadin_sidecar.audit.service import AuditService
from paliadin_sidecar.errors import Busy, Full, OverBudget
from paliadin_sidecar.host import report
from paliadin_sidecar.host.systemd import Notify
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO


class Place:
    """An audit with its outbox and its log."""

    def __init__(self, path: Path, stream: TextIO, outbox: Outbox, manager: Manager) -> None:
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
        systemd = Notify({"NOTIFY_SOCKET": manager.address})
        self.audit = AuditService(settings, stream, systemd.show, self._on_blocked)
        group = GroupCommit(outbox, self.audit.events_recorded, self.audit.outbox_blocked)
        self.audit.attach(outbox, group)

    def _on_blocked(self) -> None:
        self.blocked += 1

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    @property
    def printed(self) -> list[tuple[str, str]]:
        return [(line["event"], line["why"]) for line in self.lines()]

    @property
    def reported(self) -> list[tuple[str, str]]:
        found = report.read(self.path)
        assert found is not None
        return [(each.what, each.why) for each in found.problems]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(f"{tmp_path}/notify") as manager:
        yield manager


@pytest.fixture
def place(tmp_path: Path, manager: Manager) -> Iterator[Place]:
    with (
        (tmp_path / "log").open("w", encoding="utf-8") as stream,
        Outbox(tmp_path / FILENAME, create=True) as outbox,
    ):
        yield Place(tmp_path, stream, outbox, manager)


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


def test_a_problem_is_shown_while_it_lasts(place: Place, manager: Manager) -> None:
    """To `status`, by its file, and to systemd; one that goes leaves the others."""
    place.audit.set_problem("events", "no watch")
    place.audit.set_problem("metrics", "no address")
    manager.wait("STATUS=events: no watch; metrics: no address")
    assert place.reported == [("events", "no watch"), ("metrics", "no address")]
    place.audit.set_problem("events", None)
    manager.wait("STATUS=metrics: no address")
    assert place.reported == [("metrics", "no address")]


def test_what_did_not_change_is_not_shown_again(place: Place, manager: Manager) -> None:
    """However often it is found."""
    for _ in range(3):
        place.audit.set_problem("events", "no watch")
    place.audit.set_problem("events", None)
    place.audit.set_problem("events", None)
    manager.wait("STATUS=")
    assert manager.heard == ["STATUS=events: no watch", "STATUS="]


def test_each_reason_of_a_blocked_outbox_is_printed_once(place: Place) -> None:
    """Until it changes, or comes back."""
    full, busy = Full(place.path, "no room"), Busy(place.path, "a lock")
    for exc in (full, full, busy, busy):
        place.audit.outbox_blocked(exc)
    assert place.reported == [("outbox", "a lock")]
    place.audit.outbox_unblocked()
    assert place.reported == []
    place.audit.outbox_blocked(busy)
    assert place.printed == [("outbox.blocked", why) for why in ("no room", "a lock", "a lock")]


def test_a_budget_that_is_used_up_is_the_intake_s_problem(place: Place) -> None:
    """Delivery goes on and writes, so a commit does not end it; that intake goes on does."""
    place.audit.outbox_blocked(OverBudget(place.path, "used up"))
    place.audit.outbox_unblocked()
    assert place.reported == [("intake", "used up")]
    place.audit.set_problem("intake", None)
    assert place.reported == []
    assert place.printed == [("outbox.blocked", "used up")]
