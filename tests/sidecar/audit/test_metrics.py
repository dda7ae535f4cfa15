"""The numbers themselves, over a real outbox."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import pytest

from paliadin_sidecar.audit.metrics import Numbers
from paliadin_sidecar.outbox import acceptance, queue, transitions
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.records import Arrival, Outcome, TurnKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


NOW = 1_795_334_400.0
ROOT = {"backend": "aichat", "persona": "paliadin"}


class Box:
    """An outbox, its clock, and what would be scraped."""

    def __init__(self, path: Path) -> None:
        self.now = NOW
        self.path = path
        self.outbox = Outbox(path, host="mriver", wall=lambda: self.now, create=True)
        self.numbers = Numbers(
            path, [("aichat", "paliadin")], lambda: (7, 3), wall=lambda: self.now
        )

    def take(self, turn_id: str, text: str = "eins", **fields: object) -> None:
        data = text.encode()
        arrival = Arrival(
            TurnKey("aichat", "paliadin", turn_id),
            f"{self.now}",
            datetime.fromtimestamp(self.now - 2, UTC),
            len(data),
            data=data,
            sha256=hashlib.sha256(data).hexdigest(),
        )
        changed = replace(arrival, **fields)  # type: ignore[arg-type]  # any of its fields
        self.outbox.transaction([partial(acceptance.accept, self.outbox, changed)])

    def attempt(self, *, status: int | None = None, error: str | None = None) -> None:
        """Attempt what is due: delivered by 204, given up by 422."""

        def step() -> None:
            for due in queue.fetch_due(self.outbox, (), limit=9, max_retries=9)[0]:
                tried = replace(due, attempts=due.attempts + 1)
                outcome = Outcome(status=status, error=error, ms=250.0)
                if status == 204:
                    transitions.record_delivered(self.outbox, tried, outcome)
                elif status == 422:
                    transitions.record_dead(self.outbox, tried, outcome, "refused")
                else:
                    transitions.record_retry(self.outbox, tried, outcome, 0.0)

        self.outbox.transaction([step])

    def scrape(self) -> dict[tuple[str, ...], float]:
        """Values that are not 0, by name and the values of the labels."""
        return {
            (sample.name.removeprefix("paliadin_sidecar_"), *sample.labels.values()): sample.value
            for metric in self.numbers.collect()
            for sample in metric.samples
            if sample.value and not sample.name.endswith(("_created", "_bucket"))
        }


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path / FILENAME)
    yield box
    box.outbox.close()


TURN = ("turns_total", "aichat", "paliadin")
DELIVERY = ("deliveries_total", "aichat", "paliadin")


def test_outcomes(box: Box) -> None:
    """Each end has its own counter, and each attempt its result."""
    box.take("t1")
    box.take("t1", "zwei")
    box.attempt(error="timeout")
    box.attempt(status=204)
    box.take("t2", reason="empty", data=None, sha256=None)
    box.attempt(status=422)
    box.take("t3", has_text=False)
    box.outbox.transaction(
        [lambda: acceptance.mark_vanished(box.outbox, TurnKey("aichat", "paliadin", "t4"))]
    )
    found = box.scrape()
    assert {key[-1]: value for key, value in found.items() if key[:3] == TURN} == {
        "accepted": 1, "revised": 1, "failed": 1, "unpushed": 1, "vanished": 1,
    }  # fmt: skip
    assert {key[-1]: value for key, value in found.items() if key[:3] == DELIVERY} == {
        "superseded": 1, "delivered": 1, "dead": 1,
    }  # fmt: skip
    attempts = {k[1]: n for k, n in found.items() if k[0] == "attempt_duration_seconds_count"}
    assert attempts == {"timeout": 1, "2xx": 1, "4xx": 1}
    assert found["dead_deliveries",] == 1
    assert (found["scans_total",], found["only_scanned_total",]) == (7, 3)


def test_end_to_end(box: Box) -> None:
    """From the file's completion to the acknowledgement, over all that is between."""
    box.take("t1")
    box.now += 3
    box.attempt(status=204)
    assert box.scrape()["end_to_end_seconds_sum",] == 5


def test_a_replay_is_no_latency(box: Box) -> None:
    """It is counted, but says when an operator came and not how fast we are."""
    box.take("t1")
    box.attempt(status=204)
    box.now += 3600
    box.outbox.transaction([lambda: transitions.replay(box.outbox, turn_id="t1")])
    box.attempt(status=204)
    found = box.scrape()
    assert found["end_to_end_seconds_count",] == 1
    assert found[*DELIVERY, "delivered"] == 2
    assert found[*DELIVERY, "replayed"] == 1


def test_a_failure_is_no_latency(box: Box) -> None:
    """That a file stayed empty for ten minutes says nothing of our speed."""
    box.take("t1", reason="empty", data=None, sha256=None)
    box.attempt(status=204)
    assert ("end_to_end_seconds_count",) not in box.scrape()


def test_each_event_counts_once(box: Box) -> None:
    """However often, and by however many at a time, it is scraped."""
    box.take("t1")
    threads = [threading.Thread(target=box.scrape) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert box.scrape()[*TURN, "accepted"] == 1


def test_before_it_was_asked(box: Box) -> None:
    """Events from before it began are not its own."""
    box.take("t1")
    box.numbers = Numbers(box.path, [("aichat", "paliadin")], lambda: (0, 0))
    assert (*TURN, "accepted") not in box.scrape()


def test_backlog(box: Box) -> None:
    """Counted and aged while it waits, 0 afterwards."""
    box.take("t1")
    box.now += 3600
    found = box.scrape()
    assert (found["backlog_deliveries",], found["backlog_age_seconds",]) == (1, 3600)
    box.attempt(status=204)
    assert ("backlog_age_seconds",) not in box.scrape()


def test_without_an_outbox(box: Box) -> None:
    """What cannot be read is left out, and the scrape still answers."""
    box.take("t1")
    box.scrape()
    box.path.unlink()
    found = box.scrape()
    assert found[*TURN, "accepted"] == 1
    assert ("state_free_bytes",) not in found
