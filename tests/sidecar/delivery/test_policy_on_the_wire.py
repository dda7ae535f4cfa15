"""The delivery policy, seen by a receiver that misbehaves. Timers are the shipped ones."""

from __future__ import annotations

import itertools
import json
import socket
import ssl
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from support.receiver import Receiver, Reply, Request
from support.slow import slow
from support.waiting import PATIENCE_S, until

from paliadin_sidecar.delivery import sender as deliver
from paliadin_sidecar.errors import ConnectionLost

if TYPE_CHECKING:
    from support.sidecar import Sidecar


@pytest.mark.parametrize(
    "status", [slow(408), slow(425), 429, slow(500), slow(502), 503, slow(504), slow(600)]
)
def test_later_means_later(host: Sidecar, receiver: Receiver, status: int) -> None:
    """These are tried again, without a ping and without blame."""
    replies = itertools.chain([Reply(status)] * 2, itertools.repeat(Reply()))
    receiver.behaviour = lambda _: next(replies)
    host.start()
    host.answer("t1")
    host.wait_event("delivery.delivered", turn_id="t1", attempts=3)
    assert receiver.pings == []
    assert len(host.events("delivery.retry_scheduled", turn_id="t1")) == 2


@pytest.mark.parametrize("how", ["reset", "hang", "drip"])
def test_no_answer_is_tried_again(host: Sidecar, receiver: Receiver, how: str) -> None:
    """A reset, silence, and a drip of bytes each end with their attempt's deadline."""
    host.environ["PALIADIN_CALLBACK_TIMEOUT_S"] = "0.5"
    replies = itertools.chain([Reply(how=how)], itertools.repeat(Reply()))
    receiver.behaviour = lambda _: next(replies)
    host.start()
    host.answer("t1")
    host.wait_event("delivery.delivered", turn_id="t1")
    error = "reset" if how == "reset" else "timeout"
    assert host.events("delivery.attempted", turn_id="t1", error=error)


@pytest.mark.parametrize("how", ["then_reset", "endless"])
def test_a_2xx_head_acknowledges_whatever_follows(
    host: Sidecar, receiver: Receiver, how: str
) -> None:
    """The receiver said that it has it; its body is of no interest."""
    receiver.behaviour = lambda _: Reply(200, how=how)
    host.start()
    host.answer("t1")
    host.wait_event("delivery.delivered", turn_id="t1", attempts=1)


def test_a_2xx_acknowledges_whatever_is_said_beside_it(host: Sidecar, receiver: Receiver) -> None:
    """Neither phrase nor headers need be UTF-8, or short."""
    receiver.behaviour = lambda _: Reply(200, {"x-note": "Grüße" * 8000}, phrase="Übernommen")
    host.start()
    host.answer("t1")
    host.wait_event("delivery.delivered", turn_id="t1", attempts=1)


def test_no_cookie_comes_back(host: Sidecar, receiver: Receiver) -> None:
    """What one callback's answer sets is no part of the next one."""
    # By name: an address gets no cookies from most libraries.
    host.environ["PALIADIN_CALLBACK_URL"] = receiver.url.replace("127.0.0.1", "localhost")
    receiver.behaviour = lambda _: Reply(headers={"set-cookie": "sid=1; Path=/"})
    host.start()
    for n in range(2):
        host.answer(f"t{n}")
        assert "cookie" not in receiver.wait(f"t{n}").headers
        host.wait_event("delivery.delivered", turn_id=f"t{n}")


@pytest.mark.parametrize("value", ["2", "garbage", "-5", "1e9"])
def test_retry_after_is_a_floor(host: Sidecar, receiver: Receiver, value: str) -> None:
    """Seconds are honoured, garbage is not."""
    replies = itertools.chain([Reply(429, {"retry-after": value})], itertools.repeat(Reply()))
    receiver.behaviour = lambda _: next(replies)
    host.start()
    host.answer("t1")
    host.wait_event("delivery.delivered", turn_id="t1")
    (event,) = host.events("delivery.retry_scheduled", turn_id="t1")
    assert (event["delay_ms"] >= 2000) == (value == "2")


