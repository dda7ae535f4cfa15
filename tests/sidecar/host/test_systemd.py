"""What is sent to systemd, over a real datagram socket, by the module and by the daemon."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sqlite3
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, TypeVar

import anyio
import pytest
from support.manager import Manager
from support.waiting import until

from paliadin_sidecar.host.systemd import Notify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.receiver import Receiver
    from support.sidecar import Sidecar

T = TypeVar("T")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = f"{tmp_path}/notify" if request.param == "path" else f"@{secrets.token_hex(8)}"
    with Manager(address) as listening:
        yield listening


@pytest.mark.anyio
async def test_all_assignments_come_in_one_message(manager: Manager) -> None:
    """They arrive, in order, at a socket with a path and at an abstract one."""
    await Notify({"NOTIFY_SOCKET": manager.address})("READY=1", "STATUS=3 pending, ümläut")
    manager.wait("STATUS=3 pending, ümläut")
    assert manager.heard == ["READY=1", "STATUS=3 pending, ümläut"]


@pytest.mark.anyio
async def test_without_a_manager_nothing_is_done() -> None:
    """No variable: nobody listens, and no watchdog is fed."""
    notify = Notify({"WATCHDOG_USEC": "1000000"})
    assert notify.watchdog_s is None
    await notify("READY=1")
    notify.show("outbox: full")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "address", ["/nowhere/notify", "@nobody", "x" * 200, "/a\0b", "relative", "@"]
)
async def test_a_socket_that_cannot_be_reached_harms_nothing(address: str) -> None:
    """Gone, too long, malformed: the daemon does not care."""
    notify = Notify({"NOTIFY_SOCKET": address})
    await notify("READY=1")
    notify.show("outbox: full")


@pytest.mark.anyio
async def test_a_manager_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    """Its queue is full: what does not fit is let go, after a moment."""
    path = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.settimeout(0)
            _until_blocked(lambda: filler.sendto(b"x", path))
        notify = Notify({"NOTIFY_SOCKET": path})
        await notify("READY=1")
        notify.show("outbox: full")
        deaf.settimeout(0)
        assert set(_until_blocked(lambda: deaf.recv(100))) == {b"x"}


@pytest.mark.anyio
async def test_a_manager_that_is_behind_gets_it_all_the_same(tmp_path: Path) -> None:
    """Its queue is full for a moment: what it must know is sent when there is room."""
    path = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as behind:
        behind.bind(path)
        behind.settimeout(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.settimeout(0)
            _until_blocked(lambda: filler.sendto(b"x", path))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Notify({"NOTIFY_SOCKET": path}), "READY=1")
            await anyio.wait_all_tasks_blocked()
            assert set(_until_blocked(lambda: behind.recv(100))) == {b"x"}
        assert _until_blocked(lambda: behind.recv(100)) == [b"READY=1"]


def _until_blocked(call: Callable[[], T]) -> list[T]:
    results = []
    with suppress(BlockingIOError):
        while True:
            results.append(call())
    return results


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_a_watchdog_counts_if_it_looks_at_this_process(
    said: dict[str, str], expected: float | None
) -> None:
    """A number of microseconds, and our own process or none named."""
    assert Notify({"NOTIFY_SOCKET": "@x", **said}).watchdog_s == expected


# --- the daemon -------------------------------------------------------------------------------


@pytest.fixture
def watched(host: Sidecar, tmp_path: Path) -> Iterator[Manager]:
    """A manager that asks the host's daemon for a sign of life each 0.6 s."""
    with Manager(f"{tmp_path}/notify") as listening:
        host.environ |= {"NOTIFY_SOCKET": listening.address, "WATCHDOG_USEC": "600000"}
        yield listening


def test_ready_is_said_after_the_first_scan_and_stopping_at_the_end(
    host: Sidecar, watched: Manager, receiver: Receiver
) -> None:
    """What was there is accepted before it is ready; each is said once."""
    host.answer("t1")
    host.start(wait=False)
    watched.wait("READY=1")
    with closing(sqlite3.connect(host.state / "outbox.db")) as outbox:
        assert outbox.execute("SELECT count(*) FROM delivery").fetchone() == (1,)
    receiver.wait("t1")
    assert host.stop() == 0
    watched.wait("STOPPING=1")
    assert watched.count("READY=1") == watched.count("STOPPING=1") == 1


