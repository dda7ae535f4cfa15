"""The project's goals, each with what was measured and whether it is reached."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.candidates import FLOOR, INOTIFY, INOTIFY_NO_COMMITS, NODE, SHIPPED, WATCHDOG, before_of
from bench.inbox import BARE_SQLITE, INBOX_SQLITE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.results import Results


#: What a scan may add to the longest wait of a turn, in ms.
_SCAN_MS = 20.0
_GROWTH = 1.2
#: What the inbox may lose to a route that verifies nothing and knows no turn.
_OF_BARE = 0.9
_ENGINES = {INOTIFY: "inotify", SHIPPED: "as shipped"}


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        text: the goal.
        measured: the figures that it is judged by.
        ratio: the measured figure over the one that is allowed, at most 1 where it is reached;
            NaN where something of it was not measured.
    """

    text: str
    measured: str
    ratio: float

    @property
    def verdict(self) -> str:
        """Whether it is reached, in words."""
        if math.isnan(self.ratio):
            return "not measured"
        return "yes" if self.ratio <= 1 else "no"


def goals(results: Results) -> list[Goal]:
    """All of them, in the order in which they were set."""
    return [
        *_latency(results),
        *_bursts(results),
        *_trickle(results),
        *_idle(results),
        *_growth(results),
        *_inbox(results),
    ]


def _latency(results: Results) -> Iterator[Goal]:
    floor = results.median(FLOOR)
    for name, most in ((INOTIFY, 0.75), (SHIPPED, 0.85)):
        ours, was = results.median(name), results.median(before_of(name))
        yield Goal(
            f"median at a trickle, {_ENGINES[name]}: ≤ {most} × before",
            f"{ours:.2f} ms, {ours / was:.2f} × ({was:.2f} ms)",
            ours / was / most,
        )
    ours = results.median(INOTIFY)
    yield Goal(
        "the same with inotify: ≤ 7 × the floor",
        f"{ours:.2f} ms, {ours / floor:.1f} × ({floor:.2f} ms)",
        ours / floor / 7,
    )
    found = results.latency.get(INOTIFY)
    p99 = found.p99_ms if found and found.all_ms else math.nan
    yield Goal("its p99: ≤ 6 × its median", f"{p99:.2f} ms, {p99 / ours:.1f} ×", p99 / ours / 6)
    off, other = results.median(INOTIFY_NO_COMMITS), results.median(WATCHDOG)
    yield Goal(
        f"median with inotify, commits off: lower than {WATCHDOG}",
        f"{off:.2f} ms against {other:.2f}",
        _more_than_one(off / other),
    )


def _bursts(results: Results) -> Iterator[Goal]:
    node = results.typical_burst(NODE).per_s
    for name, engine in _ENGINES.items():
        ours, was = results.typical_burst(name), results.typical_burst(before_of(name))
        yield Goal(
            f"burst of 10,000, {engine}: ≥ 2 × before",
            f"{ours.per_s:.0f} turns a second, {ours.per_s / was.per_s:.2f} × ({was.per_s:.0f})",
            2 * was.per_s / ours.per_s,
        )
        yield Goal(
            f"that burst, {engine}: more turns a second than {NODE}",
            f"{ours.per_s:.0f} against {node:.0f}",
            _more_than_one(node / ours.per_s),
        )
        yield Goal(
            f"CPU a turn in that burst, {engine}: ≤ 0.55 × before",
            f"{ours.cpu_ms:.2f} ms, {ours.cpu_ms / was.cpu_ms:.2f} × ({was.cpu_ms:.2f} ms)",
            ours.cpu_ms / was.cpu_ms / 0.55,
        )


def _trickle(results: Results) -> Iterator[Goal]:
    for name, engine in _ENGINES.items():
        ours, was = results.trickle_cpu_ms(name), results.trickle_cpu_ms(before_of(name))
        yield Goal(
            f"CPU a turn at a trickle, {engine}: ≤ 0.6 × before",
            f"{ours:.2f} ms, {ours / was:.2f} × ({was:.2f} ms)",
            ours / was / 0.6,
        )


def _idle(results: Results) -> Iterator[Goal]:
    idle = results.idle.get(INOTIFY)
    wakeups, share = (idle.wakeups_per_s, idle.cpu_percent) if idle else (math.nan, math.nan)
    yield Goal("idle, inotify: ≤ 2 wake-ups a second", f"{wakeups:.1f}", wakeups / 2)
    yield Goal("the same: ≤ 0.05 % of a core", f"{share:.3f} %", share / 0.05)
    memory = [
        results.idle[one].resident_mb if one in results.idle else math.nan for one in _ENGINES
    ]
    yield Goal(
        "idle, with either engine: ≤ 45 MiB",
        f"{memory[0]:.1f} and {memory[1]:.1f} MiB",
        _worst(*memory) / 45,
    )


def _growth(results: Results) -> Iterator[Goal]:
    if not results.growth:
        return
    empty, *grown = results.growth
    for what in grown:
        latency, trickle, burst = results.growth_ratios(what)
        yield Goal(
            f"a turn with {what}: ≤ {_GROWTH} × an empty start",
            f"latency {latency:.2f} ×, CPU {trickle:.2f} × at a trickle, {burst:.2f} × in a burst",
            _worst(latency, trickle, burst) / _GROWTH,
        )
    without = max(one.longest_ms for one in results.growth[empty])
    for what in grown:
        if "in the root" in what:
            longest = max(one.longest_ms for one in results.growth[what])
            yield Goal(
                f"scans with {what}: no turn waits more than {_SCAN_MS:.0f} ms longer",
                f"{longest - without:.1f} ms ({longest:.1f} at the longest, {without:.1f} without)",
                (longest - without) / _SCAN_MS,
            )


def _inbox(results: Results) -> Iterator[Goal]:
    ours, bare = results.inbox_per_s(INBOX_SQLITE), results.inbox_per_s(BARE_SQLITE)
    yield Goal(
        f"callbacks a second, {INBOX_SQLITE}: ≥ {_OF_BARE} × {BARE_SQLITE}",
        f"{ours:.0f}, {ours / bare:.2f} × ({bare:.0f})",
        _OF_BARE * bare / ours,
    )


def _worst(*figures: float) -> float:
    return math.nan if any(map(math.isnan, figures)) else max(figures)


def _more_than_one(ratio: float) -> float:
    # The goal is "less than", not "at most".
    return math.nextafter(ratio, math.inf)
