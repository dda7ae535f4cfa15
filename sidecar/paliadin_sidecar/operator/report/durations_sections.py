"""How long answers took: to the receiver, and the agent before that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from paliadin_sidecar.audit import statistics
from paliadin_sidecar.audit.turn_history import Outcome
from paliadin_sidecar.operator.report import charts
from paliadin_sidecar.operator.report.charts import Words
from paliadin_sidecar.operator.report.facts import FEW_ROWS, MANY_ROWS, POLLED_MS, Facts
from paliadin_sidecar.operator.report.view import Cell, Column, Picture, Section, Table

#: Durations by which answers are shown, up to and with each.
_SPEED_BOUNDS = (
    10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000, 900_000,
    3_600_000, 21_600_000, 86_400_000,
)  # fmt: skip
_AGENT_BOUNDS = (
    1000, 2000, 5000, 10_000, 20_000, 30_000, 45_000, 60_000, 90_000, POLLED_MS, 180_000, 300_000,
    600_000, 1_800_000,
)  # fmt: skip


def speed(facts: Facts) -> Section:
    """From complete file to acknowledged."""
    say = facts.language.text
    found = [(ms, each.turn.root) for ms, each in facts.acknowledged]
    return Section(
        "speed",
        [say("section_speed_says")],
        pictures=_histogram(facts, "speed_chart", [ms for ms, _ in found], _SPEED_BOUNDS),
        tables=[_by_root(facts, say("speed_table"), found)],
        empty="" if found else say("nothing"),
    )


def agent(facts: Facts) -> Section:
    """How long the agent took, where a token has its beginning."""
    say, number = facts.language.text, facts.language.number
    found = [(ms, turn.root) for ms, turn in facts.timed]
    answered = sum(turn.answered for turn in facts.turns)
    return Section(
        "agent",
        [say("section_agent_says", known=number(len(found)), all=number(answered))],
        pictures=_histogram(
            facts, "agent_chart", [ms for ms, _ in found], _AGENT_BOUNDS, late=POLLED_MS
        ),
        tables=[_by_root(facts, say("agent_table"), found)],
        empty="" if found else say("nothing"),
    )


def late(facts: Facts) -> Section:
    """The answers that polling would have lost."""
    say, number = facts.language.text, facts.language.number
    found = sorted(facts.late, key=lambda one: -one[0])
    delivered = sum(turn.outcome is Outcome.DELIVERED for _, turn in found)
    rows = [
        [
            *facts.turn_cells(turn, turn.at),
            facts.duration(took),
            Cell(say(turn.outcome.value)),
        ]
        for took, turn in found[:FEW_ROWS]
    ]
    columns = facts.turn_columns("first_seen", "late_by", "outcome", numeric=["late_by"])
    says = say(
        "section_late_says",
        limit=facts.language.bound(POLLED_MS),
        number=number(len(found)),
        delivered=number(delivered),
    )
    left_out = facts.left_out(len(rows), len(found))
    table = Table(say("late_table"), columns, rows, sortable=True, left_out=left_out)
    return Section("late", [says], tables=[table])


def slowest(facts: Facts) -> Section:
    """The answers that took longest to be acknowledged."""
    say = facts.language.text
    found = sorted(facts.acknowledged, key=lambda one: -one[0])
    rows = [
        [
            *facts.turn_cells(each.turn, each.accepted_at),
            facts.duration(ms),
            facts.number(each.requests),
        ]
        for ms, each in found[:FEW_ROWS]
    ]
    columns = facts.turn_columns("accepted", "took", "attempts", numeric=["took", "attempts"])
    table = Table(say("slowest_table"), columns, rows, sortable=True)
    return Section(
        "slowest",
        [say("section_slowest_says")],
        tables=[table],
        empty="" if rows else say("nothing"),
    )


def _histogram(
    facts: Facts,
    name: str,
    durations: Sequence[int],
    bounds: Sequence[int],
    late: int | None = None,
) -> list[tuple[Picture, Table | None]]:
    if not durations:
        return []
    language = facts.language
    title = language.text(name)
    counts = statistics.histogram(durations, bounds)
    names = [language.text("up_to", bound=language.bound(bound)) for bound in bounds]
    names.append(language.text("beyond", bound=language.bound(bounds[-1])))
    labels = [language.bound(bound) for bound in bounds]
    labels.append(f"> {labels[-1]}")
    filled = [place for place, count in enumerate(counts) if count]
    shown = slice(filled[0], filled[-1] + 1)
    # From the first bound beyond the limit on, which is one of the bounds itself.
    border = len(counts) if late is None else bounds.index(late) + 1
    in_time = [count if place < border else 0 for place, count in enumerate(counts)]
    beyond = [count - kept for count, kept in zip(counts, in_time, strict=True)]
    most = max(counts)
    description = language.text(
        "histogram_desc",
        number=language.number(len(durations)),
        highest=language.number(most),
        at=names[counts.index(most)],
    )
    drawn = charts.bars(
        Words(name, title, description),
        labels[shown],
        [("delivered", in_time[shown]), ("late", beyond[shown])],
        [f"{name}: {language.number(n)}" for name, n in zip(names, counts, strict=True)][shown],
    )
    rows = [
        [Cell(name), facts.number(count), Cell(language.percent(count, len(durations)))]
        for name, count in list(zip(names, counts, strict=True))[shown]
    ]
    columns = [
        *facts.columns("duration", "answers", numeric=["answers"]),
        Column("%", numeric=True),
    ]
    return [(Picture(title, *drawn), Table(title, columns, rows))]


def _by_root(facts: Facts, caption: str, found: Iterable[tuple[int, str]]) -> Table:
    by_root: defaultdict[str, list[int]] = defaultdict(list)
    for ms, root in found:
        by_root[root].append(ms)
    ranked = sorted(by_root.items(), key=lambda one: -len(one[1]))
    groups = [*ranked[:MANY_ROWS]]
    if len(ranked) > 1:
        everything = [ms for durations in by_root.values() for ms in durations]
        groups.append((facts.language.text("total"), everything))
    rows = []
    for root, durations in groups:
        one = statistics.quantiles(durations)
        if one is not None:
            durations_of = (one.median, one.p90, one.p99, one.longest)
            rows.append([Cell(root), facts.number(one.number), *map(facts.duration, durations_of)])
    names = ("answers", "median", "within_90", "within_99", "longest")
    columns = facts.columns("backend", *names, numeric=names)
    left_out = facts.left_out(min(len(ranked), MANY_ROWS), len(ranked))
    return Table(caption, columns, rows, left_out=left_out)