def test_the_status_is_what_is_wrong(host: Sidecar, watched: Manager, receiver: Receiver) -> None:
    """It comes and goes with its reason. Turns that go their way say nothing, and cost nothing."""
    host.start()
    host.answer("t1")
    host.wait_event("delivery.delivered", turn_id="t1")
    watched.wait("WATCHDOG=1", watched.count("WATCHDOG=1") + 2)
    assert not [line for line in watched.heard if line.startswith("STATUS=")]
    with closing(sqlite3.connect(host.state / "outbox.db", isolation_level=None)) as outbox:
        outbox.execute("BEGIN EXCLUSIVE")
        host.answer("t2")
        busy = "STATUS=outbox: another process holds its lock"
        until(busy, lambda: any(line.startswith(busy) for line in watched.heard))
    watched.wait("STATUS=")


def test_a_receiver_that_is_down_is_no_reason_to_starve_the_watchdog(
    host: Sidecar, watched: Manager
) -> None:
    """It is fed while turns wait and scans and the scheduler move."""
    host.environ["PALIADIN_CALLBACK_URL"] = "http://127.0.0.1:1/callback"
    host.start()
    host.answer("t1")
    host.wait_event("delivery.retry_scheduled", turn_id="t1")
    watched.wait("WATCHDOG=1", watched.count("WATCHDOG=1") + 3)


def test_an_outbox_that_must_wait_is_no_reason_to_starve_the_watchdog(
    host: Sidecar, watched: Manager
) -> None:
    """Both loops wait for another process's lock, as they would for a full disk: still fed."""
    host.start()
    with closing(sqlite3.connect(host.state / "outbox.db", isolation_level=None)) as outbox:
        outbox.execute("BEGIN EXCLUSIVE")
        host.answer("t1")
        host.wait_event("outbox.blocked")
        watched.wait("WATCHDOG=1", watched.count("WATCHDOG=1") + 2)


def test_a_stopped_process_gives_no_sign_of_life(host: Sidecar, watched: Manager) -> None:
    """SIGSTOP silences it; what continues is fed again."""
    host.start()
    watched.wait("WATCHDOG=1")
    assert host.process is not None
    host.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, host.process.pid, os.WSTOPPED | os.WNOWAIT)
    fed = watched.count("WATCHDOG=1")
    with pytest.raises(AssertionError, match="waited"):
        until("a sign of life", lambda: watched.count("WATCHDOG=1") > fed + 1, patience_s=1.5)
    host.process.send_signal(signal.SIGCONT)
    watched.wait("WATCHDOG=1", fed + 3)


#: Starts the daemon with one function that hangs as soon as a file of that name is there.
_HANGING = """
import asyncio, sys
from pathlib import Path
from paliadin_sidecar.operator import cli
from paliadin_sidecar.delivery.dispatcher import Dispatcher
from paliadin_sidecar.intake.loop import RootIntake
scan, fill = RootIntake._scan, Dispatcher._fill
async def hanging_scan(*args, **kwargs):
    while Path(sys.argv[1], "scan").exists():
        await asyncio.sleep(0.05)
    return await scan(*args, **kwargs)
def hanging_fill(self):
    if Path(sys.argv[1], "dispatch").exists():
        asyncio.get_running_loop().call_later(0.05, self._fill)
    else:
        fill(self)
RootIntake._scan, Dispatcher._fill = hanging_scan, hanging_fill
cli.main(["run"])
"""


@pytest.mark.parametrize("loop", ["scan", "dispatch"])
def test_a_loop_that_hangs_starves_the_watchdog_though_the_rest_moves(
    host: Sidecar,
    watched: Manager,
    tmp_path: Path,
    loop: str,
) -> None:
    """Either alone is enough, and both must move to feed it again."""
    program = tmp_path / "hanging"
    program.write_text(f"import sys\nsys.argv[1] = {str(tmp_path)!r}{_HANGING}")
    host.prefix = [sys.executable, str(program)]
    host.start()
    watched.wait("WATCHDOG=1")
    (tmp_path / loop).touch()
    # One may be on its way when the loop begins to hang, no more.
    fed = watched.count("WATCHDOG=1")
    with pytest.raises(AssertionError, match="waited"):
        until("a sign of life", lambda: watched.count("WATCHDOG=1") > fed + 1, patience_s=1.5)
    (tmp_path / loop).unlink()
    watched.wait("WATCHDOG=1", fed + 3)
