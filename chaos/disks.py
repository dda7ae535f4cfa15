"""A disk that is full or fails, an outbox that is taken away."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from support.receiver import Reply

from chaos.load import MORE_MIB, peak_mib
from chaos.power import NEEDS, lossy, settled
from chaos.verdict import Fault, append
from chaos.world import MOUNTS, scenario
from paliadin_sidecar.outbox.database import FILENAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chaos.world import World

_COUNT = 20
#: What is wrong is said by then.
_SAID_S = 60.0
#: Bytes that an hour's waiting may put into the journal.
_MOST_SAID = 20_000
_STRACE = "strace -o /dev/null true"
_CC = "echo 'int one;' | cc -shared -fPIC -x c - -o /dev/null"
_LOOP = "command -v mkfs.ext4 && unshare --mount true && losetup --find"


def _says(world: World, command: str, words: str) -> bool:
    done = world.host.command(command)
    return words in done.stdout + done.stderr


def said(world: World, words: str) -> None:
    """See that `status`, `check` and the journal say this, within a minute."""
    since = time.monotonic()
    for command in ("status", "check"):
        world.until(f"{command} to say {words!r}", partial(_says, world, command, words))
    world.until(f"the journal to say {words!r}", lambda: words.encode() in world.host.output)
    took_s = time.monotonic() - since
    world.check(took_s < _SAID_S, f"{words!r} was said after {took_s:.0f} s")


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


@scenario(needs=MOUNTS)
def disk_full_for_an_hour(world: World) -> None:
    """Disk: the outbox's is full for an hour (twenty seconds in the short form), and turns come."""
    with mounted(world, "size=8m"):
        world.host.start()
        with world.fault("full"):
            fill(world)
            world.write("--name", "first", "--count", str(_COUNT), "--bytes", "30000")
            said(world, "no room")
            written, memory_mib = len(world.host.output), peak_mib(world)
            seconds = 20 if world.quick else 3600
            world.write("--count", str(seconds // 10), "--rate", "0.1", "--bytes", "30000")
            said(world, "no room")
            written = len(world.host.output) - written
            world.check(written < _MOST_SAID, f"it wrote {written:,} bytes while it waited")
            (world.host.state / "filler").unlink()
        world.delivered()
        world.until_settled()
        memory_mib = peak_mib(world) - memory_mib
        world.check(memory_mib < MORE_MIB, f"it grew by {memory_mib:.0f} MiB")
        world.check(world.host.stop() == 0, "it did not end well")
    world.host.process = None


@scenario(quick=True, needs=_CC)
def quota(world: World) -> None:
    """Disk: the quota of the daemon's user is used up, over a restart too, then raised."""
    library, used_up = world.base / "quota.so", world.base / "used-up"
    build = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-x", "c", "-"]
    source = Path(__file__).with_name("quota.c").read_bytes()
    subprocess.run([*build, "-o", str(library)], input=source, check=True)
    world.host.prefix = ["env", f"LD_PRELOAD={library}", f"QUOTA={used_up}"]
    world.behaviour = lambda _: Reply(503)
    world.host.start()
    world.write("--name", "before", "--count", str(_COUNT), "--manner", "rename")
    world.accepted(_COUNT)
    with world.fault("quota", 2):
        used_up.touch()
        world.behaviour = lambda _: Reply()
        world.write("--bytes", "30000", "--count", str(_COUNT), "--manner", "rename")
        said(world, "quota")
        world.host.kill()
        world.host.start(wait=False)
        world.host.wait_event("outbox.blocked", count=2)
        used_up.unlink()
    world.delivered()


@scenario(quick=True, needs=_LOOP)
def disk_turns_read_only(world: World) -> None:
    """Disk: ext4 turns read-only under the daemon, as after an error; then it is mounted again."""
    image, state = world.base / "disk", world.host.state
    state.mkdir(mode=0o700)
    with image.open("wb") as file:
        file.truncate(64 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mount = ["mount", "-o", "loop", str(image), str(state)]
    subprocess.run(mount, check=True)
    state.chmod(0o700)
    try:
        world.host.start()
        world.write("--name", "before", "--count", str(_COUNT), "--manner", "rename")
        world.delivered()
        world.until_settled()
        with world.fault("read-only"):
            subprocess.run(["mount", "-o", "remount,abort", str(state)], check=True)
            world.write("--count", str(_COUNT), "--manner", "rename")
            said(world, "read-only")
            world.host.kill()
            subprocess.run(["umount", str(state)], check=True)
            subprocess.run(["fsck.ext4", "-p", str(image)], check=False)
            subprocess.run(mount, check=True)
            world.host.start()
        world.delivered()
        world.until_settled()
        world.check(world.host.stop() == 0, "it did not end well")
        world.host.process = None
    finally:
        world.host.close()
        subprocess.run(["umount", "--lazy", str(state)], check=False)


@scenario(quick=True, needs=MOUNTS)
def state_on_overlay(world: World) -> None:
    """Disk: the state directory on an overlay, and SIGKILL again and again."""
    disk = world.base / "layers"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(disk)], check=True)
    layers = [disk / name for name in ("lower", "upper", "work")]
    for layer in layers:
        layer.mkdir()
    state = world.host.state
    state.mkdir(mode=0o700)
    options = "lowerdir={},upperdir={},workdir={}".format(*layers)
    subprocess.run(["mount", "-t", "overlay", "-o", options, "none", str(state)], check=True)
    try:
        state.chmod(0o700)
        for n in range(3 if world.quick else 20):
            world.host.start()
            world.write("--name", f"o{n}-", "--count", str(_COUNT), "--manner", "rename")
            world.kill()
        world.host.start()
        world.delivered()
        world.until_settled()
        world.check(world.host.stop() == 0, "it did not end well")
        world.host.process = None
    finally:
        world.host.close()
        subprocess.run(["umount", "--lazy", str(state)], check=False)
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


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


@scenario(quick=True, needs=NEEDS)
def disk_fails(world: World) -> None:
    """Disk: all that it is asked for fails with EIO, over a restart too, then nothing does."""
    with lossy(world) as disk:
        world.host.start()
        world.write("--name", "before", "--count", str(_COUNT), "--manner", "rename")
        world.delivered()
        world.until_settled()
        with world.fault("EIO", 2), disk.failing():
            world.write("--count", str(_COUNT), "--manner", "rename")
            world.died(b"its disk fails")
            said(world, "its disk fails")
            world.host.start(wait=False)
            world.check((code := world.host.wait()) == 1, f"it ended with {code}")
        world.check(b"begin anew" not in world.host.output, "it was called damaged")
        world.host.start()
        settled(world)


@scenario(needs=_STRACE)
def fsync_fails(world: World) -> None:
    """Disk: a thread's Nth fsync fails (injected by strace), N = 1, 2, 3 … until none is left."""
    nth_call_fails(world, "fsync,fdatasync")
    world.check(b"SQLITE_IOERR_FSYNC" in world.host.output, "no flush failed")


@scenario(needs=_STRACE)
def read_fails(world: World) -> None:
    """Disk: a thread's Nth read of the outbox fails (injected), N = 1, 2 … until all are well."""
    world.host.start()
    world.write("--name", "before", "--count", str(_COUNT), "--manner", "rename")
    world.delivered()
    world.kill()
    of_the_outbox = [f"--trace-path={world.host.state / FILENAME}{part}" for part in ("", "-wal")]
    nth_call_fails(world, "pread64", *of_the_outbox)
    world.check(b"its disk fails" in world.host.output, "no read failed")
    world.check(b"is damaged, or its" not in world.host.output, "it was called damaged")


def nth_call_fails(world: World, calls: str, *only: str) -> None:
    """Start it again and again, each Nth call failing, until five starts in a row are well."""
    number, passed = 1, 0
    while passed < 5:
        world.host.prefix = [
            "strace", "-D", "-f", "--seccomp-bpf", "-o", "/dev/null",
            *only, "-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO:when={number}",
        ]  # fmt: skip
        began, starts = time.monotonic(), len(world.host.events("service.started"))
        world.host.start(wait=False)
        # Some fail before it takes in anything; then each turn gets a flush of its own.
        world.until("a start", partial(begun, world, starts))
        world.write("--name", f"n{number}-", "--count", "10", "--manner", "rename", "--rate", "20")
        code = ending(world, f"n{number}-9")
        world.check(code in {0, 1, -signal.SIGTERM}, f"it ended with {code}")
        if code == 1:
            append(world.faults, Fault(calls, began, time.monotonic()))
        passed = 0 if code == 1 else passed + 1
        number += 5 if world.quick else 1
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
