"""Numbers for Prometheus, worked out from the event rows and the outbox when they are asked for.

Nothing counts while nobody asks. A counter begins at 0 with the daemon, as Prometheus expects.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import threading
import time
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, cast, get_args

import anyio
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from paliadin_sidecar.host.threads import Threads
from paliadin_sidecar.intake.roots import State
from paliadin_sidecar.outbox.database import Outbox, OutboxError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from pathlib import Path

    from prometheus_client.metrics_core import Metric

    from paliadin_sidecar.outbox.database import Event

__all__ = ["NotServed", "Numbers", "serve"]

#: Prometheus asks once in some seconds. Whatever else connects gets so many connections, so many
#: seconds from the first byte to the last, and so many bytes to ask in.
_MAX_CONNECTIONS, _CONNECTION_S, _MAX_HEAD = 16, 10.0, 8 * 1024
_BACKLOG = 16
#: Reading the numbers takes at most a fifth of the time, however many ask.
_REST = 4.0

_PREFIX = "paliadin_sidecar"
_ROOT = ("backend", "persona")
_TURNS = ("accepted", "revised", "failed", "vanished", "history", "stalled", "unpushed")
_DELIVERIES = ("delivered", "dead", "superseded", "replayed")
#: Seconds; an attempt ends within PALIADIN_CALLBACK_TIMEOUT_S, at most 60.
_ATTEMPT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
#: A person waits for the first minutes; beyond, it is an outage.
_END_TO_END = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21_600, 86_400)


class NotServed(Exception):
    """The numbers cannot be had or not be told; the text says why."""


@asynccontextmanager
async def serve(
    address: tuple[str, int],
    path: Path,
    roots: list[tuple[str, str]],
    scanned: Callable[[], tuple[int, int]],
) -> AsyncGenerator[None, None]:
    """Answer at `address` until the block ends.

    All on the event loop, within bounds of its own: so many connections, so much time and so many
    bytes each. The numbers are read in one thread, for a part of the time at most.

    Args:
        address: host and port.
        path: the outbox.
        roots: backend and persona of each.
        scanned: how often a root was scanned, and how many files only a scan found.

    Raises:
        NotServed: the address cannot be had, or the outbox not be read.
    """
    # A second series for each one, which nothing here needs.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
    registry = CollectorRegistry()
    with ExitStack() as stack:
        try:
            in_thread = Threads(1, "metrics")
            stack.callback(in_thread.close)
            numbers = await in_thread(partial(Numbers, path, roots, scanned))
            registry.register(numbers)
            ProcessCollector(registry=registry)
            listening = _listen(*address)
            stack.enter_context(listening)
        except (OutboxError, RuntimeError, OSError) as exc:
            shown = ":".join(map(str, address))
            why = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise NotServed(
                f"PALIADIN_METRICS='{shown}': cannot be listened at ({why}): must be an address of "
                "this host and a port that is free; it is tried again"
            ) from None
        scrapes = Scrapes(registry, in_thread)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(scrapes.connection, sock=listening, backlog=_BACKLOG)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scrapes.answer)
            try:
                yield
            finally:
                server.close()
                scrapes.close()
                tasks.cancel_scope.cancel()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


class Scrapes:
    """The connections that ask for the numbers, and their answers.

    Args:
        registry: what is asked for.
        in_thread: where it is read.
    """

    def __init__(self, registry: CollectorRegistry, in_thread: Threads) -> None:
        self._registry = registry
        self._in_thread = in_thread
        self._open: dict[_Connection, None] = {}  # the oldest first
        self._asking: list[_Connection] = []
        self._asked = anyio.Event()

    def connection(self) -> asyncio.Protocol:
        """A protocol for one more connection."""
        return _Connection(self)

    def opened(self, connection: _Connection) -> None:
        """One more is open; beyond the bound, one goes that has not asked, else the oldest."""
        self._open[connection] = None
        if len(self._open) > _MAX_CONNECTIONS:
            others = [one for one in self._open if one is not connection]
            next((one for one in others if not one.asked), others[0]).abort()

    def closed(self, connection: _Connection) -> None:
        """It is gone."""
        self._open.pop(connection, None)

    def ask(self, connection: _Connection) -> None:
        """Answer this one when the numbers are read the next time."""
        self._asking.append(connection)
        self._asked.set()

    async def answer(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            asking, self._asking = self._asking, []
            began = time.monotonic()
            for accept in {one.accept for one in asking}:
                status, body, content_type = await self._read(accept)
                for one in asking:
                    if one.accept == accept:
                        one.respond(status, body, content_type)
            await anyio.sleep(_REST * (time.monotonic() - began))

    async def _read(self, accept: str) -> tuple[str, bytes, str]:
        encoder, content_type = choose_encoder(accept)
        try:
            return "200 OK", await self._in_thread(encoder, self._registry), content_type
        except Exception as exc:  # noqa: BLE001 - it costs this scrape, and nothing else
            return "500 Internal Server Error", type(exc).__name__.encode(), "text/plain"

    def close(self) -> None:
        """End every connection."""
        for connection in list(self._open):
            connection.abort()


class _Connection(asyncio.Protocol):
    # One request, one answer, and the end.

    def __init__(self, scrapes: Scrapes) -> None:
        self._scrapes = scrapes
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self._late: asyncio.TimerHandle | None = None
        self._with_body = True
        self.asked = False
        self.accept = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._late = asyncio.get_running_loop().call_later(_CONNECTION_S, self.abort)
        self._scrapes.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - it is over anyhow
        if self._late is not None:
            self._late.cancel()
        self._scrapes.closed(self)

    def data_received(self, data: bytes) -> None:
        if self.asked:
            return  # a body, or another request: this one's answer is the last
        self._head += data
        head, end, _ = self._head.partition(b"\r\n\r\n")
        if len(head) > _MAX_HEAD:
            self._refuse("431 Request Header Fields Too Large")
        elif end:
            self._read(head.decode("latin-1"))

    def eof_received(self) -> bool:
        return self.asked  # who has asked may close this direction, and still be answered

    def _read(self, head: str) -> None:
        request, *lines = head.split("\r\n")
        method, _, rest = request.partition(" ")
        if not rest.startswith("/") or " HTTP/1." not in rest:
            self._refuse("400 Bad Request")
        elif method not in {"GET", "HEAD"}:
            self._refuse("405 Method Not Allowed")
        else:
            fields = [line.partition(":") for line in lines]
            accepted = [value for name, _, value in fields if name.lower() == "accept"]
            self.accept = ",".join(accepted)
            self._with_body = method == "GET"
            self.asked = True
            self._scrapes.ask(self)

    def _refuse(self, status: str) -> None:
        self.asked = True
        self.respond(status, b"", "text/plain")

    def respond(self, status: str, body: bytes, content_type: str) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._transport.write(head.encode() + (body if self._with_body else b""))
        self._transport.close()  # when it was read; who does not read is aborted in time

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Numbers(Collector):
    """What the outbox tells, brought up to date by each scrape.

    Args:
        path: the outbox.
        roots: backend and persona of each; their counters are there from the start, since a
            counter that appears with its first event hides that event from `increase()`.
        scanned: see `serve`.
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
        self._turns = Counter(
            f"{_PREFIX}_turns",
            "Turn files by what became of them.",
            (*_ROOT, "outcome"),
            registry=None,
        )
        self._deliveries = Counter(
            f"{_PREFIX}_deliveries",
            "Deliveries by how they ended: acknowledged, given up, superseded; and sent again.",
            (*_ROOT, "outcome"),
            registry=None,
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
            (self._seen,) = outbox.transaction([outbox.newest_event])

    def collect(self) -> Iterator[Metric]:
        """Read what is new, and the state as it is."""
        with self._one_at_a_time:
            found: list[Metric] = []
            try:
                with Outbox(self._path, wall=self._wall) as outbox:
                    self._follow(outbox)
                    found += _state(outbox)
                found.append(_free(self._path.parent))
            except (OutboxError, sqlite3.Error, OSError):
                pass  # a damaged outbox ends the daemon within a scan, and then the scrapes
            for counted in (self._turns, self._deliveries, self._attempts, self._end_to_end):
                found += counted.collect()
        yield from found
        scans, only_scanned = self._scanned()
        yield CounterMetricFamily(f"{_PREFIX}_scans", "Scans of a root.", scans)
        yield CounterMetricFamily(
            f"{_PREFIX}_only_scanned",
            "Turn files that settled before any event told of them; a few are normal.",
            only_scanned,
        )
        info = GaugeMetricFamily(f"{_PREFIX}_info", "Always 1.", labels=("version",))
        info.add_metric([version("paliadin")], 1)
        yield info

    def _follow(self, outbox: Outbox) -> None:
        while events := outbox.events(self._seen):
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
                took_s = outbox.end_to_end_s(event.id)
                if took_s is not None:
                    self._end_to_end.observe(took_s)


def _state(outbox: Outbox) -> list[Metric]:
    counts = outbox.counts()
    service = outbox.service()
    armed = GaugeMetricFamily(
        f"{_PREFIX}_root_armed", "1 where the root is watched.", labels=(*_ROOT, "path")
    )
    states = GaugeMetricFamily(
        f"{_PREFIX}_root_state",
        "1 for the state that the root is in.",
        labels=(*_ROOT, "path", "state"),
    )
    since = GaugeMetricFamily(
        f"{_PREFIX}_root_since_timestamp_seconds",
        "When the root came into its state, since the epoch.",
        labels=(*_ROOT, "path"),
    )
    for root in service["roots"]:
        labels = [root["backend"], root["persona"], root["path"]]
        armed.add_metric(labels, root["state"] == "armed")
        for state in get_args(State):
            states.add_metric([*labels, state], root["state"] == state)
        since.add_metric(labels, root.get("since", 0.0))  # an older daemon did not say
    return [
        _gauge("backlog_deliveries", "Accepted and not acknowledged.", counts.get("pending", 0)),
        _gauge(
            "backlog_age_seconds",
            "Of the oldest of them; 0 without.",
            outbox.oldest_pending_s() or 0.0,
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
    disk = os.statvfs(state_dir)
    return _gauge("state_free_bytes", "Room on the outbox's disk.", disk.f_bavail * disk.f_frsize)


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", says, value)
