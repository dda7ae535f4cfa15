"""A machine that sleeps, and one that goes from network to network.

No machine can be suspended by a test. So the daemon is stopped (SIGSTOP), and when it goes on the
date and the clock since boot are ahead by the night, in the daemon alone, by a library that `cc`
builds (`sleeping_clock.c`). The networks are real ones, between two namespaces of this machine:
the daemon's, and the one of the receiver and the name servers.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from support.receiver import Reply, Request

from chaos.world import scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chaos.world import World

_SOURCE = Path(__file__).with_name("sleeping_clock.c")
_BUILD = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-x", "c", "-"]
CC = "echo 'int one;' | cc -shared -fPIC -x c - -o /dev/null"
_NAMESPACES = "unshare --net --mount ip link add here type veth peer name there"
_NIGHT_S = 8 * 3600
#: Whoever opens the lid has his answer so soon after there is a network.
_SOON_S = 5.0
_CLONE_NEWNET = 0x40000000  # linux/sched.h


def clock_ahead(file: Path, seconds: int) -> dict[str, str]:
    """The environment of a process whose clocks are ahead by what the file has.

    Args:
        file: a new one.
        seconds: what it has at first.
    """
    library = file.with_suffix(".so")
    subprocess.run([*_BUILD, "-o", str(library)], input=_SOURCE.read_bytes(), check=True)
    set_ahead(file, seconds)
    return {"LD_PRELOAD": str(library), "SLEPT": str(file)}


def set_ahead(file: Path, seconds: int) -> None:
    """Set these clocks: the file is mapped, so it is written in place."""
    with file.open("r+b" if file.exists() else "wb") as opened:
        opened.write(struct.pack("l", seconds))


class Lid:
    """The lid of a machine that sleeps while it is closed, from the daemon's next start on."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._slept = world.base / "slept"
        self._slept_s = 0
        environ = clock_ahead(self._slept, 0)
        world.host.prefix = ["env", *(f"{name}={value}" for name, value in environ.items())]

    @contextmanager
    def closed(self, seconds: int = _NIGHT_S) -> Iterator[None]:
        """It sleeps for so long, and what happens in the block happens meanwhile."""
        process = self._world.host.process
        assert process is not None
        with self._world.fault("suspended"):
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            yield
            self._slept_s += seconds
            set_ahead(self._slept, self._slept_s)
            process.send_signal(signal.SIGCONT)


def pause_grows(world: World) -> None:
    """Wait for a pause, and until its pings are far apart: 8 s, and a minute in the long form."""
    pauses = len(world.host.events("receiver.resumed")) + 1
    world.until("a pause", lambda: len(world.host.events("receiver.paused")) >= pauses)
    time.sleep(8 if world.quick else 65)


def soon(world: World, turn_id: str) -> None:
    """See that a turn comes within 5 s from now."""
    since = time.monotonic()

    def stored() -> list[float]:
        return [one.at for one in world.of(turn_id) if one.stored]

    world.until(turn_id, stored)
    took_s = stored()[0] - since
    world.check(took_s < _SOON_S, f"{turn_id} took {took_s:.1f} s")


def once(world: World, turn_id: str, reply: Reply) -> None:
    """The first request with this turn gets this reply, each other one is acknowledged."""

    def behaviour(request: Request) -> Reply:
        is_first = not request.is_ping and request.json["data"]["turn_id"] == turn_id
        return reply if is_first and not world.of(turn_id) else Reply()

    world.behaviour = behaviour


@scenario(quick=True, needs=CC)
def laptop_suspended(world: World) -> None:
    """Laptop: suspended for eight hours in an attempt, a rest, a pause, while a file settles."""
    lid = Lid(world)
    world.host.start()
    once(world, "attempt0", Reply(503, how="hang"))
    world.write("--name", "attempt", "--count", "1", "--manner", "rename")
    world.until("an attempt", lambda: world.of("attempt0"))
    with lid.closed():
        pass
    soon(world, "attempt0")
    once(world, "rest0", Reply(429, {"retry-after": "3600"}))
    world.write("--name", "rest", "--count", "1", "--manner", "rename")
    world.until("a rest", lambda: world.host.events("delivery.retry_scheduled", turn_id="rest0"))
    with lid.closed():
        pass
    soon(world, "rest0")
    world.receiver_down()
    world.write("--name", "pause", "--count", "1", "--manner", "rename")
    pause_grows(world)
    with lid.closed():
        world.receiver_up()
    soon(world, "pause0")
    world.write("--name", "settling", "--count", "1", "--manner", "without_trailer")
    with lid.closed():
        pass
    soon(world, "settling0")


@scenario(quick=True, needs=CC)
def laptop_lid(world: World) -> None:
    """Laptop: closed for a minute, opened for some seconds, again and again, no network."""
    lid = Lid(world)
    world.host.start()
    world.receiver_down()
    world.write("--name", "lid", "--count", "10", "--manner", "rename")
    # So long is it open in all that a pause which nothing cuts short has some seconds to go.
    for _ in range(4 if world.quick else 15):
        with lid.closed(60):
            pass
        time.sleep(2 if world.quick else 10)
    with lid.closed(60):
        world.receiver_up()
    for n in range(10):
        soon(world, f"lid{n}")


