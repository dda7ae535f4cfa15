"""A disk that is full or fails, an outbox that is taken away."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from support.receiver import Reply

from chaos.verdict import Fault, append
from chaos.world import MOUNTS, scenario
from paliadin_sidecar.outbox.database import FILENAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chaos.world import World

_COUNT = 20


@contextmanager
def mounted(world: World, options: str) -> Iterator[None]:
    """A tmpfs for the state directory; what was there before is hidden meanwhile."""
    state = world.host.state
    state.mkdir(mode=0o700, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "none", str(state)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        world.host.close()
        subprocess.run(["umount", "--lazy", str(state)], check=True)


def fill(world: World) -> None:
    """Take all the room there is."""
    fd = os.open(world.host.state / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(fd, b"x" * 65536):
            pass
    except OSError:
        pass
    finally:
        os.close(fd)


@scenario(quick=True, needs=MOUNTS)
def disk_full(world: World) -> None:
    """Disk: the outbox's is full, over a restart too, then there is room again."""
    with mounted(world, "size=8m"):
        world.behaviour = lambda _: Reply(503)
        world.host.start()
        world.write("--name", "before", "--count", str(_COUNT), "--manner", "rename")
        world.accepted(_COUNT)
        with world.fault("full", 2):
            fill(world)
            world.behaviour = lambda _: Reply()
            world.write("--bytes", "30000", "--count", str(_COUNT), "--manner", "rename")
            world.host.wait_event("outbox.blocked")
            world.host.kill()
            world.host.start(wait=False)
            world.host.wait_event("outbox.blocked", count=2)
            (world.host.state / "filler").unlink()
        world.delivered()
        world.until_settled()
        world.check(world.host.stop() == 0, "it did not end well")
    world.host.process = None


def outbox_is_lost(world: World, lose: Callable[[], object]) -> None:
    """Turns are undelivered, and their files are there, when this happens to the outbox."""
    world.behaviour = lambda _: Reply(503)
    world.host.start()
    world.write("--count", str(_COUNT))
    world.accepted(_COUNT)
    with world.fault("the outbox is lost"):
        lose()
        world.write("--name", "after", "--count", str(_COUNT))
        world.died(b"was removed, replaced or truncated")
        world.behaviour = lambda _: Reply()
        world.host.start("--quarantine")
    world.delivered()
    world.check(not world.host.events("turn.history"), "an answer became history")


@scenario(quick=True)
def outbox_deleted(world: World) -> None:
    """Disk: the outbox deleted while running; the files are still there."""
    path = world.host.state / FILENAME
    outbox_is_lost(world, path.unlink)


@scenario()
def outbox_truncated(world: World) -> None:
    """Disk: the outbox truncated while running; the files are still there."""
    outbox_is_lost(world, lambda: os.truncate(world.host.state / FILENAME, 0))


@scenario(quick=True)
def outbox_quarantined(world: World) -> None:
    """Disk: the outbox quarantined with undelivered turns and some that were delivered."""
    world.host.start()
    world.write("--name", "before", "--count", str(_COUNT))
    world.delivered()
    world.until_settled()
    with world.fault("quarantined, nobody listens", 2):
        world.receiver_down()
        world.write("--count", str(_COUNT))
        world.accepted(2 * _COUNT)
        world.check(world.host.stop() == 0, "it did not end well")
        world.host.start("--quarantine")
        world.receiver_up()
    world.delivered()


@scenario(needs=MOUNTS)
def state_directory_read_only(world: World) -> None:
    """Disk: the state directory read-only at the start, then mended."""
    world.host.start()
    world.write("--name", "before", "--count", str(_COUNT))
    world.delivered()
    world.until_settled()
    world.kill()
    state = str(world.host.state)
    with world.fault("read-only"):
        subprocess.run(["mount", "--bind", state, state], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", state], check=True)
        try:
            world.write("--count", str(_COUNT))
            world.host.start(wait=False)
            code = world.host.wait()
            world.check(code in {1, 78}, f"it ended with {code}")
        finally:
            subprocess.run(["umount", state], check=True)
        world.host.start()


@scenario(needs="strace -o /dev/null true")
def fsync_fails(world: World) -> None:
    """Disk: a thread's Nth fsync fails (injected by strace), N = 1, 2, 3 … until none is left."""
    number, passed = 1, 0
    while passed < 5:
        world.host.prefix = [
            "strace", "-D", "-f", "--seccomp-bpf", "-o", "/dev/null",
            "-e", "trace=fsync,fdatasync", "-e", f"inject=fsync,fdatasync:error=EIO:when={number}",
        ]  # fmt: skip
        began, starts = time.monotonic(), len(world.host.events("service.started"))
        world.host.start(wait=False)
        # Some fail before it takes in anything; then each turn gets a flush of its own.
        world.until("a start", partial(begun, world, starts))
        world.write("--name", f"n{number}-", "--count", "10", "--manner", "rename", "--rate", "20")
        code = ending(world, f"n{number}-9")
        world.check(code in {0, 1, -signal.SIGTERM}, f"it ended with {code}")
        if code == 1:
            append(world.faults, Fault("fsync", began, time.monotonic()))
        passed = 0 if code == 1 else passed + 1
        number += 5 if world.quick else 1
    world.check(b"SQLITE_IOERR_FSYNC" in world.host.output, "no flush failed")
    world.host.prefix = []
    world.host.start()


def begun(world: World, starts: int) -> bool:
    """Whether it has started once more, or ended."""
    assert world.host.process is not None
    started = len(world.host.events("service.started")) > starts
    return started or world.host.process.poll() is not None


def ending(world: World, last: str) -> int:
    """The exit code, by itself or once this turn has come."""
    process = world.host.process
    assert process is not None
    world.until("an end", lambda: process.poll() is not None or world.of(last))
    if process.poll() is None:
        process.terminate()
    return world.host.wait()
