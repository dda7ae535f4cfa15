"""What was found, as Markdown and as a picture."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from bench.candidates import FLOOR, SHIPPED

if TYPE_CHECKING:
    from bench.measures import Burst, Idle, Latency

__all__ = ["Grown", "Results", "quick", "write"]

_INOTIFY = "… with inotify"
_PACKAGES = (
    "aiohttp",
    "anyio",
    "asyncinotify",
    "httpx",
    "msgspec",
    "uvloop",
    "watchdog",
    "watchfiles",
)


@dataclass(frozen=True)
class Grown:
    """The daemon on a host that is not new."""

    latency_ms: list[float]
    trickle_cpu_ms: float
    burst: Burst

    @property
    def figures(self) -> tuple[float, float, float]:
        """The latency's median, and what a turn cost at a trickle and in a burst; in ms."""
        return statistics.median(self.latency_ms), self.trickle_cpu_ms, self.burst.cpu_ms


@dataclass
class Results:
    """Everything of one run."""

    commit_ms: float
    missing: dict[str, list[str]]
    latency: dict[str, Latency]
    burst: dict[str, list[Burst]] = field(default_factory=dict)
    idle: dict[str, Idle] = field(default_factory=dict)
    ready: dict[str, list[float]] = field(default_factory=dict)
    growth: dict[str, list[Grown]] = field(default_factory=dict)
    outbox_mb: float = 0.0
    drain_s: float = 0.0
    import_ms: float = 0.0
    run_turn_us: float = 0.0

    def median(self, name: str) -> float:
        """Of one candidate's latencies, in ms; none where it delivered nothing."""
        found = self.latency.get(name)
        return statistics.median(found.all_ms) if found and found.all_ms else float("nan")


def quick(results: Results) -> str:
    """The main ratios, for a terminal."""
    lines = [f"one commit of this disk: {results.commit_ms:.2f} ms"]
    floor = results.median(FLOOR)
    for name, found in results.latency.items():
        if found.all_ms:
            median = statistics.median(found.all_ms)
            lines.append(f"{name}: median {median:.2f} ms, {median / floor:.1f} × the floor")
    lines += [f"{name}: missing {', '.join(needs)}" for name, needs in results.missing.items()]
    lines += [
        f"burst of {one.asked}: {one.per_s:.0f} turns a second, {one.cpu_ms:.2f} ms of CPU a turn"
        for one in results.burst[SHIPPED]
    ]
    idle = results.idle[SHIPPED]
    lines.append(f"idle: {idle.cpu_percent:.2f} % of a core, {idle.resident_mb:.1f} MiB resident")
    lines.append(f"start to READY: {statistics.median(results.ready['empty']):.2f} s")
    return "\n".join(lines)


def write(results: Results, folder: Path, shipped: str) -> None:
    """`results.md` and `results.svg`."""
    parts = [
        _head(results), _latencies(results), _bursts(results), _idle(results),
        _growth(results, shipped), _rest(results),
    ]  # fmt: skip
    (folder / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    _draw(results, folder / "results.svg")


def _head(results: Results) -> str:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    node = _first_line("node", "--version")
    packages = ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))
    missing = "; ".join(f"{name} (needs {', '.join(n)})" for name, n in results.missing.items())
    return f"""# Results of `make bench`

{datetime.now(UTC):%Y-%m-%d}; {os.cpu_count()} cores ({cpu}), {memory_gib:.0f} GiB, Linux \
{platform.release().split("-")[0]}; Python {platform.python_version()}, SQLite \
{sqlite3.sqlite_version}, Node {node}; {packages}. One durable commit of 4 KB on this disk: \
{results.commit_ms:.2f} ms (median).

Every candidate had the same files from the same writer, 4 KB each, and the same receiver; what is
timed is from the write's end, stamped inside the file, to the receiver. Repeat it with
`make bench`, on a machine that does nothing else. What follows from the figures:
[docs/performance.md](../docs/performance.md).

Missing here: {missing or "nothing"}."""


