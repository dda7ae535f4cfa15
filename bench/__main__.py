"""`make bench` and `make bench-quick`: measures, then writes or prints what it found.

    python -m bench [--quick] [--dir DISK] [--rounds N]

The long form needs half an hour and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from bench import growth, measures, report
from bench.candidates import CANDIDATES, FLOOR, SHIPPED
from bench.lab import running

_HERE = Path(__file__).parent
_BUILT = _HERE / "built"
_ROUNDS, _TURNS, _PAUSE_MS = 5, 1000, 15
_BURST, _IDLE_S = 10_000, 30
_DELIVERED, _LYING = 1_000_000, (1000, 100_000)
_GROWTH_BURST, _GROWTH_TURNS = 3000, 200


def main() -> None:
    """Measure."""
    arguments = argparse.ArgumentParser(prog="bench", description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="the main ratios, under a minute")
    arguments.add_argument("--dir", type=Path, help="on the disk to measure")
    arguments.add_argument(
        "--rounds",
        type=int,
        default=_ROUNDS,
        help="that the turns are spread over, and of growth; half as many bursts",
    )
    options = arguments.parse_args()
    build()
    if options.quick:
        quick(options.dir)
    else:
        full(options.dir, options.rounds)


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
    compared = {FLOOR, "Node fs.watch + fetch"}
    chosen = [
        one for one in CANDIDATES if one.name in compared or (one.kind == "ours" and not one.trial)
    ]
    present = [one for one in chosen if not one.missing]
    shipped = next(one for one in CANDIDATES if one.name == SHIPPED)
    results = report.Results(
        commit_ms=measures.commit_ms(disk),
        missing={one.name: one.missing for one in chosen if one.missing},
        latency=measures.latency(present, disk, rounds=2, turns=60, pause_ms=_PAUSE_MS),
        burst={shipped.name: [measures.burst(shipped, disk, 2000)]},
        idle=measures.idle([shipped], disk, 5),
        ready={"empty": _ready_s(disk, None)},
    )
    print(report.quick(results))


def full(disk: Path | None, rounds: int) -> None:
    """Measure everything, and write it beside this file."""
    present = [one for one in CANDIDATES if not one.missing]
    shipped = next(one for one in CANDIDATES if one.name == SHIPPED)
    again = [one for one in present if one.kind != "other"]
    results = report.Results(
        commit_ms=measures.commit_ms(disk),
        missing={one.name: one.missing for one in CANDIDATES if one.missing},
        latency=measures.latency(
            present, disk, rounds=rounds, turns=_TURNS // rounds, pause_ms=_PAUSE_MS
        ),
        idle=measures.idle(present, disk, _IDLE_S),
    )
    times = (rounds + 1) // 2
    for one in [*present, *again * (times - 1)]:
        try:
            found = measures.burst(one, disk, _BURST)
            results.burst.setdefault(one.name, []).append(found)
        except RuntimeError as exc:
            print(exc)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=disk) as made:
        outbox = Path(made) / "state"
        growth.delivered(outbox, _DELIVERED)
        results.outbox_mb = sum(file.stat().st_size for file in outbox.iterdir()) / 1e6
        results.ready = {
            "empty": _ready_s(disk, None),
            f"{_DELIVERED:,} delivered": _ready_s(disk, outbox),
        }
        for _ in range(rounds):
            for what, lying, turns, state in (
                ("empty", 0, False, None),
                (f"{_DELIVERED:,} delivered turns", 0, False, outbox),
                *((f"{n:,} foreign files lying", n, False, None) for n in _LYING),
                (f"{_LYING[-1]:,} turn files lying", _LYING[-1], True, None),
            ):
                grown = results.growth.setdefault(what, [])
                grown.append(_grown(disk, lying, state, turns=turns))
    results.drain_s = _drain_s(disk)
    results.import_ms = measures.import_ms("paliadin_client")
    results.run_turn_us = measures.run_turn_us()
    report.write(results, _HERE, shipped.name)


def _ready_s(disk: Path | None, outbox: Path | None) -> list[float]:
    shipped = next(one for one in CANDIDATES if one.name == SHIPPED)
    found = []
    with running(shipped, disk, start=False) as run:
        if outbox is not None:
            growth.copy(outbox, run.own / "state")
        for _ in range(6):
            found.append(measures.ready_s(run))
            run.stop()
    return found[1:]  # the first one makes the outbox, or reads it from the disk


def _grown(disk: Path | None, lying: int, outbox: Path | None, *, turns: bool) -> report.Grown:
    shipped = next(one for one in CANDIDATES if one.name == SHIPPED)
    with running(shipped, disk, start=False) as run:
        if outbox is not None:
            growth.copy(outbox, run.own / "state")
        measures.lie(run, lying, turns=turns)
        run.start()
        run.warm_up()
        before = run.cost()
        pairs = run.trickle(_GROWTH_TURNS, _PAUSE_MS, list(measures.MANNERS), within_s=10)
        after = run.cost()
        return report.Grown(
            latency_ms=[(arrived - stamp) / 1e6 for stamp, arrived in pairs],
            trickle_cpu_ms=(after.cpu_s - before.cpu_s) * 1000 / _GROWTH_TURNS,
            burst=measures.burst_of(run, _GROWTH_BURST, 60),
        )


def _drain_s(disk: Path | None) -> float:
    """From the start until a backlog that was accepted before has arrived."""
    shipped = next(one for one in CANDIDATES if one.name == SHIPPED)
    with running(shipped, disk, start=False) as run:
        return measures.drain_s(run, _BURST)


main()
