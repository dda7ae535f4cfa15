"""What was found: `results.md`, `results.svg`, and the goals in `docs/performance.md`."""

from __future__ import annotations

import math
import os
import platform
import sqlite3
import statistics
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from bench import picture
from bench.candidates import FLOOR, SHIPPED
from bench.goals import goals

if TYPE_CHECKING:
    from bench.results import Results


_BEGIN, _END = "<!-- goals: written by `make bench` -->", "<!-- end of goals -->"
_PACKAGES = (
    "aiohttp",
    "anyio",
    "asyncinotify",
    "msgspec",
    "uvicorn",
    "watchdog",
    "watchfiles",
)


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
    lines += [
        f"{name}: {results.inbox_per_s(name):.0f} callbacks a second" for name in results.inbox
    ]
    lines.append(f"start to READY: {statistics.median(results.ready['empty']):.2f} s")
    return "\n".join(lines)


def write(results: Results, folder: Path, page: Path | None) -> None:
    """Write `results.md` and `results.svg`, and the table of goals into a page of the docs."""
    goals_of_it = "## Goals\n\n" + _goals(results)
    parts = [
        _head(results), goals_of_it, _latencies(results), _bursts(results), _idle(results),
        _growth(results), _inbox(results), _rest(results),
    ]  # fmt: skip
    (folder / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (folder / "results.svg").write_text(picture.svg(results), encoding="utf-8")
    if page is not None:
        page.write_text(with_goals(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def with_goals(page: str, results: Results) -> str:
    """The page with the table of goals between its two markers."""
    head, _, rest = page.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    return f"{head}{_BEGIN}\n{_goals(results)}\n{_END}{tail}"


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

The run took {results.took_s / 60:.0f} minutes. Every candidate had the same files from the
same writer, 4 KB each, and the same receiver; what is
timed is from the write's end, stamped inside the file, to the receiver. Ours, and the product of
before, run as under the unit: somebody reads their notification socket, and the watchdog is on.
Repeat it with `make bench`, on a machine that does nothing else. What follows from the figures:
[docs/performance.md](../docs/performance.md).

Missing here: {missing or "nothing"}."""


def _goals(results: Results) -> str:
    rows = [
        [goal.text, "" if math.isnan(goal.ratio) else goal.measured, goal.verdict]
        for goal in goals(results)
    ]
    return _table(["goal", "measured", "reached"], rows)


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
            f"{found.p99_ms:.2f}", f"{ms[-1]:.2f}", *by_manner,
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
        + ("\n\n![Latencies](results.svg)")
    )


def _bursts(results: Results) -> str:
    rows = []
    for name in results.burst:
        typical = results.typical_burst(name)
        rows.append([
            name, f"{typical.arrived:,} of {typical.asked:,}", f"{typical.per_s:.0f}",
            f"{typical.cpu_ms:.2f}", f"{typical.peak_mb:.0f}",
        ])  # fmt: skip
    heads = [
        "",
        "arrived (10 s after the last write)",
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


def _growth(results: Results) -> str:
    rows = []
    for what, runs in results.growth.items():
        figures = [statistics.median(one.figures[n] for one in runs) for n in range(3)]
        pairs = zip(figures, results.growth_ratios(what), strict=True)
        longest = max(one.longest_ms for one in runs)
        rows.append([what, *(f"{ms:.2f} ({times:.2f} ×)" for ms, times in pairs), f"{longest:.1f}"])
    heads = [
        "", "median ms at a trickle", "CPU ms a turn at a trickle", "CPU ms a turn in a burst",
        "longest wait at a trickle, ms",
    ]  # fmt: skip
    return (
        f"## Growth: {SHIPPED}\n\n"
        + _table(heads, rows)
        + (f"\n\nThe outbox of the many delivered turns has {results.outbox_mb:.0f} MB.")
    )


def _inbox(results: Results) -> str:
    rows = [
        [name, f"{results.inbox_per_s(name):.0f}", f"{min(rounds):.0f} to {max(rounds):.0f}"]
        for name, rounds in results.inbox.items()
    ]
    return "## Callbacks to an app, by 8 senders\n\n" + _table(
        ["", "callbacks a second", "in each round"], rows
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