class Network:
    """A cable between the laptop and the world, with a gateway, a name server and a receiver.

    Args:
        number: of it; each has a range of addresses for documentation (RFC 5737).
        laptop: a process in the laptop's namespaces.
    """

    def __init__(self, number: int, laptop: int) -> None:
        range_ = ("198.51.100", "203.0.113")[number]
        self.gateway, self._laptop_address = f"{range_}.1", f"{range_}.2"
        self._here, self._there = f"here{number}", f"there{number}"
        self._inside = ["nsenter", "-t", str(laptop), "-n"]
        _run("ip", "link", "add", self._here, "type", "veth", "peer", "name", self._there)
        _run("ip", "link", "set", self._there, "netns", str(laptop))

    @contextmanager
    def joined(self) -> Iterator[None]:
        """It is there within the block: an address, and after a moment the route."""
        _run("ip", "addr", "add", f"{self.gateway}/24", "dev", self._here)
        _run("ip", "link", "set", self._here, "up")
        with socket.socket(type=socket.SOCK_DGRAM) as server:
            server.bind((self.gateway, 53))
            threading.Thread(target=_serve_names, args=(server, self.gateway), daemon=True).start()
            there = ("dev", self._there)
            _run(*self._inside, "ip", "addr", "add", f"{self._laptop_address}/24", *there)
            _run(*self._inside, "ip", "link", "set", self._there, "up")
            time.sleep(0.3)
            _run(*self._inside, "ip", "route", "add", "default", "via", self.gateway)
            yield
            # It goes without a word: what is sent to it from now on is lost.
            _run("ip", "addr", "flush", "dev", self._here)
            _run(*self._inside, "ip", "addr", "flush", *there)
            _run(*self._inside, "ip", "link", "set", self._there, "down")
            with suppress(OSError):  # it has no other end, and wakes its reader all the same
                server.shutdown(socket.SHUT_RDWR)


def _serve_names(server: socket.socket, address: str) -> None:
    # Every name has this address, and none of IPv6 (RFC 1035, 4).
    while True:
        try:
            query, sender = server.recvfrom(512)
        except OSError:
            return
        if not query:
            return
        end = query.index(b"\0", 12) + 5
        is_a = query[end - 4 : end - 2] == b"\0\1"
        head = query[:2] + struct.pack("!5H", 0x8180, 1, is_a, 0, 0)
        answer = b"\xc0\x0c" + struct.pack("!2HIH", 1, 1, 0, 4) + socket.inet_aton(address)
        server.sendto(head + query[12:end] + (answer if is_a else b""), sender)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


@contextmanager
def _laptop(world: World) -> Iterator[tuple[int, Callable[[Network], None]]]:
    # Its namespaces, as a process in them, and what names its name server.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):  # this process plays this scenario alone
        raise OSError(ctypes.get_errno(), "unshare")
    _run("ip", "link", "set", "lo", "up")
    world.receiver_down()
    world.address = "0.0.0.0"  # of this namespace, in which nobody else is
    world.receiver_up()
    resolver = world.base / "resolv.conf"

    def resolve_by(network: Network) -> None:
        resolver.write_text(f"nameserver {network.gateway}\n", encoding="ascii")

    resolver.touch()
    program = os.path.realpath(shutil.which("sleep") or "sleep")
    with subprocess.Popen(["unshare", "--net", "--mount", program, "infinity"]) as process:
        try:
            world.until("its namespaces", lambda: _program(process.pid) == program)
            inside = ["nsenter", "-t", str(process.pid), "-n", "-m"]
            _run(*inside, "ip", "link", "set", "lo", "up")
            _run(*inside, "mount", "--bind", str(resolver), "/etc/resolv.conf")
            world.host.prefix = inside
            world.host.environ["PALIADIN_CALLBACK_URL"] = f"http://paliad.example.org:{world.port}/"
            world.host.environ["PALIADIN_CALLBACK_INSECURE"] = "1"
            yield process.pid, resolve_by
        finally:
            process.kill()


def _program(pid: int) -> str:
    return os.path.realpath(f"/proc/{pid}/exe")


@scenario(quick=True, needs=_NAMESPACES)
def laptop_networks(world: World) -> None:
    """Laptop: no network, then one, then another with another resolver, in an attempt too."""
    with _laptop(world) as (pid, resolve_by):
        first, second = Network(0, pid), Network(1, pid)
        resolve_by(first)
        world.host.start()
        with world.fault("no network"):
            world.write("--name", "none", "--count", "1", "--manner", "rename")
            pause_grows(world)
        joined = first.joined()
        joined.__enter__()
        soon(world, "none0")
        once(world, "moved0", Reply(503, how="hang"))
        world.write("--name", "moved", "--count", "1", "--manner", "rename")
        world.until("an attempt", lambda: world.of("moved0"))
        with world.fault("another network"):
            joined.__exit__(None, None, None)
            joined = second.joined()
            joined.__enter__()
            time.sleep(1)
            resolve_by(second)
        soon(world, "moved0")
        with world.fault("no network"):
            joined.__exit__(None, None, None)
            world.write("--name", "off", "--count", "10", "--manner", "rename")
            pause_grows(world)
            joined = first.joined()
            joined.__enter__()
            time.sleep(1)
            resolve_by(first)
        for n in range(10):
            soon(world, f"off{n}")
        world.delivered()
        world.until_settled()
        world.check(world.host.stop() == 0, "it did not end well")
        joined.__exit__(None, None, None)
    world.host.process = None
