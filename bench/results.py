"""Everything that one run of `make bench` measured."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Latency:
    """Of one candidate: from the write's end to the receiver, in ms, and what it took."""

    ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu_ms: list[float] = field(default_factory=list)  #: a turn, one figure for each round
    wakeups: list[float] = field(default_factory=list)
    missed: int = 0

    @property
    def all_ms(self) -> list[float]:
        """In both manners, sorted."""
        return sorted(ms for of_manner in self.ms.values() for ms in of_manner)

    @property
    def p99_ms(self) -> float:
        """Of all that arrived, in ms; there must be some."""
        return self.all_ms[len(self.all_ms) * 99 // 100]


@dataclass(frozen=True)
class Burst:
    """Of one candidate: many files at once."""

    asked: int
    arrived: int
    per_s: float
    cpu_ms: float  #: a turn
    peak_mb: float


@dataclass(frozen=True)
class Idle:
    """Of one candidate: nothing to do."""

    cpu_percent: float  #: of one core
    wakeups_per_s: float
    resident_mb: float


@dataclass(frozen=True)
class Grown:
    """The service on a host that is not new."""

    latency_ms: list[float]
    trickle_cpu_ms: float
    burst: Burst

    @property
    def figures(self) -> tuple[float, float, float]:
        """The latency's median, and what a turn cost at a trickle and in a burst; in ms."""
        return statistics.median(self.latency_ms), self.trickle_cpu_ms, self.burst.cpu_ms

    @property
    def longest_ms(self) -> float:
        """The longest that one turn of the trickle waited."""
        return max(self.latency_ms)


@dataclass
class Results:
    """Everything of one run; what was not measured is empty."""

    commit_ms: float = 0.0
    missing: dict[str, list[str]] = field(default_factory=dict)
    latency: dict[str, Latency] = field(default_factory=dict)
    burst: dict[str, list[Burst]] = field(default_factory=dict)
    idle: dict[str, Idle] = field(default_factory=dict)
    ready: dict[str, list[float]] = field(default_factory=dict)
    growth: dict[str, list[Grown]] = field(default_factory=dict)
    outbox_mb: float = 0.0
    drain_s: float = 0.0
    inbox: dict[str, list[float]] = field(default_factory=dict)
    """Callbacks a second of each app, a figure for each round."""
    import_ms: float = 0.0
    run_turn_us: float = 0.0
    took_s: float = 0.0

    def median(self, name: str) -> float:
        """Of one candidate's latencies, in ms; NaN where it delivered nothing."""
        found = self.latency.get(name)
        return statistics.median(found.all_ms) if found and found.all_ms else float("nan")

    def trickle_cpu_ms(self, name: str) -> float:
        """What a turn of a trickle costs, in ms; NaN where it was not measured."""
        found = self.latency.get(name)
        return statistics.median(found.cpu_ms) if found and found.cpu_ms else float("nan")

    def typical_burst(self, name: str) -> Burst:
        """The one of median speed; of NaN where there was none."""
        nan = float("nan")
        bursts = sorted(self.burst.get(name, []), key=lambda one: one.per_s)
        return bursts[len(bursts) // 2] if bursts else Burst(0, 0, nan, nan, nan)

    def inbox_per_s(self, name: str) -> float:
        """The median of one app's callbacks a second; NaN where it was not measured."""
        return statistics.median(self.inbox.get(name) or [float("nan")])

    def growth_ratios(self, what: str) -> tuple[float, float, float]:
        """How many times the figures of an empty start its own are.

        Each is compared with the empty one of its own round, as the machine's speed drifts.
        """
        base = [one.figures for one in next(iter(self.growth.values()))]
        found = [one.figures for one in self.growth[what]]
        latency, trickle, burst = (
            statistics.median(one[n] / was[n] for one, was in zip(found, base, strict=True))
            for n in range(3)
        )
        return latency, trickle, burst
