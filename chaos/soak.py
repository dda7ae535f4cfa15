"""A mixture of all faults at a human pace, for as long as it is asked to: does anything grow?

    python -m chaos.soak [--seconds N] [--seed S] [--keep DIR]

The process is that of the shipped unit, with its environment, its timers and its limits; where
root may make no cgroup, those of memory and tasks are not set, and that is printed. What was
delivered is kept for minutes instead of days, so that the outbox comes to its full size. In the
second half the process is not ended any more, and what it takes is measured. Exits 1 where
something grows, or the accounts do not agree.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from support.receiver import Reply, Request

from chaos.__main__ import works
from chaos.disks import fill, mounted
from chaos.laptops import CC, Lid
from chaos.world import MOUNTS, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_UNIT = Path(__file__).parents[1] / "systemd/paliadin-sidecar.service"
_KEPT = {"PALIADIN_KEEP_ANSWERS": "2m", "PALIADIN_KEEP_TURNS": "10m"}
#: An agent's files are cleared away after so long; by then each was accepted.
_CLEARED_S = 120.0
_RATE = 1.0  #: turns a second of each writer
_FAULT_S, _REST_S = (3.0, 20.0), (5.0, 30.0)
#: Limits of a unit that are a cgroup's: its controller, and the file that takes the value.
_CGROUPS = Path("/sys/fs/cgroup")
_MEMORY = "limit_in_bytes" if (_CGROUPS / "memory").is_dir() else "max"  # version 1, and 2
_OF_CGROUPS = (("MemoryMax", "memory", f"memory.{_MEMORY}"), ("TasksMax", "pids", "pids.max"))
#: The outbox has its full size some time after what is kept for ten minutes.
_MIN_OUTBOX_S = 2400.0


@dataclass
class Sample:
    """What the process takes at one moment."""

    at: float
    memory_mib: float
    descriptors: float
    threads: float
    outbox_mib: float
    log_bytes: float  #: a second, since the last sample


#: By how much each may be more at the end than at the beginning of the second half.
_ALLOWED = {
    "memory_mib": 16.0, "descriptors": 16.0, "threads": 2.0, "outbox_mib": 4.0, "log_bytes": 2000.0,
}  # fmt: skip


def slope(samples: Sequence[Sample], name: str) -> tuple[float, float]:
    """How much it grows in an hour by least squares, and the half width of the 95 % confidence."""
    points = [(one.at, float(getattr(one, name))) for one in samples]
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    rise = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - rise * (x - mean_x)) ** 2 for x, y in points)
    error = math.sqrt(rest / (len(points) - 2) / spread)
    return 3600 * rise, 3600 * 1.96 * error


class Soak:
    """One run.

    Args:
        world: its host, writers and receiver.
        seconds: how long it lasts.
        lid: of the machine; None where it cannot sleep here.
        has_disk: whether the state directory has a disk of its own, which can be full.
    """

    def __init__(self, world: World, seconds: float, lid: Lid | None, *, has_disk: bool) -> None:
        self._world, self._rng = world, world.rng
        self._seconds = seconds
        self._lid = lid
        self._has_disk = has_disk
        self._log_bytes = 0
        self._measured_from = math.inf
        self.samples: list[Sample] = []
        self._over = threading.Event()

    def run(self) -> None:
        """Play to the end."""
        world, end = self._world, time.monotonic() + self._seconds
        world.host.start()
        writers = [
            world.start_writer("--rate", str(_RATE), "--bytes", "3000", root=root)
            for root in (world.host.aichat, world.host.legacy)
        ]
        watch = threading.Thread(target=self._watch)
        watch.start()
        try:
            while (left := end - time.monotonic()) > 0:
                if left < self._seconds / 2 and self._measured_from == math.inf:
                    self._measured_from = time.monotonic()
                faults = [*self._faults()]
                if self._measured_from == math.inf:
                    faults += [self._killed, self._ended]
                self._rng.choice(faults)()
                time.sleep(min(self._rng.uniform(*_REST_S), self._seconds / 20))
        finally:
            self._over.set()
            watch.join()
        for writer in writers:
            writer.terminate()

    # --- faults -----------------------------------------------------------------------------

    def _faults(self) -> list[Callable[[], None]]:
        found = [
            self._nobody_listens, self._stumbles, self._throttles, self._hangs,
            self._open_to_others, self._stopped, self._foreign_files, self._commands,
        ]  # fmt: skip
        if self._lid is not None:
            found.append(self._suspended)
        if self._has_disk:
            found.append(self._disk_full)
        return found

    def _wait(self) -> None:
        time.sleep(min(self._rng.uniform(*_FAULT_S), self._seconds / 20))

    def _answers(self, name: str, bad: Callable[[Request], Reply]) -> None:
        with self._world.fault(name):
            self._world.behaviour = bad
            self._wait()
            self._world.behaviour = lambda _: Reply()

    def _nobody_listens(self) -> None:
        with self._world.fault("nobody listens"):
            self._world.receiver_down()
            self._wait()
            self._world.receiver_up()

    def _stumbles(self) -> None:
        replies = [Reply(), Reply(500), Reply(503), Reply(how="reset"), Reply(how="then_reset")]
        self._answers("stumbles", lambda _: self._rng.choice(replies))

    def _throttles(self) -> None:
        self._answers("429", lambda _: Reply(429, {"retry-after": "3"}))

    def _hangs(self) -> None:
        self._answers("hangs", lambda _: Reply(503, how="hang"))

    def _open_to_others(self) -> None:
        with self._world.fault("open to others"):
            self._world.host.aichat.chmod(0o702)
            self._wait()
            self._world.host.aichat.chmod(0o700)

    def _stopped(self) -> None:
        process = self._world.host.process
        assert process is not None
        with self._world.fault("stopped"):
            process.send_signal(signal.SIGSTOP)
            self._wait()
            process.send_signal(signal.SIGCONT)

    def _suspended(self) -> None:
        assert self._lid is not None
        with self._lid.closed(60):
            self._wait()

    def _disk_full(self) -> None:
        with self._world.fault("full"):
            fill(self._world)
            self._wait()
            (self._world.host.state / "filler").unlink()

    def _foreign_files(self) -> None:
        paths = [self._world.host.legacy / f"notes-{n}.md" for n in range(500)]
        for path in paths:
            path.touch()
        self._wait()
        for path in paths:
            path.unlink()

    def _commands(self) -> None:
        for command in (("status",), ("check",), ("turns",), ("replay", "--since", "30s")):
            self._world.host.command(*command)

    def _killed(self) -> None:
        self._world.kill()
        self._world.host.start()

    def _ended(self) -> None:
        self._world.check((code := self._world.host.stop()) == 0, f"it ended with {code}")
        self._world.host.start()

    # --- what it takes ----------------------------------------------------------------------

    def _watch(self) -> None:
        every_s = max(1.0, self._seconds / 500)
        last, counted = time.monotonic(), 0
        while not self._over.wait(every_s):
            self._clear_away()
            now = time.monotonic()
            size = self._log_size()
            if now > self._measured_from:
                with suppress(OSError):
                    self.samples.append(self._sample(now, (size - counted) / (now - last)))
            last, counted = now, size

    def _log_size(self) -> int:
        # What was counted is let go, so that a day fits into the memory of whoever watches.
        raw = self._world.host.raw
        new = len(raw)
        self._log_bytes += sum(map(len, raw[:new]))
        del raw[:new]
        lines = self._world.host.lines
        new = len(lines)
        lines[:new] = [line for line in lines[:new] if str(line["event"]).startswith("service.")]
        return self._log_bytes

    def _sample(self, at: float, log_bytes: float) -> Sample:
        process = self._world.host.process
        assert process is not None
        of = Path(f"/proc/{process.pid}")
        status = (of / "status").read_text()
        found = {name: re.search(rf"{name}:\s+(\d+)", status) for name in ("VmRSS", "Threads")}
        memory, threads = (float(match[1]) if match else 0.0 for match in found.values())
        state = self._world.host.state
        outbox = sum(path.stat().st_size for path in state.glob("outbox.db*"))
        descriptors = len(list((of / "fd").iterdir()))
        return Sample(at, memory / 1024, descriptors, threads, outbox / 2**20, log_bytes)

    def _clear_away(self) -> None:
        before = time.time() - _CLEARED_S
        for root in (self._world.host.aichat, self._world.host.legacy):
            with suppress(OSError):
                for path in root.glob("*.txt"):
                    if path.stat().st_mtime < before:
                        path.unlink()

    def judge(self) -> None:
        """Print how all of it grew in the second half, and note what grew by too much."""
        hours = (self.samples[-1].at - self.samples[0].at) / 3600
        part = max(1, len(self.samples) // 10)
        for name, allowed in _ALLOWED.items():
            values = [float(getattr(one, name)) for one in self.samples]
            first, last = (sum(some) / part for some in (values[:part], values[-part:]))
            rise, error = slope(self.samples, name)
            is_judged = name != "outbox_mib" or self._seconds >= _MIN_OUTBOX_S
            note = "" if is_judged else "  (too short a run to judge it)"
            print(
                f"{name:12} {first:9.1f} -> {last:9.1f}  {rise:+9.2f} ± {error:.2f} an hour{note}"
            )
            grew = (rise - error) * hours > allowed
            self._world.check(not (is_judged and grew), f"{name} grows by {rise:.1f} an hour")


@contextmanager
def limits() -> Iterator[tuple[list[str], dict[str, str]]]:
    """The command that sets the shipped unit's limits, while this lasts, and its environment."""
    unit = _UNIT.read_text(encoding="utf-8")
    settings = dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))
    environ = dict(re.findall(r"^Environment=(\w+)=(.*)$", unit, re.MULTILINE))
    prefix = ["prlimit", f"--nofile={settings['LimitNOFILE']}", "--core=0"]
    with ExitStack() as stack:
        for name, controller, file in _OF_CGROUPS:
            try:
                group = stack.enter_context(_cgroup(controller, file, settings[name]))
            except OSError as exc:
                print(f"{name}={settings[name]} is not set: {exc}")
                continue
            join = f'echo $$ > {group}/cgroup.procs && exec "$@"'
            prefix = ["sh", "-c", join, "sh", *prefix]
        yield prefix, environ


