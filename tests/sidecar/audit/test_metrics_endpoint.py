"""The endpoint of the metrics, and the numbers of a whole daemon, as a scraper sees them."""

from __future__ import annotations

import os
import socket
import struct
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.receiver import Receiver, Reply
from support.waiting import PATIENCE_S, until

from paliadin_sidecar.outbox.database import FILENAME

if TYPE_CHECKING:
    from support.sidecar import Sidecar

NOW = 1_795_334_400.0
ROOT = {"backend": "aichat", "persona": "paliadin"}


def free_address() -> str:
    """On an address of this process alone: a port that was free may be another's a moment later."""
    number = os.getpid()
    host = f"127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    with closing(socket.create_server((host, 0))) as probe:
        return f"{host}:{probe.getsockname()[1]}"


class Scraped:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float | None:
        """The sum of this sample over these labels, None where there is none."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == f"paliadin_sidecar_{name}" and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None


@pytest.fixture
def metered(host: Sidecar) -> Sidecar:
    host.environ["PALIADIN_METRICS"] = free_address()
    return host


def scrape(host: Sidecar) -> Scraped:
    url = f"http://{host.environ['PALIADIN_METRICS']}/metrics"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=PATIENCE_S) as response:
        assert response.status == 200
        return Scraped(response.read().decode())


def test_a_turn_s_way(metered: Sidecar, receiver: Receiver) -> None:
    """What a turn went through is in the numbers, with its time."""
    metered.start()
    before = scrape(metered)
    assert before("turns_total", outcome="accepted") == 0
    assert before("root_armed", backend="aichat", path=str(metered.aichat)) == 1
    assert before("root_armed", backend="legacy") == 1
    assert before("receiver_paused") == 0
    metered.answer("t1")
    receiver.wait("t1")
    metered.wait_event("delivery.delivered", turn_id="t1")
    found = scrape(metered)
    assert found("turns_total", outcome="accepted", backend="aichat") == 1
    assert found("turns_total", outcome="accepted", backend="legacy") == 0
    assert found("deliveries_total", outcome="delivered", backend="aichat") == 1
    assert found("attempt_duration_seconds_count", result="2xx") == 1
    assert found("end_to_end_seconds_count") == 1
    took_s = found("end_to_end_seconds_sum")
    assert took_s is not None
    assert 0 <= took_s < PATIENCE_S
    assert (found("backlog_deliveries"), found("backlog_age_seconds")) == (0, 0)
    assert (found("state_free_bytes") or 0) > 0
    assert found("info") == 1
    scans = before("scans_total") or 0
    until("another scan", lambda: (scrape(metered)("scans_total") or 0) > scans)


def test_an_outage(metered: Sidecar, receiver: Receiver) -> None:
    """A receiver that is not well shows as a pause and as a backlog that grows older."""
    receiver.behaviour = lambda _: Reply(401)
    metered.start()
    metered.answer("t1")
    metered.wait_event("receiver.paused")
    found = scrape(metered)
    assert found("receiver_paused") == 1
    assert found("backlog_deliveries") == 1
    age_s = found("backlog_age_seconds") or 0
    assert age_s > 0
    until("an older backlog", lambda: (scrape(metered)("backlog_age_seconds") or 0) > age_s)
    metered.aichat.chmod(0o777)
    metered.wait_event("root.untrusted")
    until("the root", lambda: scrape(metered)("root_armed", backend="aichat") == 0)
    receiver.behaviour = lambda _: Reply()
    metered.wait_event("receiver.resumed")
    metered.wait_event("delivery.delivered", turn_id="t1")
    until("no pause", lambda: scrape(metered)("receiver_paused") == 0)


def test_what_only_a_scan_found(metered: Sidecar, receiver: Receiver) -> None:
    """A file that is there at the start is found by a scan; an event's file is not."""
    metered.answer("t1")
    metered.start()
    receiver.wait("t1")
    until("the find", lambda: scrape(metered)("only_scanned_total") == 1)


def test_a_restart_begins_at_zero(metered: Sidecar, receiver: Receiver) -> None:
    """Counters are the process's own, as Prometheus expects."""
    metered.start()
    metered.answer("t1")
    metered.wait_event("delivery.delivered", turn_id="t1")
    assert metered.stop() == 0
    metered.start()
    assert scrape(metered)("turns_total", outcome="accepted") == 0


def test_a_scraper_that_says_nothing_holds_nobody(metered: Sidecar, receiver: Receiver) -> None:
    """Neither another scrape, nor a turn, nor the end."""
    metered.start()
    host, _, port = metered.environ["PALIADIN_METRICS"].partition(":")
    with socket.create_connection((host, int(port))) as silent:
        silent.sendall(b"GET /metr")
        assert scrape(metered)("info") == 1
        metered.answer("t1")
        receiver.wait("t1")
        assert metered.stop() == 0


