"""File events that do not come: scans find each file."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from typing import TYPE_CHECKING

from chaos.crashes import killed
from chaos.world import scenario

if TYPE_CHECKING:
    from chaos.world import World

#: In a user namespace of its own the daemon may have no watch at all.
_NO_WATCHES = [
    "unshare", "--user", "--map-root-user",
    "sh", "-c", 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$0" "$@"',
]  # fmt: skip
_SILENCE = shlex.join([*_NO_WATCHES, "true"])


@scenario(quick=True, needs=_SILENCE)
def events_off(world: World) -> None:
    """Events: switched off entirely (no inotify instance is granted)."""
    world.host.prefix = _NO_WATCHES
    world.host.start()
    world.host.wait_event("watch.failed")
    with world.fault("no events"):
        world.write("--count", "60", "--rate", "20")
        world.delivered()
    world.check(world.host.events("watch.failed"), "there were events")


@scenario(needs=_SILENCE)
def events_off_and_killed(world: World) -> None:
    """Events: switched off entirely, and SIGKILL at random moments."""
    world.host.prefix = _NO_WATCHES
    killed(world, 25 if world.quick else 100)


@scenario(PALIADIN_EVENTS="inotify")
def events_by_inotify_and_killed(world: World) -> None:
    """Events: by the other engine, inotify, and SIGKILL at random moments."""
    killed(world, 25 if world.quick else 100)


@scenario()
def events_overflow(world: World) -> None:
    """Events: the kernel's queue overflown (SIGSTOP while thousands of files are written)."""
    overflow(world)


@scenario(PALIADIN_EVENTS="inotify")
def events_overflow_of_inotify(world: World) -> None:
    """Events: the same with the other engine, inotify."""
    overflow(world)


def overflow(world: World) -> None:
    """More is written than the kernel keeps events of, while the daemon hears none."""
    world.host.start()
    world.write("--name", "before", "--count", "5")
    world.delivered()
    assert world.host.process is not None
    with world.fault("stopped"):
        world.host.process.send_signal(signal.SIGSTOP)
        many = 4_000 if world.quick else 20_000
        world.write("--count", str(many), "--manner", "rename")
        world.host.process.send_signal(signal.SIGCONT)


@scenario(quick=True)
def events_of_a_name_that_is_no_utf8(world: World) -> None:
    """Events: a name that is not UTF-8 touched every 100 ms for the whole run."""
    touched(world)
    world.check(world.host.events("watch.failed"), "the name did no harm")


@scenario(quick=True, PALIADIN_EVENTS="inotify")
def events_of_a_name_that_is_no_utf8_by_inotify(world: World) -> None:
    """Events: the same with the other engine, inotify."""
    touched(world)


def touched(world: World) -> None:
    """Somebody touches a strange name while turns come."""
    over = threading.Event()
    name = os.fsencode(world.host.aichat) + b"/\xff\xfe.txt"

    def touch() -> None:
        while not over.wait(0.1):
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT))
            os.utime(name)

    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        with world.fault("touched every 100 ms"):
            world.host.start()
            world.write("--count", "60", "--rate", "10")
            world.delivered()
    finally:
        over.set()
        toucher.join()
