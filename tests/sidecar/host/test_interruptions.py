from __future__ import annotations

import errno
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import anyio
import pytest
from support.needs import lacks, need
from support.waiting import PATIENCE_S

from paliadin_sidecar.host import interruptions
from paliadin_sidecar.host.interruptions import (
    NetworkChanges,
    SleepDetector,
    next_gather_s,
    watch_interruptions,
)

if TYPE_CHECKING:
    from pathlib import Path

#: Sources: linux/rtnetlink.h, linux/if.h.
NEWLINK, NEWADDR, DELADDR = 16, 20, 21
GLOBAL, LINK = 0, 253
RUNNING, STOPPED = 0x40, 0


class Clocks:
    """Three that a test moves."""

    def __init__(self) -> None:
        self.monotonic = self.boot = self.wall = 1000.0
        self.detector = SleepDetector(lambda: self.monotonic, lambda: self.boot, lambda: self.wall)

    def look(self, *, awake: float = 2.0, asleep: float = 0.0, set_s: float = 0.0) -> float | None:
        self.monotonic += awake
        self.boot += awake + asleep
        self.wall += awake + asleep + set_s
        return self.detector.look(2.0)


def test_time_that_passed_as_it_should() -> None:
    """A look that comes a little late is no gap, and neither is a date that was set back."""
    clocks = Clocks()
    assert clocks.look() is None
    assert clocks.look(awake=4.0) is None
    assert clocks.look(set_s=-3600.0) is None


def test_a_night() -> None:
    """What it slept is counted once."""
    clocks = Clocks()
    assert clocks.look(asleep=28_800.0) == 28_800.0
    assert clocks.look() is None


@pytest.mark.parametrize("gap", [{"awake": 60.0}, {"set_s": 60.0}])
def test_a_gap_without_sleep(gap: dict[str, float]) -> None:
    """The process was stopped, or the date set forward: a hint, and nothing that is counted."""
    assert Clocks().look(**gap) == 0.0


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def address(kind: int, scope: int) -> bytes:
    return message(kind, struct.pack("=BBBBi", 2, 24, 0, scope, 7))


def link(index: int, flags: int) -> bytes:
    return message(NEWLINK, struct.pack("=BxHiII", 0, 1, index, flags, 0))


def test_addresses() -> None:
    """One that comes or goes is another network, where it reaches beyond its link."""
    changes = NetworkChanges()
    assert changes.matter(address(NEWADDR, GLOBAL))
    assert changes.matter(address(DELADDR, GLOBAL))
    assert not changes.matter(address(NEWADDR, LINK))
    assert changes.matter(address(NEWADDR, LINK) + address(NEWADDR, GLOBAL))


def test_links() -> None:
    """A cable that is plugged in again is one as well; a link that runs and goes on is none."""
    changes = NetworkChanges()
    assert not changes.matter(link(1, RUNNING))
    assert not changes.matter(link(1, STOPPED))
    assert not changes.matter(link(2, RUNNING))
    assert changes.matter(link(1, RUNNING))
    assert changes.matter(address(NEWADDR, GLOBAL) + link(1, STOPPED))
    assert changes.matter(link(1, RUNNING))


@pytest.mark.parametrize(
    "datagram", [b"", b"x", message(NEWADDR, b""), message(NEWLINK, b"x"), struct.pack("=I", 0) * 4]
)
def test_what_is_no_message(datagram: bytes) -> None:
    """It is left out."""
    assert not NetworkChanges().matter(datagram)


def test_changes_that_go_on() -> None:
    """What takes a second to connect has it between two; one that is alone is reported soon."""
    gathered_s = [0.5]
    for passed_s in (0.5, 1.0, 2.0, 5.0, 4.0, 10.0):
        gathered_s.append(next_gather_s(gathered_s[-1], passed_s))
    assert gathered_s == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 0.5]


@pytest.mark.anyio
async def test_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system grants no such socket, the clocks are looked at all the same."""
    monkeypatch.setattr("socket.AF_NETLINK", -1)
    reported: list[float] = []
    with anyio.move_on_after(0.05):
        await watch_interruptions(0.01, [reported.append])
    assert reported == []


def test_what_overflowed() -> None:
    """After an overflow it reads on; any other failure ends the watch, or it would never end."""
    kernel = Kernel(OSError(errno.ENOBUFS, ""), b"reported", BlockingIOError())
    assert list(interruptions._received(kernel)) == [b"reported"]
    broken = Kernel(OSError(errno.EBADF, ""))
    with pytest.raises(OSError, match="Errno"):
        list(interruptions._received(broken))


class Kernel(socket.socket):
    """Answers one after another."""

    def __init__(self, *answers: bytes | OSError) -> None:
        super().__init__(socket.AF_UNIX)
        self.close()
        self._answers = iter(answers)

    def recv(self, _size: int, _flags: int = 0) -> bytes:
        answer = next(self._answers)
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.mark.anyio
async def test_another_name_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is asking the old one need not wait until that has not answered."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\n")
    monkeypatch.setattr(interruptions, "_NAME_SERVERS", path)
    reported = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_interruptions, 0.01, [lambda _: reported.set()])
        await anyio.wait_all_tasks_blocked()
        path.write_text("nameserver 198.51.100.1\n")
        with anyio.fail_after(PATIENCE_S):
            await reported.wait()
        tasks.cancel_scope.cancel()


CHILD = """
import subprocess, anyio
from paliadin_sidecar.host import interruptions
from paliadin_sidecar.host.interruptions import watch_interruptions

async def main():
    async with anyio.create_task_group() as tasks:
        reported = anyio.Event()
        tasks.start_soon(watch_interruptions, 60.0, [lambda slept_s: reported.set()])
        await anyio.sleep(0)
        await anyio.wait_all_tasks_blocked()
        for command in (
            "link add one type veth peer name two",
            "link set one up",
            "link set two up",
            "addr add 192.0.2.1/24 dev one",
        ):
            await anyio.run_process(["ip", *command.split()])
        with anyio.fail_after(30):
            await reported.wait()
        tasks.cancel_scope.cancel()

anyio.run(main)
"""


def test_a_network_that_comes() -> None:
    """The kernel reports it; in a namespace of its own, since this machine's stays as it is."""
    need("ip", "unshare")
    inside = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run(
        [*inside, "ip", "link", "add", "one", "type", "veth"], check=False
    ).returncode:
        lacks("no namespace of a network", "sysctl kernel.unprivileged_userns_clone=1, or as root")
    subprocess.run([*inside, sys.executable, "-c", CHILD], check=True)
