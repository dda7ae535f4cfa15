"""The loss of power: the daemon is gone, and with it all that was written and not flushed.

The state directory is on a disk that forgets (`lossy`). One root is on a tmpfs, as `/tmp` often
is, so it is empty afterwards: what was accepted from there is nowhere but in the outbox. The other
root stays.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from support.receiver import Reply

from chaos import steps
from chaos.crashes import at_crash_points, stumble
from chaos.lossy import LossyDisk, replayed
from chaos.verdict import Fault, Written, append, read
from chaos.volatile import ROOT, Loss
from chaos.world import MOUNTS, scenario
from chaos.writers import MANNERS, Turn, in_place, rename, slow, without_trailer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from chaos.steps import Steps
    from chaos.world import World

#: What works where this can be played.
NEEDS = f"test -w /dev/fuse && {MOUNTS}"
#: The longest that a daemon lives; it needs about a third of it to start.
_LIFE_S = 2.0
#: Between two turns.
_REST_S = 0.03
_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
#: Each of them completes one content only, so that whoever accepted the turn accepted that.
_ONCE = (rename, in_place, slow, without_trailer)


@scenario(quick=True, needs=NEEDS)
def power_lost_at_random(world: World) -> None:
    """Power: lost at random moments under load; what was not flushed is forgotten."""
    losses = list(Loss)
    stumble(world)
    power_lost(world, [world.rng.choice(losses) for _ in range(15 if world.quick else 300)])


def power_lost(world: World, losses: Sequence[Loss]) -> None:
    """Let the power go so many times while turns are written; the receiver is well then."""
    with lossy(world) as disk:
        promises = _Promises(world)
        for number, loss in enumerate(losses):
            world.host.start(wait=False)
            _write_until_killed(world, promises, f"n{number}-")
            with world.fault("the power is lost"):
                promises.power_is_lost()
                disk.lose_power(loss, world.rng)
        world.behaviour = lambda _: Reply()
        world.host.start()
        promises.all_are_owed()
        settled(world)
        promises.check()


@scenario(needs=NEEDS)
def power_lost_at_crash_points(world: World) -> None:
    """Power: lost at crash point 1, 2, 3 … until none fires any more, then at each by its name."""
    with lossy(world) as disk:
        promises = _Promises(world)

        def power_is_lost() -> None:
            with world.fault("the power is lost", 0):  # it is the fault that the crash is
                promises.read_lines()
                disk.lose_power(world.rng.choice(list(Loss)), world.rng)

        at_crash_points(world, 13 if world.quick else 1, power_is_lost)
        settled(world)
        promises.check()


@scenario(quick=True, needs=NEEDS)
def power_lost_while_an_outbox_is_made(world: World) -> None:
    """Power: lost at each write and flush while an outbox is made and filled."""
    at_each_write(world, steps.OUTBOX_MADE)


@scenario(quick=True, needs=NEEDS)
def power_lost_while_an_outbox_is_moved_aside(world: World) -> None:
    """Power: lost at each write and flush while an outbox is moved aside, and a new one made."""
    at_each_write(world, steps.OUTBOX_MOVED_ASIDE)


@scenario(quick=True, needs=NEEDS)
def power_lost_while_an_outbox_is_migrated(world: World) -> None:
    """Power: lost at each write and flush while an outbox is filled and migrated."""
    at_each_write(world, steps.OUTBOX_MIGRATED)


@scenario(quick=True, needs=NEEDS)
def power_lost_while_an_outbox_shrinks(world: World) -> None:
    """Power: lost at each write and flush while an outbox is filled, pruned and shrunk."""
    at_each_write(world, steps.OUTBOX_SHRUNK)


@scenario(quick=True, needs=NEEDS)
def power_lost_while_an_answer_is_erased(world: World) -> None:
    """Power: lost at each write and flush while an answer is erased, which never comes back."""
    at_each_write(world, steps.OUTBOX_ERASED)


@scenario(quick=True, needs=NEEDS)
def power_lost_while_an_inbox_is_made(world: World) -> None:
    """Power: lost at each write and flush while an inbox's database is made and filled."""
    at_each_write(world, steps.INBOX_MADE)


