"""A disk that takes long to flush.

A flush is held inside the daemon's own call of `fdatasync` or `fsync`, by a library that is
built by `cc` and loaded before libc's (`slow_flush.c`). So it needs neither root nor a kernel's
leave, and it can begin and end while the daemon runs.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from support.manager import Manager
from support.receiver import Reply

from chaos.disks import said
from chaos.world import scenario

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaos.world import World

_SOURCE = Path(__file__).with_name("slow_flush.c")
_BUILD = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-x", "c", "-"]
_CC = "echo 'int one;' | cc -shared -fPIC -x c - -o /dev/null"
_FOR_EVER_MS = 10**9
_RATE = 20  #: turns a second of each writer


class SlowDisk:
    """The disk of a world's daemon, from its next start on.

    Args:
        world: whose daemon.
        takes_ms: how long each flush takes at first.
    """

    def __init__(self, world: World, takes_ms: int = 0) -> None:
        library = world.base / "slow_flush.so"
        subprocess.run([*_BUILD, "-o", str(library)], input=_SOURCE.read_bytes(), check=True)
        self._control = world.base / "flush-ms"
        self._held = world.base / "flush-ms.held"
        self.takes(takes_ms)
        world.host.prefix = ["env", f"LD_PRELOAD={library}", f"SLOW_FLUSH={self._control}"]

    def takes(self, ms: int) -> None:
        """Each flush takes so long from now on; one that has taken as long ends."""
        new = self._control.with_suffix(".new")
        new.write_text(str(ms), encoding="ascii")
        new.rename(self._control)

    @property
    def held(self) -> int:
        """How many flushes were held so far."""
        return self._log().count(b"b")

    @property
    def is_holding(self) -> bool:
        """Whether a flush is held now."""
        log = self._log()
        return log.count(b"b") > log.count(b"e")

    def _log(self) -> bytes:
        return self._held.read_bytes() if self._held.exists() else b""


def slow_to_answer(world: World) -> None:
    """Let each answer take 0.1 s, so that some attempts are under way at every moment."""
    world.behaviour = lambda _: Reply(delay_s=0.1)


def sent_again(world: World) -> int:
    """How many requests brought what the receiver had stored already."""
    stored = [one.id for one in world.arrived if one.stored and one.turn]
    return len(stored) - len(set(stored))


@contextmanager
def load(world: World) -> Iterator[None]:
    """Two writers are at work in the block."""
    roots = (world.host.aichat, world.host.legacy)
    writers = [world.start_writer("--rate", str(_RATE), root=root) for root in roots]
    yield
    for writer in writers:
        writer.terminate()
    for writer in writers:
        writer.wait()


@scenario(quick=True, needs=_CC)
def flush_takes_long(world: World) -> None:
    """Disk: each flush takes 100 ms, under load; nothing is sent twice."""
    disk = SlowDisk(world, 100)
    slow_to_answer(world)
    world.host.start()
    with world.fault("each flush takes 100 ms"), load(world):
        time.sleep(5 if world.quick else 60)
    world.delivered()
    world.until_settled()
    world.check(disk.held, "no flush was held")
    world.check(not sent_again(world), f"{sent_again(world)} answered attempts were made again")


@scenario(needs=_CC)
def flush_takes_ten_seconds(world: World) -> None:
    """Disk: each flush takes 10 s, under load; it is said, and nothing is sent twice."""
    disk = SlowDisk(world)
    slow_to_answer(world)
    world.host.start()
    with load(world), world.fault("each flush takes 10 s"):
        disk.takes(10_000)
        said(world, "needs more than")
        disk.takes(0)
    world.delivered()
    world.until_settled()
    world.check(not sent_again(world), f"{sent_again(world)} answered attempts were made again")


@scenario(quick=True, needs=_CC)
def flush_hangs_for_a_minute(world: World) -> None:
    """Disk: a flush hangs for a minute (3 s in the short form); nothing is sent twice."""
    # An attempt that is under way when it begins is answered while nobody can look, and its
    # time limit passes as well.
    seconds = 3 if world.quick else 60
    if world.quick:
        world.host.environ["PALIADIN_CALLBACK_TIMEOUT_S"] = "1"
    disk = SlowDisk(world)
    slow_to_answer(world)
    world.host.start()
    with load(world):
        with hanging(world, disk):
            since = time.monotonic()
            if not world.quick:
                said(world, "needs more than")
            time.sleep(max(0.0, since + seconds - time.monotonic()))
        came = len(world.arrived)
        world.until("more to have come", lambda: len(world.arrived) > came + _RATE)
    world.delivered()
    world.until_settled()
    world.check(not sent_again(world), f"{sent_again(world)} answered attempts were made again")


@scenario(quick=True, needs=_CC)
def flush_hangs_at_sigterm(world: World) -> None:
    """Disk: SIGTERM while a flush hangs; the daemon ends well once it is over."""
    disk = SlowDisk(world)
    slow_to_answer(world)
    world.host.start()
    with load(world):
        with hanging(world, disk):
            assert world.host.process is not None
            world.host.process.terminate()
            time.sleep(1 if world.quick else 5)
        world.check((code := world.host.wait()) == 0, f"it ended with {code}")
    world.host.start()
    world.delivered()
    world.check(not sent_again(world), f"{sent_again(world)} answered attempts were made again")


@scenario(quick=True, needs=_CC)
def flush_hangs_for_ever(world: World) -> None:
    """Disk: a flush hangs for ever; the watchdog is not fed, and ends the daemon."""
    disk = SlowDisk(world)
    slow_to_answer(world)
    watchdog_s = 2.0 if world.quick else 10.0
    with Manager(str(world.base / "notify")) as manager:
        world.host.environ["NOTIFY_SOCKET"] = manager.address
        world.host.environ["WATCHDOG_USEC"] = f"{watchdog_s * 1e6:.0f}"
        for _ in range(2):
            world.host.start()
            with load(world), hanging(world, disk):
                starve(world, manager, watchdog_s)
                world.host.kill()
        world.host.start()
        world.delivered()
        world.until_settled()
        world.check(world.host.stop() == 0, "it did not end well")
    world.host.process = None


@contextmanager
def hanging(world: World, disk: SlowDisk) -> Iterator[None]:
    """A flush hangs while the block runs; it begins once so many more requests have come."""
    came = len(world.arrived)
    world.until("some to have come", lambda: len(world.arrived) > came + _RATE)
    with world.fault("a flush hangs"):
        disk.takes(_FOR_EVER_MS)
        world.until("a flush to hang", lambda: disk.is_holding)
        yield
        disk.takes(0)


def starve(world: World, manager: Manager, watchdog_s: float) -> None:
    """As systemd does: wait until the watchdog was not fed for as long as it may be."""
    fed, since = -1, time.monotonic()
    end = since + 10 * watchdog_s
    while (now := time.monotonic()) < since + watchdog_s and now < end:
        if (count := manager.count("WATCHDOG=1")) != fed:
            fed, since = count, now
        time.sleep(0.02)
    world.check(now < end, "the watchdog was fed while a flush hung")
