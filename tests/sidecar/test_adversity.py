"""A full disk, a log that takes nothing, few descriptors: turns go on or wait, none is lost."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import threading
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.noise import noise
from support.receiver import Receiver, Reply, Request
from support.sidecar import COMMAND, TRAILER, Sidecar
from support.slow import slow
from support.users import root_only
from support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "none", str(path)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(fd, b"x" * 65536):
            pass
    except OSError:
        pass
    finally:
        os.close(fd)


@root_only
def test_a_full_disk_is_waited_for_and_said_once(host: Sidecar, receiver: Receiver) -> None:
    """Intake waits, nothing is lost, and what waits goes on when there is room."""
    with small_disk(host.state):
        host.start()
        host.answer("t0")
        receiver.wait("t0")
        host.wait_event("delivery.delivered", turn_id="t0")
        fill(host.state / "filler")
        for n in range(1, 40):
            host.answer(f"t{n}", noise(20_000))
        host.wait_event("outbox.blocked")
        (host.state / "filler").unlink()
        for n in range(1, 40):
            host.wait_event("delivery.delivered", turn_id=f"t{n}")
        assert len(host.events("outbox.blocked")) == 1
        assert host.stop() == 0


@root_only
def test_a_full_disk_does_not_hold_the_end(host: Sidecar, receiver: Receiver) -> None:
    """SIGTERM ends it with 0; what it could not keep is in the root for the next start."""
    with small_disk(host.state):
        host.start()
        fill(host.state / "filler")
        for n in range(40):
            host.answer(f"t{n}", noise(20_000))
        host.wait_event("outbox.blocked")
        assert host.stop() == 0
        (host.state / "filler").unlink()
        host.start()
        for n in range(40):
            receiver.wait(f"t{n}")
        assert host.stop() == 0


@root_only
@pytest.mark.parametrize(
    "options", ["size=64k", slow("size=8m,nr_inodes=2"), slow("size=8m,nr_inodes=4")]
)
def test_a_start_without_room_waits_for_it(host: Sidecar, receiver: Receiver, options: str) -> None:
    """No inode or no block for the first outbox: no exit, one line, and on it goes."""
    host.state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"{options},mode=0700", "none", str(host.state)]
    subprocess.run(mount, check=True)
    try:
        (host.state / "filler").touch()
        fill(host.state / "filler")
        host.answer("t0")
        host.start(wait=False)
        why = host.wait_event("outbox.blocked")["why"]
        assert ("inodes" in why) == ("inodes" in options)
        status = host.typed("status")
        assert "--quarantine" not in status.stdout + status.stderr
        (host.state / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=0", str(host.state)], check=True)
        receiver.wait("t0")
        assert len(host.events("outbox.blocked")) <= 2
        assert host.stop() == 0
    finally:
        host.close()
        subprocess.run(["umount", "--lazy", str(host.state)], check=True)


def test_a_limit_of_the_file_size_is_waited_for(host: Sidecar, receiver: Receiver) -> None:
    """It is lack of room: intake waits, delivery goes on, and nothing is called damage."""
    host.start()
    assert host.process is not None
    unlimited = resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, (400_000, unlimited[1]))
    host.answer("t0", noise(500_000))
    assert "LimitFSIZE=" in host.wait_event("outbox.blocked")["why"]
    resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, unlimited)
    receiver.wait("t0")
    assert host.stop() == 0


@pytest.mark.slow
def test_what_is_undelivered_fills_the_budget_and_no_more(
    host: Sidecar, receiver: Receiver
) -> None:
    """New answers wait in their directories, `status` says why, and all arrive in the end."""
    receiver.behaviour = lambda _: Reply(503)
    host.environ["PALIADIN_MAX_OUTBOX"] = "1048576"
    host.start()
    for n in range(12):
        host.answer(f"t{n}", noise(100_000))
    host.wait_event("outbox.blocked")
    status = host.typed("status")
    assert status.returncode == 1
    assert "PALIADIN_MAX_OUTBOX=1048576" in status.stdout
    outbox = host.state / "outbox.db"
    with closing(sqlite3.connect(outbox)) as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
    assert pages * 4096 < 2 * 1048576
    receiver.behaviour = lambda _: Reply()
    for n in range(12):
        host.wait_event("delivery.delivered", turn_id=f"t{n}")
    assert len(host.events("outbox.blocked")) == 1
    until("a good status", lambda: "PALIADIN_MAX_OUTBOX" not in host.typed("status").stdout)
    assert host.stop() == 0


@pytest.mark.slow
def test_a_sparse_file_costs_here_what_it_costs_there(host: Sidecar, receiver: Receiver) -> None:
    """4 MiB of NUL take 4 KiB of the agent's disk, and not 24 MiB of the outbox's."""
    receiver.behaviour = lambda _: Reply(503)
    host.start()
    before = sum(file.stat().st_size for file in host.state.iterdir())
    for n in range(6):
        with (host.aichat / f"t{n}.txt").open("wb") as file:
            file.truncate(4 * 1024 * 1024 - 200)
            file.seek(0, os.SEEK_END)
            file.write(f"{n}{TRAILER}".encode())
    for n in range(6):
        host.wait_event("turn.accepted", turn_id=f"t{n}")
    host.wait_event("delivery.retry_scheduled")
    assert sum(file.stat().st_size for file in host.state.iterdir()) - before < 1_000_000
    assert host.process is not None
    peak = Path(f"/proc/{host.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    assert int(peak) < 250_000  # kB; without a bound, the bodies alone took 144 MiB, several times
    assert host.stop() == 0


def test_a_log_that_takes_nothing_costs_no_turn(host: Sidecar, receiver: Receiver) -> None:
    """With stdout on a full disk, or closed, answers still arrive."""
    for n, redirect in enumerate((">/dev/full", ">&-")):
        process = subprocess.Popen(
            ["sh", "-c", f'exec "$0" run {redirect}', COMMAND],
            env=host.environ,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            host.answer(f"t{n}")
            receiver.wait(f"t{n}")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) in {0, 120}  # 120: the interpreter could not flush stdout
        finally:
            process.kill()
            process.wait()


def test_few_descriptors_delay_and_lose_nothing(host: Sidecar, receiver: Receiver) -> None:
    """With a limit of 64 and 100 files held open by their writers, whole ones still pass."""
    code = f'ulimit -Sn 64; ulimit -Hn 64; exec "{COMMAND}" run'
    process = subprocess.Popen(
        ["sh", "-c", code], env=host.environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    held = [(host.aichat / f"held{n}.txt").open("w") for n in range(100)]
    try:
        for n in range(20):
            host.answer(f"t{n}")
        for n in range(20):
            receiver.wait(f"t{n}")
        for file in held:
            file.write("zu Ende")
            file.close()
        until("the held ones", lambda: len(receiver.turns) >= 120)
    finally:
        for file in held:
            file.close()
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("at_its_start", [False, True])
def test_another_s_lock_on_the_outbox_is_waited_for(
    host: Sidecar,
    receiver: Receiver,
    at_its_start: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    """A process that holds the database for long delays turns and ends nothing."""
    holder = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "db.execute('BEGIN IMMEDIATE'); print(flush=True); sys.stdin.read()"
    )
    host.start()
    if at_its_start:
        host.stop()
    with subprocess.Popen(
        [COMMAND.replace("paliadin-sidecar", "python"), "-c", holder, host.state / "outbox.db"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        if at_its_start:
            host.start(wait=False)
        host.answer("t1")
        assert "lock" in host.wait_event("outbox.blocked")["why"]
        process.communicate()
    receiver.wait("t1")
    assert host.stop() == 0


def test_a_log_of_the_database_that_is_removed_stops_the_daemon(
    host: Sidecar, receiver: Receiver
) -> None:
    """What it commits would be found by nobody; nothing that is in the roots is lost."""
    host.start()
    host.answer("t0")
    host.wait_event("delivery.delivered", turn_id="t0")
    (host.state / "outbox.db-wal").unlink()
    host.answer("t1")
    assert host.wait() == 1
    host.start()
    receiver.wait("t1")


# --- floods ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_flood_of_whole_answers(host: Sidecar, receiver: Receiver) -> None:
    """Beside a receiver that is slow it holds neither another root's answer nor a new one."""
    go_on = threading.Event()

    def slow(_: Request) -> Reply:
        go_on.wait()
        return Reply()

    receiver.behaviour = slow
    host.environ["PALIADIN_CALLBACK_TIMEOUT_S"] = "60"
    for n in range(300):
        host.answer(f"flood{n}")
    with ExitStack() as stack:
        stack.callback(go_on.set)
        host.start()
        host.wait_event("turn.accepted", count=300)
        host.answer("other", root=host.legacy)
        host.answer("own")
        for turn_id in ("other", "own"):
            host.wait_event("turn.accepted", turn_id=turn_id)
    for turn_id in ("other", "own"):
        receiver.wait(turn_id)
    came = [request.json["data"]["turn_id"] for request in receiver.turns]
    # Eight are under way, and some eight go out as these are answered.
    assert came.index("other") < 16
    assert came.index("own") < 24
    host.wait_event("delivery.delivered", count=302)
