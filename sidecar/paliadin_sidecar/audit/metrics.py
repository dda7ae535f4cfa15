"""Numbers for Prometheus, worked out from the event rows and the outbox when they are asked for.

Nothing counts while nobody asks. A counter begins at 0 with the daemon, as Prometheus expects.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from paliadin_sidecar.errors import OutboxError
from paliadin_sidecar.outbox import event_rows, queries
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.records import Event, RootState

_PREFIX = "paliadin_sidecar"
_ROOT = ("backend", "persona")
_TURNS = ("accepted", "revised", "failed", "vanished", "history", "stalled", "unpushed")
_DELIVERIES = ("delivered", "dead", "superseded", "replayed")
#: Seconds; an attempt ends within PALIADIN_CALLBACK_TIMEOUT_S, at most 60.
_ATTEMPT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
#: A person waits for the first minutes; beyond, it is an outage.
_END_TO_END = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21_600, 86_400)


class Numbers(Collector):
    """What the outbox holds, brought up to date by each scrape.

    Args:
        path: the outbox.
        roots: backend and persona of each; their counters are there from the start, since a
            counter that appears with its first event hides that event from `increase()`.
        scanned: how often a root was scanned, and how many files only a scan found.
        wall: the clock, in epoch seconds.
    """

    def __init__(
        self,
        path: Path,
        roots: list[tuple[str, str]],
        scanned: Callable[[], tuple[int, int]],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._wall = wall
        self._scanned = scanned
        self._one_at_a_time = threading.Lock()
        self._turns = _by_outcome("turns", "Turn files by what became of them.")
        self._deliveries = _by_outcome(
            "deliveries",
            "Deliveries by how they ended: acknowledged, given up, superseded; and sent again.",
        )
        self._attempts = Histogram(
            f"{_PREFIX}_attempt_duration_seconds",
            "Time of one attempt, by its status or why there was none.",
            ("result",),
            buckets=_ATTEMPT,
            registry=None,
        )
        self._end_to_end = Histogram(
            f"{_PREFIX}_end_to_end_seconds",
            "From the completion of a turn's file to its acknowledgement; no replays.",
            buckets=_END_TO_END,
            registry=None,
        )
        for root in roots:
            for outcome in _TURNS:
                self._turns.labels(*root, outcome)
            for outcome in _DELIVERIES:
                self._deliveries.labels(*root, outcome)
        with Outbox(path) as outbox:
            (self._seen,) = outbox.transaction([partial(event_rows.newest_id, outbox)])

    def collect(self) -> Iterator[Metric]:
        """Read what is new, and the state as it is."""
        with self._one_at_a_time:
            found: list[Metric] = []
            # A damaged outbox ends the daemon within a scan, and then the scrapes.
            with suppress(OutboxError, sqlite3.Error, OSError):
                with Outbox(self._path, wall=self._wall) as outbox:
                    self._follow(outbox)
                    found += _state(outbox)
                found.append(_free(self._path.parent))
            for counted in (self._turns, self._deliveries, self._attempts, self._end_to_end):
                found += counted.collect()
        yield from found
        scans, only_scanned = self._scanned()
        yield CounterMetricFamily(f"{_PREFIX}_scans", "Scans of a root.", scans)
        yield CounterMetricFamily(
            f"{_PREFIX}_only_scanned",
            "Turn files that settled before any event named them; a few are normal.",
            only_scanned,
        )
        info = GaugeMetricFamily(f"{_PREFIX}_info", "Always 1.", labels=("version",))
        info.add_metric([version("paliadin")], 1)
        yield info

    def _follow(self, outbox: Outbox) -> None:
        while events := event_rows.events(outbox, self._seen):
            for event in events:
                self._count(outbox, event)
                self._seen = event.id

    def _count(self, outbox: Outbox, event: Event) -> None:
        fields = event.fields
        subject, _, what = event.name.partition(".")
        if subject == "turn":
            root = (fields["backend"], fields["persona"])
            self._turns.labels(*root, "unpushed" if fields.get("pushed") is False else what).inc()
            superseded = len(fields.get("superseded", ()))
            self._deliveries.labels(*root, "superseded").inc(superseded)
        elif event.name == "delivery.attempted":
            result = fields["error"] if "error" in fields else f"{fields['status'] // 100}xx"
            # Those before it that got no event of their own count as this one.
            for _ in range(1 + fields.get("untold", 0)):
                self._attempts.labels(result).observe(fields["duration_ms"] / 1000)
        elif subject == "delivery" and what in _DELIVERIES:
            self._deliveries.labels(fields["backend"], fields["persona"], what).inc()
            if what == "delivered":
                took_s = event_rows.end_to_end_s(outbox, event.id)
                if took_s is not None:
                    self._end_to_end.observe(took_s)


def _state(outbox: Outbox) -> list[Metric]:
    counts = queries.counts(outbox)
    service = queries.service(outbox)
    armed = _of_root("root_armed", "1 where the root is watched.")
    states = _of_root("root_state", "1 for the state that the root is in.", "state")
    since = _of_root(
        "root_since_timestamp_seconds", "When the root came into its state, since the epoch."
    )
    for root in service["roots"]:
        labels = [root["backend"], root["persona"], root["path"]]
        armed.add_metric(labels, root["state"] == "armed")
        for state in get_args(RootState):
            states.add_metric([*labels, state], root["state"] == state)
        since.add_metric(labels, root["since"])
    return [
        _gauge("backlog_deliveries", "Accepted and not acknowledged.", counts.get("pending", 0)),
        _gauge(
            "backlog_age_seconds",
            "Of the oldest of them; 0 without.",
            queries.oldest_pending_s(outbox) or 0.0,
        ),
        _gauge("dead_deliveries", "Given up, and not replayed since.", counts.get("dead", 0)),
        _gauge(
            "receiver_paused",
            "1 while the receiver is not well and only pings go out.",
            service["paused_at"] is not None,
        ),
        armed,
        states,
        since,
    ]


def _free(state_dir: Path) -> Metric:
    free = shutil.disk_usage(state_dir).free
    return _gauge("state_free_bytes", "Room on the outbox's disk.", free)


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", says, value)


def _of_root(name: str, says: str, *more: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", says, labels=(*_ROOT, "path", *more))


def _by_outcome(name: str, says: str) -> Counter:
    return Counter(f"{_PREFIX}_{name}", says, (*_ROOT, "outcome"), registry=None)
