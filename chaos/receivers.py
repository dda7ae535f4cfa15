"""A receiver that is away, slow, rude or wrong; each answer seen on the wire."""

from __future__ import annotations

import ssl
import time
from collections import Counter
from typing import TYPE_CHECKING

import trustme
from support.receiver import Reply, Request

from chaos.world import scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos.world import World

COUNT = 30


def once_each(world: World, bad: Callable[[Request], Reply]) -> None:
    """Every turn meets this once, then a receiver that is well."""
    met: Counter[str] = Counter()

    def behaviour(request: Request) -> Reply:
        if request.is_ping or met[request.id]:
            return Reply()
        met[request.id] += 1
        return bad(request)

    world.behaviour = behaviour
    world.host.start()
    world.write("--count", str(COUNT))
    world.delivered()


def all_meet(world: World, bad: Reply, seconds: float) -> None:
    """All requests meet this for so long, then a receiver that is well."""
    world.behaviour = lambda _: bad
    world.host.start()
    with world.fault(f"all get {bad.status}"):
        world.write("--count", str(COUNT), "--manner", "rename")
        world.accepted(COUNT)
        time.sleep(seconds)
        world.behaviour = lambda _: Reply()
    world.delivered()


def turns(world: World) -> int:
    """How many requests with a turn have come."""
    return sum(bool(one.turn) for one in world.arrived)


@scenario(quick=True)
def receiver_down(world: World) -> None:
    """Receiver: nobody listens for the whole load, also over a restart."""
    world.host.start()
    with world.fault("nobody listens"):
        world.receiver_down()
        world.write("--count", str(COUNT))
        world.accepted(COUNT)
        world.kill()
        world.host.start()
        world.host.wait_event("receiver.paused")
        world.receiver_up()
    world.delivered()
    world.check(not world.arrived[0].turn, "a turn was the probe")


@scenario(PALIADIN_CALLBACK_TIMEOUT_S="1")
def receiver_hangs(world: World) -> None:
    """Receiver: accepts and never answers, once for each turn."""
    once_each(world, lambda _: Reply(how="hang"))
    world.check(world.host.events("delivery.attempted", error="timeout"), "nothing timed out")


@scenario(PALIADIN_CALLBACK_TIMEOUT_S="1")
def receiver_drips(world: World) -> None:
    """Receiver: drips a byte a second, once for each turn."""
    once_each(world, lambda _: Reply(how="drip"))
    world.check(world.host.events("delivery.attempted", error="timeout"), "nothing timed out")


@scenario(quick=True)
def receiver_resets(world: World) -> None:
    """Receiver: stores it and resets instead of answering, once for each turn."""
    once_each(world, lambda _: Reply(how="reset"))


@scenario()
def receiver_resets_in_its_answer(world: World) -> None:
    """Receiver: stores it and resets in the middle of its status line, once for each turn."""
    once_each(world, lambda _: Reply(how="half"))
    world.check(
        world.host.events("delivery.attempted", error="reset"), "half a status line was enough"
    )


@scenario()
def receiver_resets_in_the_body(world: World) -> None:
    """Receiver: resets in the middle of a body of a megabyte, once for each turn."""
    met: set[str] = set()

    def hangs_up(headers: dict[str, str]) -> bool:
        id_ = headers["webhook-id"]
        is_new = id_ not in met and not id_.startswith("ping_")
        met.add(id_)
        return is_new

    world.receiver.hangs_up = hangs_up
    world.host.start()
    with world.fault("reset in the body", COUNT):
        world.write("--count", str(COUNT), "--bytes", "1000000", "--manner", "rename")
        world.delivered()
    attempts = world.host.events("delivery.attempted", status=None)
    world.check(len(attempts) >= COUNT, f"only {len(attempts)} were cut short")


@scenario()
def receiver_answers_then_resets(world: World) -> None:
    """Receiver: answers 2xx, then resets."""
    once_each(world, lambda _: Reply(how="then_reset"))
    world.check(turns(world) == len({one.id for one in world.arrived}), "a 2xx was not believed")


@scenario()
def receiver_answers_endlessly(world: World) -> None:
    """Receiver: answers 200 with a body that never ends."""
    once_each(world, lambda _: Reply(200, how="endless"))
    world.check(turns(world) == len({one.id for one in world.arrived}), "a 2xx was not believed")


def certified(authority: trustme.CA) -> ssl.SSLContext:
    """A server's side of TLS by this authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@scenario()
def receiver_tls_not_verified(world: World) -> None:
    """Receiver: TLS by an authority that nobody knows, then mended."""
    known = trustme.CA()
    known.cert_pem.write_to_path(str(world.base / "ca.pem"))
    world.receiver_down()
    world.tls = certified(trustme.CA())
    world.receiver_up()
    world.host.environ["PALIADIN_CALLBACK_URL"] = world.receiver.url
    world.host.environ["PALIADIN_CALLBACK_CA_FILE"] = str(world.base / "ca.pem")
    world.host.start()
    with world.fault("a certificate that does not verify"):
        world.write("--count", str(COUNT), "--manner", "rename")
        world.accepted(COUNT)
        world.host.wait_event("delivery.attempted", error="tls")
        world.check(not world.arrived, "something was said to a stranger")
        world.receiver_down()
        world.tls = certified(known)
        world.receiver_up()
    world.delivered()


@scenario()
def receiver_dns_unresolved(world: World) -> None:
    """Receiver: its name does not resolve; restarted with one that does."""
    world.host.environ["PALIADIN_CALLBACK_URL"] = "https://does-not-resolve.invalid/callback"
    world.host.start()
    with world.fault("no DNS"):
        world.write("--count", str(COUNT), "--manner", "rename")
        world.accepted(COUNT)
        world.host.wait_event("delivery.attempted", error="dns")
        world.check(world.host.stop() == 0, "it did not end well")
    world.host.environ["PALIADIN_CALLBACK_URL"] = world.receiver.url
    world.host.start()
    world.delivered()