@pytest.mark.parametrize("status", [301, slow(302), slow(307), 401, slow(403), 404, slow(410)])
def test_whose_fault_the_turn_s(host: Sidecar, receiver: Receiver, status: int) -> None:
    """The ping gets 2xx, so this turn is refused, and no other is held."""

    def behaviour(request: Request) -> Reply:
        bad = not request.is_ping and request.json["data"]["turn_id"] == "bad"
        return Reply(status, {"location": "/elsewhere"}) if bad else Reply()

    receiver.behaviour = behaviour
    host.start()
    host.answer("bad")
    host.wait_event("delivery.refused", turn_id="bad", status=status)
    host.answer("good")
    host.wait_event("delivery.delivered", turn_id="good")
    assert receiver.pings
    assert {r.path for r in receiver.requests} == {"/callback"}
    assert not host.events("receiver.paused")


def test_whose_fault_the_receiver_s(host: Sidecar, receiver: Receiver) -> None:
    """The ping fails too: nothing but pings goes out, and its 2xx drains the backlog."""
    receiver.behaviour = lambda _: Reply(401)
    host.start()
    host.answer("t0")
    host.wait_event("receiver.paused", why="status_401")
    sent = len(receiver.turns)
    for n in range(1, 20):
        host.answer(f"t{n}")
    for n in range(1, 20):
        host.wait_event("turn.accepted", turn_id=f"t{n}")
    pings = len(receiver.pings)
    until("another ping", lambda: len(receiver.pings) > pings)
    assert len(receiver.turns) == sent
    assert host.typed("status").returncode == 1
    receiver.behaviour = lambda _: Reply()
    host.wait_event("receiver.resumed")
    for n in range(20):
        host.wait_event("delivery.delivered", turn_id=f"t{n}")
    assert not host.events("delivery.refused")
    receiver.verify_all(host.secret)


def test_five_connection_failures_pause_and_a_pause_outlives_a_restart(host: Sidecar) -> None:
    """A turn is never the probe, also not the first thing after a start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    host.environ["PALIADIN_CALLBACK_URL"] = f"http://127.0.0.1:{port}/callback"
    host.start()
    host.answer("t0")
    host.wait_event("receiver.paused", why="connect")
    assert len(host.events("delivery.attempted", error="connect")) >= 5
    host.stop()
    attempts = len(host.events("delivery.attempted"))
    host.start()
    host.stop()
    assert len(host.events("delivery.attempted")) == attempts


@pytest.mark.slow  # its pauses are the shipped ones, and chance decides how many there are
@pytest.mark.timeout(480)
def test_a_refused_turn_is_dead_only_if_others_pass(host: Sidecar, receiver: Receiver) -> None:
    """No number of refusals is enough while everything is refused; then some between others are.

    Its cause is shown, and a replay is advised after the mending, not before.
    """
    host.environ["PALIADIN_REFUSED_S"] = "0"
    receiver.behaviour = lambda _: Reply(400)
    host.start()
    host.answer("bad")
    until("4 refusals", lambda: len(host.events("delivery.refused", turn_id="bad")) >= 4)
    receiver.behaviour = lambda r: Reply(400) if r.json["data"].get("turn_id") == "bad" else Reply()
    host.answer("good")
    host.wait_event("delivery.delivered", turn_id="good")
    assert not host.events("delivery.dead")
    for tried in range(len(receiver.of("bad")), 40):
        for n in range(10):
            host.answer(f"good-{tried}-{n}")
            host.wait_event("delivery.delivered", turn_id=f"good-{tried}-{n}")
        until(
            "the next attempt",
            partial(_tried_or_dead, host, receiver, tried),
            2 * PATIENCE_S,
        )
        if host.events("delivery.dead"):
            break
    assert host.wait_event("delivery.dead", turn_id="bad")["cause"] == "refused"
    (problem,) = json.loads(host.typed("status", "--json").stdout)["problems"]
    assert problem.startswith("1 given up within a day (1 with 400: ")
    assert problem.endswith("and then: paliadin-sidecar replay --dead")
    receiver.behaviour = lambda _: Reply()
    assert host.typed("replay", "--dead").stdout == "1 will be sent again\n"
    host.wait_event("delivery.delivered", turn_id="bad")
    assert host.typed("status").returncode == 0


def _tried_or_dead(host: Sidecar, receiver: Receiver, tried: int) -> bool:
    return len(receiver.of("bad")) > tried or bool(host.events("delivery.dead"))


@pytest.mark.slow  # eight seconds of a deployment, and what waited goes out
def test_a_rolling_deploy_costs_no_turn(host: Sidecar, receiver: Receiver) -> None:
    """400 from all for a while, then from every second pod: nothing is given up."""
    host.environ["PALIADIN_REFUSED_S"] = "0"
    receiver.behaviour = lambda _: Reply(400)
    host.start()
    for n in range(60):
        host.answer(f"t{n}")
    host.wait_event("receiver.paused", why="status_400")
    pods = itertools.cycle([Reply(400), Reply()])
    receiver.behaviour = lambda _: next(pods)
    until("all", lambda: len(host.events("delivery.delivered")) == 60, 4 * PATIENCE_S)
    assert not host.events("delivery.dead")


def test_an_outage_that_answers_pauses(host: Sidecar, receiver: Receiver) -> None:
    """503 to all: after fifty turns in a row only pings go out, and one well ping ends it."""
    receiver.behaviour = lambda _: Reply(503)
    host.start()
    for n in range(80):
        host.answer(f"t{n}")
    host.wait_event("receiver.paused", why="status_503")
    for n in range(80):
        host.wait_event("turn.accepted", turn_id=f"t{n}")
    sent, pings = len(receiver.turns), len(receiver.pings)
    until("two more pings", lambda: len(receiver.pings) >= pings + 2)
    assert len(receiver.turns) == sent < 70
    receiver.behaviour = lambda _: Reply()
    for n in range(80):
        host.wait_event("delivery.delivered", turn_id=f"t{n}")


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_tls_must_verify_and_an_authority_can_be_named(
    host: Sidecar, tmp_path: Path, scheme: str
) -> None:
    """An unknown authority is refused; PALIADIN_CALLBACK_CA_FILE adds it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    with Receiver(tls=server) as secure:
        host.environ["PALIADIN_CALLBACK_URL"] = secure.url.replace("https", scheme)
        host.start()
        host.answer("t1")
        host.wait_event("delivery.attempted", turn_id="t1", error="tls")
        host.stop()
        assert secure.requests == []
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        host.environ["PALIADIN_CALLBACK_CA_FILE"] = str(tmp_path / "ca.pem")
        host.start()
        host.wait_event("delivery.delivered", turn_id="t1")