def at_each_write(world: World, done: Steps) -> None:
    """Take these steps, and see what each loss leaves after each request that they made."""
    recorded, rng = world.base / "recorded", world.rng
    with LossyDisk(world.base / "disk", recorded) as mount:
        for stage in done.stages:
            command = [sys.executable, "-m", "chaos.steps", stage, str(mount.path)]
            code = subprocess.run(command, check=False).returncode
            world.check(code in {0, -9}, f"{stage} ended with {code}")
    step, tried, began = 31 if world.quick else 1, 0, time.monotonic()
    for number, disk in enumerate(replayed(recorded), rng.randrange(step)):
        if number % step:
            continue
        names = disk.nodes[ROOT].content
        promised = disk.nodes[names[steps.PROMISED]].content if steps.PROMISED in names else ()
        for loss in Loss:
            tried += 1
            # In memory: what is looked at need not be flushed.
            with TemporaryDirectory(dir=_MEMORY) as left:
                disk.left(loss, rng).put(Path(left))
                try:
                    done.holds(Path(left), list(promised))
                except Exception as exc:  # noqa: BLE001 - a check may fail by any error, and each is listed
                    world.wrong.append(f"after {number} requests, {loss} lost: {exc!r}")
    append(world.faults, Fault("the power is lost", began, time.monotonic(), tried))
    world.check(tried > 20, f"only {tried} losses")


@contextmanager
def lossy(world: World) -> Iterator[LossyDisk]:
    """A disk that forgets, for the state directory, which is not there yet."""
    with LossyDisk(world.base / "disk") as disk:
        world.host.state = disk.path / "paliadin" / "state"
        world.host.environ["PALIADIN_STATE_DIR"] = str(world.host.state)
        try:
            yield disk
        finally:
            world.host.close()


def settled(world: World) -> None:
    """Wait for all that is owed, and end the daemon while its disk is there."""
    world.delivered()
    world.until_settled()
    world.check(world.host.stop() == 0, "it did not end well")
    world.host.process = None


class _Promises:
    """What the lines of all daemons say that is on the disk, and what is owed therefore."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.unclear = world.base / "unclear.log"  #: written, but perhaps not yet accepted
        self._lines: dict[int, dict[str, Any]] = {}
        self._read = 0
        self._accepted: set[str] = set()
        self._delivered: dict[tuple[str, int], float] = {}

    def power_is_lost(self) -> None:
        """The root that does not stay is empty: of its turns, only the accepted are owed."""
        self.read_lines()
        for path in self._world.host.aichat.iterdir():
            path.unlink()
        for line in self._unclear():
            owed = line.turn in self._accepted
            append(self._world.written, Written(line.at, line.turn, line.content_key, owed))

    def all_are_owed(self) -> None:
        """No power is lost any more."""
        for line in self._unclear():
            append(self._world.written, line)

    def read_lines(self) -> None:
        """Take in what the daemon printed, which has ended: it printed what was committed."""
        world, now = self._world, time.monotonic()
        for line in world.host.lines[self._read :]:
            if "event_id" not in line:
                continue
            same = self._lines.setdefault(line["event_id"], line) == line
            world.check(same, f"event {line['event_id']} became another one: {line}")
            turn = f"{line.get('backend')}/{line.get('turn_id')}"
            if line["event"] == "turn.accepted":
                self._accepted.add(turn)
            elif line["event"] == "delivery.delivered":
                self._delivered.setdefault((turn, line["revision"]), now)
        self._read = len(world.host.lines)

    def check(self) -> None:
        """What was on the disk as delivered never came again, and no event is missing."""
        self.read_lines()
        for one in self._world.arrived:
            known = one.at <= self._delivered.get((one.turn, one.revision), one.at)
            self._world.check(known, f"{one.id} came again after it was recorded as delivered")
        numbers = sorted(self._lines)
        self._world.check(numbers == list(range(1, len(numbers) + 1)), "an event's line is missing")

    def _unclear(self) -> list[Written]:
        lines = read(self.unclear, Written)
        self.unclear.unlink(missing_ok=True)
        return lines


def _write_until_killed(world: World, promises: _Promises, name: str) -> None:
    process, number = world.host.process, 0
    assert process is not None
    killer = threading.Timer(world.rng.random() * _LIFE_S, process.kill)
    killer.start()
    while process.poll() is None:
        if world.rng.random() < 0.5:
            turn = Turn(world.host.aichat, promises.unclear, f"{name}{number}")
            world.rng.choice(_ONCE)(turn)
        else:
            turn = world.turn(f"{name}{number}", world.host.legacy)
            world.rng.choice(list(MANNERS.values()))(turn)
        number += 1
        try:
            process.wait(_REST_S)
        except subprocess.TimeoutExpired:
            continue
    killer.join()
    world.check(world.host.wait() == -9, "it ended by itself")
