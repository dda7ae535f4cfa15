"""Turns by time, outcome and backend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from paliadin_sidecar.audit import statistics
from paliadin_sidecar.audit.statistics import Grid
from paliadin_sidecar.audit.turn_history import Outcome
from paliadin_sidecar.operator.report import charts
from paliadin_sidecar.operator.report.charts import Words
from paliadin_sidecar.operator.report.facts import MANY_ROWS, Facts
from paliadin_sidecar.operator.report.view import (
    Cell,
    Column,
    Entry,
    Named,
    Picture,
    Section,
    Table,
)

#: So many backends have a colour of their own, and one more is for all others.
_COLOURS = 4


def turns(facts: Facts) -> Section:
    """How many turns there were, when, of which backend, and what became of them."""
    say = facts.language.text
    grid = statistics.grid(facts.history.since, facts.history.until)
    outcomes = [Entry(outcome.value, say(outcome.value)) for outcome in Outcome]
    roots, mark_of = _roots(facts)
    by_outcome = {entry.mark: [0] * len(grid.starts) for entry in outcomes}
    by_root = {entry.mark: [0] * len(grid.starts) for entry in roots}
    for turn in facts.turns:
        step = max(0, grid.step_of(turn.at))
        by_outcome[turn.outcome.value][step] += 1
        by_root[mark_of[turn.root]][step] += 1
    kinds = [("by_outcome", outcomes, by_outcome), ("by_root", roots, by_root)]
    return Section(
        "turns",
        [say("section_turns_says", made=facts.language.time(facts.made_at))],
        meanings=[Named(entry.name, say(f"{entry.mark}_means")) for entry in outcomes],
        pictures=[_by_time(facts, grid, *kind) for kind in kinds] if facts.turns else (),
        tables=[_crossed(facts, outcomes)],
        empty="" if facts.turns else say("verdict_none"),
    )


def _roots(facts: Facts) -> tuple[list[Entry], dict[str, str]]:
    # The backends with the most turns, each with its colour, and the colour of every one.
    ranked = [root for root, _ in Counter(turn.root for turn in facts.turns).most_common()]
    named = ranked if len(ranked) <= _COLOURS + 1 else ranked[:_COLOURS]
    entries = [Entry(f"root{place}", root) for place, root in enumerate(named)]
    rest = f"root{_COLOURS}"
    if len(named) < len(ranked):
        entries.append(Entry(rest, facts.language.text("others")))
    return entries, dict.fromkeys(ranked, rest) | {each.name: each.mark for each in entries}


def _by_time(
    facts: Facts,
    grid: Grid,
    name: str,
    entries: Sequence[Entry],
    counts: dict[str, list[int]],
) -> tuple[Picture, Table]:
    language = facts.language
    title = language.text(f"{name}_{grid.unit}")
    steps = [language.step(grid.unit, at) for at in grid.starts]
    labels = [language.short_step(grid.unit, at) for at in grid.starts]
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    most = max(totals)
    description = language.text(
        "bars_desc",
        number=language.number(sum(totals)),
        highest=language.number(most),
        at=steps[totals.index(most)],
    )
    parts = [(entry.mark, counts[entry.mark]) for entry in entries]
    hints = [
        f"{step}: " + ", ".join(
            f"{entry.name} {language.number(counts[entry.mark][place])}"
            for entry in entries
            if counts[entry.mark][place]
        )
        for place, step in enumerate(steps)
    ]  # fmt: skip
    drawn = charts.bars(Words(name, title, description), labels, parts, hints)
    rows = [
        [
            Cell(step, sort=at, at=at),
            *(facts.number(counts[entry.mark][place]) for entry in entries),
            facts.number(totals[place]),
        ]
        for place, (step, at) in enumerate(zip(steps, grid.starts, strict=True))
    ]
    columns = [
        Column(language.text(f"unit_{grid.unit}")),
        *(Column(entry.name, numeric=True) for entry in entries),
        Column(language.text("total"), numeric=True),
    ]
    return Picture(title, *drawn, legend=entries), Table(title, columns, rows)


def _crossed(facts: Facts, outcomes: Sequence[Entry]) -> Table:
    say = facts.language.text
    found = Counter((turn.root, turn.outcome.value) for turn in facts.turns)
    ranked = Counter(turn.root for turn in facts.turns).most_common()
    shown = ranked[:MANY_ROWS]
    rows = [
        [
            Cell(root),
            *(facts.number(found[root, outcome.mark]) for outcome in outcomes),
            facts.number(number),
        ]
        for root, number in shown
    ]
    columns = [
        Column(say("backend")),
        *(Column(outcome.name, numeric=True) for outcome in outcomes),
        Column(say("total"), numeric=True),
    ]
    left_out = facts.left_out(len(shown), len(ranked))
    return Table(say("outcomes_by_root"), columns, rows, left_out=left_out)
