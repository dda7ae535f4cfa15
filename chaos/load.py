"""Many at once, many for long, and much that waits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.world import scenario

if TYPE_CHECKING:
    from chaos.world import World

#: What the daemon may take more for four times the backlog, or for ten minutes of load.
MORE_MIB = 32.0


def peak_mib(world: World) -> float:
    """The most memory that the daemon ever held."""
    assert world.host.process is not None
    status = Path(f"/proc/{world.host.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


@scenario()
def load_burst(world: World) -> None:
    """Load: 10,000 turns in a burst (1,000 in the short form)."""
    world.host.start()
    count = 1_000 if world.quick else 10_000
    world.write("--count", str(count), "--manner", "rename")
    world.delivered()


@scenario()
def load_steady(world: World) -> None:
    """Load: 50 turns a second for ten minutes (ten seconds in the short form)."""
    world.host.start()
    seconds = 10 if world.quick else 600
    before = peak_mib(world)
    world.write("--rate", "50", "--count", str(50 * seconds))
    world.delivered()
    more = peak_mib(world) - before
    world.check(more < MORE_MIB, f"it grew by {more:.0f} MiB")


@scenario(quick=True)
def load_backlog(world: World) -> None:
    """Load: backlogs of 50 and 200 MB while nobody listens; memory does not grow with them."""
    world.host.start()
    peaks = []
    for name, count in (("small", 50), ("large", 200)):
        with world.fault("nobody listens"):
            world.receiver_down()
            world.write(
                "--name", name, "--bytes", "1000000", "--count", str(count), "--manner", "rename"
            )
            world.accepted(len(world.last_owed()))
            world.receiver_up()
        world.delivered()
        peaks.append(peak_mib(world))
    print(f"      load-backlog: at most {peaks[0]:.0f}, then {peaks[1]:.0f} MiB", flush=True)
    world.check(peaks[1] - peaks[0] < MORE_MIB, f"it grew from {peaks[0]} to {peaks[1]} MiB")