@pytest.mark.parametrize("why", ["taken", "not there yet"])
def test_an_address_that_cannot_be_had_yet(metered: Sidecar, receiver: Receiver, why: str) -> None:
    """Answers matter more: it delivers, says so in one line and in `status`, and tries again."""
    host, _, port = metered.environ["PALIADIN_METRICS"].partition(":")
    if why == "not there yet":
        metered.environ["PALIADIN_METRICS"] = f"192.0.2.1:{port}"
    with closing(socket.create_server((host, int(port)))):
        metered.start()
        metered.answer("t1")
        receiver.wait("t1")
        said = metered.wait_event("metrics.failed")["why"]
        assert said.startswith(f"PALIADIN_METRICS='{metered.environ['PALIADIN_METRICS']}': ")
        status = metered.typed("status")
        assert said in status.stdout
        assert status.returncode == 1
    if why == "taken":
        until("a scrape", lambda: is_served(metered))
        assert "PALIADIN_METRICS" not in metered.typed("status").stdout
        assert len(metered.events("metrics.failed")) == 1
    assert metered.stop() == 0
    assert "Traceback" not in metered.output.decode()


def is_served(host: Sidecar) -> bool:
    try:
        return scrape(host)("info") == 1
    except OSError:
        return False


def address(host: Sidecar) -> tuple[str, int]:
    name, _, port = host.environ["PALIADIN_METRICS"].partition(":")
    return name, int(port)


def asked(host: Sidecar, request: bytes) -> bytes:
    """All that is answered to these bytes, up to the end of the connection."""
    with socket.create_connection(address(host), PATIENCE_S) as one:
        one.sendall(request)
        one.shutdown(socket.SHUT_WR)
        with one.makefile("rb") as answer:
            return answer.read()


def threads(host: Sidecar) -> int:
    assert host.process is not None
    return len(list(Path(f"/proc/{host.process.pid}/task").iterdir()))


def test_whoever_connects_takes_no_thread_and_stops_nobody(
    metered: Sidecar, receiver: Receiver
) -> None:
    """Silent ones, ones that ask and do not read, resets: delivery and scrapes go on."""
    metered.start()
    assert scrape(metered)("info") == 1
    before = threads(metered)
    with ExitStack() as stack:
        for n in range(200):
            one = stack.enter_context(socket.create_connection(address(metered), PATIENCE_S))
            if n % 3 == 1:
                one.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            elif n % 3 == 2:
                one.sendall(b"GET /metr")
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()
        metered.answer("t1")
        receiver.wait("t1")
        until("a scrape among them", lambda: is_served(metered))
        assert threads(metered) <= before
        assert metered.process is not None
        descriptors = list(Path(f"/proc/{metered.process.pid}/fd").iterdir())
        assert len(descriptors) < 100
        assert metered.stop() == 0
    output = metered.output.decode()
    assert "Traceback" not in output
    assert not metered.events("unreadable")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", b"200"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 2000, b"431"),
    ],
)
def test_what_is_asked(metered: Sidecar, request_: bytes, status: bytes) -> None:
    """One answer to each request, whatever it is, and then the end."""
    metered.start()
    head, _, body = asked(metered, request_).partition(b"\r\n\r\n")
    assert head.split()[1] == status
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    assert len(body) == (0 if request_.startswith(b"HEAD") else length)
    assert (length > 0) == (status == b"200")


def test_openmetrics(metered: Sidecar) -> None:
    """Who asks for that form gets it, as before."""
    metered.start()
    accept = b"application/openmetrics-text; version=1.0.0"
    found = asked(metered, b"GET /metrics HTTP/1.1\r\nAccept: " + accept + b"\r\n\r\n")
    assert b"Content-Type: application/openmetrics-text" in found
    assert found.endswith(b"# EOF\n")


def test_off_by_default(host: Sidecar) -> None:
    """Who does not ask for it listens nowhere."""
    host.start()
    assert host.process is not None
    proc = Path(f"/proc/{host.process.pid}")
    sockets = [line.split() for line in (proc / "net/tcp").read_text().splitlines()]
    listening = {f"socket:[{fields[9]}]" for fields in sockets if fields[3] == "0A"}
    assert not listening & {str(fd.readlink()) for fd in (proc / "fd").iterdir()}


def test_what_an_outbox_that_went_leaves(metered: Sidecar) -> None:
    """The daemon ends, and with it the scrapes: nothing pretends that all is well."""
    metered.start()
    (metered.state / FILENAME).unlink()
    assert metered.wait() == 1
    with pytest.raises(OSError, match="refused"):
        scrape(metered)
