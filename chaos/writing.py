"""Writers that are killed, slow, hasty or undone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.world import scenario
from chaos.writers import TRAILER, Turn

if TYPE_CHECKING:
    from chaos.world import World

_MAX_BYTES = 4 * 1024 * 1024


@scenario(quick=True)
def writer_killed(world: World) -> None:
    """Writers: killed in the middle of a write; what is there then is all there will be."""
    world.host.start()
    for n in range(10):
        turn = world.turn(f"t{n}")
        half_written(world, turn, hold=n % 5 == 0)
        if n % 2:  # and begun anew by another
            turn.put(turn.text("Neu") + TRAILER)


def half_written(world: World, turn: Turn, *, hold: bool) -> None:
    """By a process that is killed, at once or after longer than PALIADIN_QUIET_S."""
    half = turn.text()
    script = (
        "import sys, time; file = open(sys.argv[1], 'wb', 0);"
        "file.write(sys.argv[2].encode()); time.sleep(99)"
    )
    command = [sys.executable, "-c", script, str(turn.path), half.decode()]
    with subprocess.Popen(command) as writer:
        world.until("the half", lambda: turn.path.exists() and turn.path.stat().st_size)
        if hold:
            time.sleep(1.5)
            world.check(not world.of(turn.path.stem), "half an answer while it was open")
        with world.fault("a writer killed"):
            turn.completed(half)
            writer.send_signal(signal.SIGKILL)


@scenario()
def writer_holds_open(world: World) -> None:
    """Writers: held open, for a minute in the long form, and others meanwhile."""
    world.host.start()
    turn = world.turn("held")
    with turn.path.open("wb", buffering=0) as file:
        file.write(turn.text() + TRAILER)  # looks whole
        end = time.monotonic() + (5 if world.quick else 60)
        while time.monotonic() < end:
            file.write(b"und weiter\n")
            world.write("--name", f"o{int(end - time.monotonic())}-", "--count", "3")
            world.check(not world.of("held"), "pushed while it was open")
            time.sleep(1)
        file.write(TRAILER)
        turn.completed(turn.path.read_bytes())


@scenario(quick=True)
def writer_reopens(world: World) -> None:
    """Writers: reopened and appended to after it was delivered."""
    world.host.start()
    for n in range(20):
        turn = world.turn(f"t{n}")
        turn.put(turn.text() + TRAILER)
        come(world, f"t{n}", 1)
        more = turn.text("Nachtrag") + TRAILER
        turn.completed(turn.path.read_bytes() + more)
        with turn.path.open("ab") as file:
            file.write(more)


@scenario(quick=True)
def writer_replaces(world: World) -> None:
    """Writers: replaced twenty times in a second; in place, too."""
    world.host.start()
    for n in range(5):
        renamed, in_place = world.turn(f"a{n}"), world.turn(f"b{n}")
        for version in range(20):
            renamed.put(renamed.text(f"Fassung {version}") + TRAILER)
            content = in_place.text(f"Fassung {version}") + TRAILER
            in_place.completed(content)
            in_place.path.write_bytes(content)
            time.sleep(0.05)


@scenario(quick=True)
def writer_goes_back(world: World) -> None:
    """Writers: back to an earlier content, delivered or not."""
    world.host.start()
    for n in range(10):
        turn = world.turn(f"t{n}")
        for count, word in enumerate(("A", "B", "A"), 1):
            turn.put(turn.text(word) + TRAILER)
            if n % 2:
                come(world, f"t{n}", count)


@scenario(quick=True)
def writer_at_the_limit(world: World) -> None:
    """Writers: 4 MiB, and 4 MiB + 1, which is pushed as a failure."""
    world.host.start()
    for n in range(3):
        good = world.turn(f"good{n}", size=_MAX_BYTES - len(TRAILER))
        good.put(good.text() + TRAILER)
        large = world.turn(f"large{n}", size=_MAX_BYTES + 1 - len(TRAILER))
        large.completed(b"", content_key="too_large")
        temp = large.path.with_suffix(".tmp")
        temp.write_bytes(large.text() + TRAILER)
        temp.rename(large.path)


@scenario(quick=True)
def writer_s_files_are_polled_away(world: World) -> None:
    """Writers: deleted by a legacy poller the instant it appears; arrives or is audited."""
    over = threading.Event()
    folder = world.host.legacy

    def poll() -> None:
        while not over.is_set():
            for name in os.listdir(folder):  # noqa: PTH208 - in a hurry
                if name.endswith(".txt"):
                    with contextlib.suppress(OSError):
                        (folder / name).unlink()

    world.host.start()
    poller = threading.Thread(target=poll)
    poller.start()
    many = 60
    try:
        for n in range(many):
            with world.fault("deleted"):
                turn = world.turn(f"t{n}", folder)
                turn.put(turn.text() + TRAILER, owed=False)
            time.sleep(0.02)
    finally:
        world.until("an empty root", lambda: not list(folder.glob("*.txt")))
        over.set()
        poller.join()

    def accounted() -> set[str]:
        vanished = {line["turn_id"] for line in world.host.events("turn.vanished")}
        return vanished | {one.turn.partition("/")[2] for one in world.arrived}

    with contextlib.suppress(AssertionError):
        world.until("all to be accounted for", lambda: len(accounted()) == many)
    unknown = {f"t{n}" for n in range(many)} - accounted()
    world.check(not unknown, f"neither pushed nor audited: {sorted(unknown)}")


@scenario(quick=True)
def trailer_after_the_poller(world: World) -> None:
    """Writers: its trailer appended after the poller deleted it."""
    world.host.start()
    for n in range(10):
        turn = world.turn(f"t{n}", world.host.legacy)
        turn.completed(turn.text())
        turn.path.write_bytes(turn.text())
        until_held(world, turn.path.stat().st_ino)
        with world.fault("deleted"):
            turn.path.unlink()
        with turn.path.open("ab") as file:
            file.write(TRAILER)


def come(world: World, turn_id: str, count: int) -> None:
    """Wait until so much has come of a turn."""
    world.until(f"{count} of {turn_id}", lambda: len(world.of(turn_id)) >= count)


def until_held(world: World, inode: int) -> None:
    """Wait until the daemon has this file open."""
    world.until("the daemon to hold it", lambda: holds(world, inode))


def holds(world: World, inode: int) -> bool:
    """Whether the daemon has this file open."""
    assert world.host.process is not None
    folder = f"/proc/{world.host.process.pid}/fd"
    for fd in os.listdir(folder):  # noqa: PTH208 - of the kernel
        with contextlib.suppress(OSError):
            if Path(folder, fd).stat().st_ino == inode:
                return True
    return False