def test_a_receiver_that_asks_for_a_certificate_refuses_by_tls() -> None:
    """It says so after our half of the handshake.

    On the wire that alert races with the end of the connection, so this is what was seen there.
    """
    assert deliver._error(ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED]")) == "tls"
    assert deliver._error(ConnectionLost()) == "reset"


def test_a_name_that_does_not_resolve_is_tried_again(host: Sidecar) -> None:
    """No DNS is an outage like any other."""
    host.environ["PALIADIN_CALLBACK_URL"] = "https://does-not-resolve.invalid/callback"
    host.start()
    host.answer("t1")
    host.wait_event("delivery.attempted", turn_id="t1", error="dns")
    host.wait_event("delivery.retry_scheduled", turn_id="t1")


def test_no_proxy_of_the_environment_sees_anything(host: Sidecar, receiver: Receiver) -> None:
    """The callback is reached directly, whatever the environment says."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        host.environ[name] = "http://127.0.0.1:9"
    host.start()
    host.answer("t1")
    receiver.wait("t1")


def test_a_slow_turn_costs_no_other_anything(host: Sidecar, receiver: Receiver) -> None:
    """Poisonous turns that hang take half of the slots at most."""
    host.environ["PALIADIN_CALLBACK_TIMEOUT_S"] = "2"
    receiver.behaviour = (
        lambda r: Reply(how="hang") if r.json["data"].get("turn_id", "").startswith("slow")
        else Reply()
    )  # fmt: skip
    host.start()
    for n in range(4):
        host.answer(f"slow{n}")
    for n in range(4):
        receiver.wait(f"slow{n}")
    host.answer("good")
    host.wait_event("delivery.delivered", turn_id="good")
    assert not host.events("delivery.attempted", error="timeout")


def test_a_receiver_that_reads_nothing_costs_no_connection(host: Sidecar) -> None:
    """What a body's unsent bytes hold open ends with its attempt."""
    host.environ["PALIADIN_CALLBACK_TIMEOUT_S"] = "0.3"
    with socket.create_server(("127.0.0.1", 0)) as silent:  # which nobody accepts from
        host.environ["PALIADIN_CALLBACK_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        host.start()
        at_rest = _sockets(host)
        host.answer("t1", "x" * 4_000_000)
        host.wait_event("receiver.paused", why="timeout")
        # One may be a ping's.
        until("the end of five connections", lambda: _sockets(host) <= at_rest + 1)


def _sockets(host: Sidecar) -> int:
    assert host.process is not None
    found = 0
    for fd in Path(f"/proc/{host.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(fd.readlink()).startswith("socket:")
    return found
