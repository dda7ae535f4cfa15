"""Directories that go, move, are not to be trusted for a while, or are full of others' files."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from support.receiver import Reply

from chaos.world import MOUNTS, scenario
from chaos.writers import TRAILER

if TYPE_CHECKING:
    from pathlib import Path

    from chaos.world import World

_COUNT = 10


def some(world: World, name: str, root: Path | None = None) -> None:
    """A few turns, and wait until they have come."""
    world.write("--name", name, "--count", str(_COUNT), root=root)
    world.delivered()


@scenario(quick=True)
def directory_deleted(world: World) -> None:
    """Directory: deleted and made again, again and again."""
    world.host.start()
    for n in range(5 if world.quick else 30):
        some(world, f"r{n}-")
        with world.fault("deleted"):
            shutil.rmtree(world.host.aichat)
            if n % 2:
                world.host.wait_event("root.missing", count=n // 2 + 1)
            world.host.aichat.mkdir(mode=0o700)


@scenario()
def directory_renamed_away(world: World) -> None:
    """Directory: renamed away, written to there, renamed back."""
    world.host.start()
    some(world, "before")
    away = world.base / "away"
    with world.fault("renamed away"):
        world.host.aichat.rename(away)
        world.host.wait_event("root.missing")
        # Its name is its backend's: an account under another would be another turn's.
        turns = [world.turn(f"away{n}") for n in range(_COUNT)]
        for turn in turns:
            turn.completed(turn.text() + TRAILER)
            (away / turn.path.name).write_bytes(turn.text() + TRAILER)
        away.rename(world.host.aichat)
    some(world, "after")


@scenario(quick=True)
def directory_replaced_by_a_symlink(world: World) -> None:
    """Directory: replaced by a symbolic link, which is not followed, then mended."""
    world.host.start()
    some(world, "before")
    real = world.base / "real"
    with world.fault("a symbolic link"):
        world.host.aichat.rename(real)
        world.host.aichat.symlink_to(real)
        world.host.wait_event("root.untrusted")
        (real / "foreign.txt").write_bytes(b"nobody's" + TRAILER)
        world.turn("meanwhile").put(b"mine" + TRAILER)
        world.write("--name", "elsewhere", "--count", "3", root=world.host.legacy)
        world.until("the other root's", lambda: world.of("elsewhere2"))
        world.check(not world.of("meanwhile") and not world.of("foreign"), "it was followed")
        (real / "foreign.txt").unlink()
        world.host.aichat.unlink()
        real.rename(world.host.aichat)
    some(world, "after")


@scenario()
def directory_writable_by_others(world: World) -> None:
    """Directory: writable by others for a while, then mended."""
    world.host.start()
    some(world, "before")
    with world.fault("writable by others"):
        world.host.aichat.chmod(0o707)
        world.host.wait_event("root.untrusted")
        world.turn("meanwhile").put(b"mine" + TRAILER)
        world.write("--name", "elsewhere", "--count", "3", root=world.host.legacy)
        world.until("the other root's", lambda: world.of("elsewhere2"))
        world.check(not world.of("meanwhile"), "it was trusted")
        world.host.aichat.chmod(0o700)
    some(world, "after")


@scenario(quick=True, needs=MOUNTS)
def directory_unmounted(world: World) -> None:
    """Directory: a tmpfs that is unmounted and mounted again, empty."""
    root = str(world.host.aichat)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "none", root]
    world.host.start()
    for n in range(3):
        subprocess.run(mount, check=True)
        some(world, f"on{n}-")
        with world.fault("unmounted"):
            subprocess.run(["umount", "--lazy", root], check=True)
        some(world, f"under{n}-")


@scenario(quick=True)
def directory_emptied_while_the_receiver_is_down(world: World) -> None:
    """Directory: `/tmp` emptied while the receiver is down, then SIGKILL."""
    world.host.start()
    with world.fault("nobody listens, /tmp is emptied", 2):
        world.receiver_down()
        world.write("--count", "40")
        world.accepted(40)
        world.until("the last versions", lambda: is_quiet(world))
        for root in (world.host.aichat, world.host.legacy):
            shutil.rmtree(root)
        world.host.kill()
        world.host.start()
        world.receiver_up()


def is_quiet(world: World) -> bool:
    """Whether everything that was written is in the outbox."""
    listed = world.host.command("turns", "--json", "--limit", "1000").stdout
    ids = {line.content_key[:16] for line in world.last_owed()}
    return all(content_key in listed for content_key in ids)


@scenario()
def directory_full_of_foreign_files(world: World) -> None:
    """Directory: foreign files in it, 100,000 in the long form."""
    many = 5_000 if world.quick else 100_000
    for n in range(many):
        (world.host.aichat / f"foreign-{n}.log").touch()
    world.host.start()
    some(world, "early")
    with world.fault("a restart"):
        world.host.kill()
        world.host.start()
    world.behaviour = lambda _: Reply()
    some(world, "late")
