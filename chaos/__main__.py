"""Play the scenarios and print what became of the promise.

    python -m chaos [--quick] [--seed S] [--only NAME]… [--jobs N] [--keep DIR]

Exits 1 unless nothing was lost, cut, or there twice after the dedupe.
"""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.play import play
from chaos.world import SCENARIOS

if TYPE_CHECKING:
    from chaos.verdict import Verdict

#: Of one thing that is wrong, as a daemon can say a lot.
_MOST_SAID = 2000
_COLUMNS = (
    "scenario", "turns", "faults", "lost", "cut",
    "duplicates sent", "duplicates after dedupe", "longest recovery",
)  # fmt: skip


def main() -> int:
    """Play, print, say whether all held."""
    arguments = argparse.ArgumentParser(
        prog="python -m chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument("--quick", action="store_true", help="a slice of a minute and a half")
    arguments.add_argument("--seed", default=secrets.token_hex(4))
    arguments.add_argument("--only", action="append", choices=SCENARIOS, metavar="NAME")
    arguments.add_argument("--jobs", type=int, default=3, help="scenarios at once")
    arguments.add_argument("--keep", type=Path, help="keep the logs here")
    given = arguments.parse_args()
    names = given.only or [s.name for s in SCENARIOS.values() if s.quick or not given.quick]
    for name in [name for name in names if not works(SCENARIOS[name].needs)]:
        names.remove(name)
        print(f"not played: {name}, as this does not work here: {SCENARIOS[name].needs}")
    print(f"seed {given.seed}, {len(names)} scenarios", flush=True)
    began = time.monotonic()
    found: dict[str, Verdict] = {}
    # Each in a process of its own: they share nothing but the machine.
    with (
        tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as temp,
        ProcessPoolExecutor(given.jobs, get_context("spawn"), max_tasks_per_child=1) as pool,
    ):
        base = (given.keep or Path(temp)).resolve()
        plays = {pool.submit(play, n, given.seed, base, quick=given.quick): n for n in names}
        for done in as_completed(plays):
            found[plays[done]] = verdict = done.result()
            took = f"{time.monotonic() - began:5.0f} s"
            print(f"{took}  {'ok  ' if verdict.holds else 'FAIL'}  {plays[done]}", flush=True)
    print(table({name: found[name] for name in names}))
    for name, verdict in found.items():
        for word in ("lost", "cut", "duplicates_after_dedupe", "wrong"):
            for what in getattr(verdict, word)[:5]:
                print(f"{name}: {word.replace('_', ' ')}: {what[-_MOST_SAID:]}")
    holds = all(verdict.holds for verdict in found.values())
    print(f"{'The promise held' if holds else 'NOT KEPT'} (seed {given.seed})")
    return 0 if holds else 1


def works(command: str) -> bool:
    """Whether a scenario can be played where this must work."""
    done = subprocess.run(command, shell=True, capture_output=True, check=False)
    return done.returncode == 0


def table(found: dict[str, Verdict]) -> str:
    """The verdicts as a Markdown table."""
    rows = [_COLUMNS, tuple("---" for _ in _COLUMNS)]
    rows += [
        (
            SCENARIOS[name].title,
            f"{one.turns:,}",
            f"{one.faults:,}",
            str(len(one.lost)),
            str(len(one.cut)),
            f"{one.duplicates_sent:,}",
            str(len(one.duplicates_after_dedupe)),
            f"{one.longest_recovery_s:.1f} s",
        )
        for name, one in found.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
