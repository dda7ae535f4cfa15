"""One scenario from its start to its verdict, in whatever process."""

from __future__ import annotations

import importlib
import random
import traceback
from typing import TYPE_CHECKING

from chaos.verdict import Verdict
from chaos.world import SCENARIOS, World

if TYPE_CHECKING:
    from pathlib import Path


for _group in (
    "crashes",
    "load",
    "receivers",
    "refusals",
    "directories",
    "events",
    "writing",
    "disks",
    "flushes",
    "power",
    "clocks",
    "laptops",
    "machine",
    "many",
):
    importlib.import_module(f"chaos.{_group}")


def play(name: str, seed: str, base: Path, *, quick: bool) -> Verdict:
    """Play it in an empty directory of its own; whatever breaks is in the verdict."""
    chosen = SCENARIOS[name]
    where = base / name
    where.mkdir(parents=True)
    rng = random.Random(f"{seed} {name}")
    try:
        with World(where, rng, quick=quick, environ=chosen.environ) as world:
            try:
                chosen.play(world)
            finally:
                (where / "daemon.log").write_bytes(world.host.output)
            return world.verdict()
    except Exception:  # noqa: BLE001 - what broke is reported, and the others go on
        return Verdict(wrong=[traceback.format_exc()])
