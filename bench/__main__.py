"""`make bench` and `make bench-quick`: measures, then writes or prints what it found.

    python -m bench [--quick | --try] [--dir DISK]

The long form needs some twenty minutes and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import before, growth, measures, report
from bench.candidates import BEFORE, CANDIDATES, FLOOR, INOTIFY, NODE, SHIPPED, Candidate
from bench.inbox import callbacks_per_s
from bench.lab import running
from bench.results import Results

_HERE = Path(__file__).parent
_BUILT = _HERE / "built"
_PAUSE_MS = 15
_SERVICE = next(one for one in CANDIDATES if one.name == SHIPPED)


@dataclass(frozen=True)
class _Sizes:
    rounds: int = 4  #: that the turns of a trickle are spread over
    rounds_of_others: int = 2
    turns: int = 200  #: in each round
    burst: int = 10_000
    bursts: int = 3  #: of those that the goals compare
    idle_s: float = 65
    delivered: int = 1_000_000
    answers: int = 100_000
    growth_rounds: int = 4
    growth_turns: int = 300
    growth_burst: int = 3000
    inbox_rounds: int = 5
    callbacks: int = 4000


#: Tries each part of the measurement itself; its figures say nothing.
_TRIAL = _Sizes(
    rounds=1, rounds_of_others=1, turns=10, burst=200, bursts=1, idle_s=2, delivered=20_000,
    answers=200, growth_rounds=1, growth_turns=20, growth_burst=200,
    inbox_rounds=1, callbacks=200,
)  # fmt: skip


def main() -> None:
    """Measure."""
    arguments = argparse.ArgumentParser(prog="bench", description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="the main ratios, under a minute")
    arguments.add_argument(
        "--try", type=Path, metavar="FOLDER", dest="trial",
        help="every part with tiny sizes, to try the measurement; results go to FOLDER",
    )  # fmt: skip
    arguments.add_argument("--dir", type=Path, help="on the disk to measure")
    options = arguments.parse_args()
    build()
    if options.quick:
        quick(options.dir)
        return
    if options.trial:
        report.write(full(options.dir, _TRIAL), options.trial, None)
    else:
        report.write(full(options.dir, _Sizes()), _HERE, _HERE.parent / "docs/performance.md")


def build() -> None:
    """The floor, by whatever C compiler is here; without one it is missing."""
    _BUILT.mkdir(exist_ok=True)
    source, program = _HERE / "candidates/floor.c", _BUILT / "floor"
    try:
        subprocess.run(["cc", "-O2", "-Wall", "-o", str(program), str(source)], check=True)
    except FileNotFoundError:
        program.unlink(missing_ok=True)


def quick(disk: Path | None) -> None:
    """Print the main ratios."""
    compared = {FLOOR, NODE}
    chosen = [one for one in CANDIDATES if one.name in compared or one.kind == "ours"]
    present = [one for one in chosen if not one.missing]
    results = Results(
        commit_ms=measures.commit_ms(disk),
        missing={one.name: one.missing for one in chosen if one.missing},
        latency=measures.latency(present, disk, rounds=2, turns=60, pause_ms=_PAUSE_MS),
        burst={SHIPPED: [measures.burst(_SERVICE, disk, 2000)]},
        idle=measures.idle([_SERVICE], disk, 5),
        ready={"empty": _ready_s(disk, None)},
        inbox=callbacks_per_s(disk, rounds=1, callbacks=2000),
    )
    print(report.quick(results))


def full(disk: Path | None, sizes: _Sizes) -> Results:
    """Measure everything."""
    began = time.monotonic()
    reason = before.prepare()
    present = [one for one in CANDIDATES if not one.missing]
    results = Results(
        commit_ms=measures.commit_ms(disk),
        missing={
            one.name: [reason] if one.kind == "before" and reason else one.missing
            for one in CANDIDATES
            if one.missing
        },
        latency=measures.latency(
            present, disk, rounds=sizes.rounds, turns=sizes.turns, pause_ms=_PAUSE_MS,
            rounds_of_others=sizes.rounds_of_others,
        ),
        idle=measures.idle(present, disk, sizes.idle_s),
    )  # fmt: skip
    _bursts(results, present, disk, sizes)
    results.ready["empty"] = _ready_s(disk, None)
    try:
        _growth(results, disk, sizes)
    except RuntimeError as exc:  # what was measured until then is written all the same
        measures.say(str(exc))
    results.drain_s = _drain_s(disk, sizes.burst)
    results.inbox = callbacks_per_s(disk, rounds=sizes.inbox_rounds, callbacks=sizes.callbacks)
    results.import_ms = measures.import_ms("paliadin_client")
    results.run_turn_us = measures.run_turn_us()
    results.took_s = time.monotonic() - began
    return results


def _growth(results: Results, disk: Path | None, sizes: _Sizes) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-", dir=disk) as made:
        hosts = growth.Hosts(
            _SERVICE, disk, Path(made), turns=sizes.delivered, answers=sizes.answers
        )
        results.outbox_mb = hosts.outbox_mb
        results.ready[f"{sizes.delivered:,} delivered"] = _ready_s(disk, hosts.old)
        for _ in range(sizes.growth_rounds):
            for what in hosts:
                grown = hosts.measure(
                    what, turns=sizes.growth_turns, pause_ms=_PAUSE_MS, burst=sizes.growth_burst
                )
                results.growth.setdefault(what, []).append(grown)


def _bursts(results: Results, present: list[Candidate], disk: Path | None, sizes: _Sizes) -> None:
    # Those that the goals compare, in turn and several times; all others once.
    compared = {SHIPPED, INOTIFY, NODE, f"{BEFORE}, as shipped", f"{BEFORE} with inotify"}
    again = [one for one in present if one.name in compared]
    for one in [*present, *again * (sizes.bursts - 1)]:
        try:
            found = measures.burst(one, disk, sizes.burst)
            results.burst.setdefault(one.name, []).append(found)
        except RuntimeError as exc:
            measures.say(str(exc))


def _ready_s(disk: Path | None, base: Path | None) -> list[float]:
    with running(_SERVICE, disk, start=False, base=base) as run:
        found = []
        for _ in range(6):
            found.append(measures.ready_s(run))
            run.stop()
    return found[1:]  # the first one makes the outbox, or reads it from the disk


def _drain_s(disk: Path | None, turns: int) -> float:
    """From the start until a backlog that was accepted before has arrived."""
    with running(_SERVICE, disk, start=False) as run:
        return measures.drain_s(run, turns)


main()