@contextmanager
def _cgroup(controller: str, file: str, value: str) -> Iterator[Path]:
    # In version 1 each controller has groups of its own, in version 2 all have one.
    parent = _CGROUPS / controller
    if not parent.is_dir():
        parent = _CGROUPS
        (parent / "cgroup.subtree_control").write_text(f"+{controller}")
    group = parent / f"paliadin-soak-{os.getpid()}"
    group.mkdir(exist_ok=True)
    try:
        (group / file).write_text(value)
        yield group
    finally:
        with suppress(FileNotFoundError):
            group.rmdir()


def main() -> int:
    """Play, print, say whether all held."""
    arguments = argparse.ArgumentParser(
        prog="python -m chaos.soak",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    arguments.add_argument("--seconds", type=float, default=3600.0)
    arguments.add_argument("--seed", default=secrets.token_hex(4))
    arguments.add_argument("--keep", type=Path, help="keep the logs here")
    given = arguments.parse_args()
    print(f"seed {given.seed}, {given.seconds:.0f} s", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as temp,
        ExitStack() as stack,
    ):
        base = (given.keep or Path(temp)).resolve()
        base.mkdir(parents=True, exist_ok=True)
        prefix, environ = stack.enter_context(limits())
        environ |= _KEPT | {"PALIADIN_QUIET_S": "5", "PALIADIN_RESCAN_S": "2"}
        rng = random.Random(given.seed)
        world = stack.enter_context(World(base, rng, quick=False, environ=environ))
        lid = Lid(world) if works(CC) else None
        world.host.prefix = [*prefix, *world.host.prefix]
        if has_disk := works(MOUNTS):
            stack.enter_context(mounted(world, "size=256m"))
        soak = Soak(world, given.seconds, lid, has_disk=has_disk)
        soak.run()
        soak.judge()
        verdict = world.verdict()
    print(
        f"turns {verdict.turns:,}, faults {verdict.faults:,}, lost {len(verdict.lost)}, "
        f"cut {len(verdict.cut)}, duplicates sent {verdict.duplicates_sent:,}, "
        f"after dedupe {len(verdict.duplicates_after_dedupe)}, "
        f"longest recovery {verdict.longest_recovery_s:.1f} s"
    )
    for what in (*verdict.lost[:5], *verdict.cut[:5], *verdict.wrong[:10]):
        print(what)
    print(f"{'All held' if verdict.holds else 'NOT KEPT'} (seed {given.seed})")
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    sys.exit(main())