def _latencies(results: Results) -> str:
    floor = results.median(FLOOR)
    rows = []
    for name, found in results.latency.items():
        if not found.all_ms:
            rows.append([name, "delivered nothing", *[""] * 8])
            continue
        ms = found.all_ms
        by_manner = [
            f"{statistics.median(found.ms[m]):.2f}" if found.ms[m] else ""
            for m in ("rename", "plain")
        ]
        median = statistics.median(ms)
        rows.append([
            name, f"{len(ms)}", f"{median:.2f}", f"{median / floor:.1f}",
            f"{ms[len(ms) * 99 // 100]:.2f}", f"{ms[-1]:.2f}", *by_manner,
            f"{statistics.median(found.cpu_ms):.2f}", f"{statistics.median(found.wakeups):.0f}",
        ])  # fmt: skip
        if found.missed:
            rows[-1][1] += f" (missed {found.missed})"
    heads = [
        "", "turns", "median ms", "× the floor", "p99 ms", "worst ms", "rename ms",
        "open-write-close ms", "CPU ms a turn", "wake-ups a turn",
    ]  # fmt: skip
    return (
        "## File complete → callback received, at a trickle\n\n"
        + _table(heads, rows)
        + ("\n\n![Latencies and growth](results.svg)")
    )


def _bursts(results: Results) -> str:
    rows = []
    for name, runs in results.burst.items():
        best = sorted(runs, key=lambda one: one.per_s)[len(runs) // 2]
        rows.append([
            name, f"{best.arrived:,} of {best.asked:,}", f"{best.per_s:.0f}",
            f"{best.cpu_ms:.2f}", f"{best.peak_mb:.0f}",
        ])  # fmt: skip
    heads = [
        "",
        "arrived (20 s after the last write)",
        "turns a second",
        "CPU ms a turn",
        "peak MiB",
    ]
    return "## A burst\n\n" + _table(heads, rows)


def _idle(results: Results) -> str:
    rows = [
        [name, f"{one.cpu_percent:.3f}", f"{one.wakeups_per_s:.1f}", f"{one.resident_mb:.1f}"]
        for name, one in results.idle.items()
    ]
    return "## Idle\n\n" + _table(["", "% of a core", "wake-ups a second", "resident MiB"], rows)


def _growth(results: Results, shipped: str) -> str:
    # Each beside the empty one of its own round: the machine's speed drifts.
    base = [one.figures for one in results.growth["empty"]]
    rows = []
    for what, runs in results.growth.items():
        row = [what]
        for which in range(3):
            found = [one.figures[which] for one in runs]
            times = [one / was[which] for one, was in zip(found, base, strict=True)]
            row.append(f"{statistics.median(found):.2f} ({statistics.median(times):.2f} ×)")
        rows.append(row)
    heads = ["", "median ms at a trickle", "CPU ms a turn at a trickle", "CPU ms a turn in a burst"]
    return (
        f"## Growth: {shipped}\n\n"
        + _table(heads, rows)
        + (f"\n\nThe outbox with a million turns has {results.outbox_mb:.0f} MB.")
    )


def _rest(results: Results) -> str:
    rows = [
        [f"start to READY, {what}", f"{statistics.median(runs):.2f} s (worst {max(runs):.2f})"]
        for what, runs in results.ready.items()
    ]
    rows += [
        ["start with a backlog of 10,000, until the last one arrived", f"{results.drain_s:.1f} s"],
        ["`import paliadin_client`", f"{results.import_ms:.0f} ms"],
        ["`run_turn` over a backend that answers at once", f"{results.run_turn_us:.0f} µs"],
    ]
    return "## Start, backlog, client\n\n" + _table(["", ""], rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] + ["--:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _first_line(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split("\n")[
            0
        ]
    except (OSError, subprocess.CalledProcessError):
        return "missing"


def _draw(results: Results, path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - the long form alone has it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "paliadin"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 7), layout="constrained")
    for name, found in results.latency.items():
        ms = found.all_ms
        if ms:
            ours = name in {FLOOR, SHIPPED} or name.startswith("…")
            share = [(n + 1) / len(ms) for n in range(len(ms))]
            left.plot(
                ms, share, label=name, linewidth=2 if ours else 1, linestyle="-" if ours else "--"
            )
    left.set(
        xscale="log",
        xlabel="ms from file complete to callback received",
        ylabel="share of turns",
        title="Latency, at a trickle",
    )
    left.grid(visible=True, which="both", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=6, fontsize=8)
    labels = list(results.growth)
    cpu = [statistics.median(one.burst.cpu_ms for one in runs) for runs in results.growth.values()]
    right.barh(labels[::-1], cpu[::-1])
    right.set(xlabel="CPU ms a turn in a burst", title="Cost over what lies there already")
    figure.savefig(path, metadata={"Date": None})
