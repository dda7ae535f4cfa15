from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from support.manager import Manager
from support.sidecar import new_secret

from paliadin_sidecar.audit.lines import Audit
from paliadin_sidecar.audit.problems import Problems
from paliadin_sidecar.errors import Busy, Full, OverBudget
from paliadin_sidecar.host import report
from paliadin_sidecar.host.systemd import Notify
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Place:
    """Problems, and all places in which they are shown."""

    def __init__(self, path: Path, manager: Manager) -> None:
        self.path = path
        self.manager = manager
        self.stream = io.StringIO()
        settings = Settings.from_environment(
            {
                "PALIADIN_CALLBACK_URL": "https://paliad.example.org/callback",
                "PALIADIN_CALLBACK_SECRET": new_secret(),
                "PALIADIN_STATE_DIR": str(path),
            }
        )
        systemd = Notify({"NOTIFY_SOCKET": manager.address})
        self.problems = Problems(settings, "1", Audit(self.stream), systemd.show)

    @property
    def reported(self) -> list[tuple[str, str]]:
        found = report.read(self.path)
        assert found is not None
        return [(each.what, each.why) for each in found.problems]

    @property
    def printed(self) -> list[tuple[str, str]]:
        lines = map(json.loads, self.stream.getvalue().splitlines())
        return [(line["event"], line["why"]) for line in lines]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Manager(f"{tmp_path}/notify") as manager:
        yield Place(tmp_path, manager)


def test_a_problem_is_shown_while_it_lasts(place: Place) -> None:
    """To `status`, by its file, and to systemd; one that goes leaves the others."""
    place.problems.set("events", "no watch")
    place.problems.set("metrics", "no address")
    place.manager.wait("STATUS=events: no watch; metrics: no address")
    assert place.reported == [("events", "no watch"), ("metrics", "no address")]
    place.problems.set("events", None)
    place.manager.wait("STATUS=metrics: no address")
    assert place.reported == [("metrics", "no address")]


def test_what_did_not_change_is_not_shown_again(place: Place) -> None:
    """However often it is found."""
    for _ in range(3):
        place.problems.set("events", "no watch")
    place.problems.set("events", None)
    place.problems.set("events", None)
    place.manager.wait("STATUS=")
    assert place.manager.heard == ["STATUS=events: no watch", "STATUS="]


def test_each_reason_of_a_blocked_outbox_is_printed_once(place: Place) -> None:
    """Until it changes, or comes back."""
    full, busy = Full(place.path, "no room"), Busy(place.path, "a lock")
    for exc in (full, full, busy, busy):
        place.problems.outbox_blocked(exc)
    assert place.reported == [("outbox", "a lock")]
    place.problems.outbox_unblocked()
    assert place.reported == []
    place.problems.outbox_blocked(busy)
    assert place.printed == [("outbox.blocked", why) for why in ("no room", "a lock", "a lock")]


def test_a_budget_that_is_used_up_is_the_intake_s_problem(place: Place) -> None:
    """Delivery goes on and writes, so a commit does not end it; that intake goes on does."""
    place.problems.outbox_blocked(OverBudget(place.path, "used up"))
    place.problems.outbox_unblocked()
    assert place.reported == [("intake", "used up")]
    place.problems.intake_unblocked()
    assert place.reported == []
    assert place.printed == [("outbox.blocked", "used up")]
