"""What went wrong: outages, what was given up or was no answer, and what was sent again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paliadin_sidecar.audit import statistics
from paliadin_sidecar.audit.turn_history import Delivery, Outcome
from paliadin_sidecar.operator.diagnosis import answer_name, pause_reason
from paliadin_sidecar.operator.report import charts
from paliadin_sidecar.operator.report.charts import Words
from paliadin_sidecar.operator.report.facts import FEW_ROWS, MANY_ROWS, Facts
from paliadin_sidecar.operator.report.view import (
    Cell,
    Entry,
    Named,
    Picture,
    Section,
    Table,
)

#: The line of what waited has so many points.
_PARTS = 400


def receiver(facts: Facts) -> Section:
    """Outages of the receiver as bands over what waited."""
    language, history = facts.language, facts.history
    say = language.text
    waited = statistics.backlog(history, _PARTS)
    pauses = statistics.pauses_within(history)
    at = ""
    if waited.peak_at is not None:
        at = say("backlog_at", at=language.time(max(waited.peak_at, history.since)))
    description = say(
        "backlog_desc",
        peak=language.number(waited.peak),
        at=at,
        now=language.number(waited.now),
        pauses=language.number(len(pauses)),
        paused=language.duration(statistics.paused_ms(history)),
    )
    grid = statistics.grid(history.since, history.until)
    length = max(1, history.until - history.since)
    ticks = [
        ((start - history.since) / length, language.short_step(grid.unit, start))
        for start in grid.starts
        if start >= history.since
    ]
    bands = [
        (
            max(0.0, (pause.start - history.since) / length),
            min(1.0, ((pause.end or history.until) - history.since) / length),
        )
        for pause in pauses
    ]
    title = say("backlog_chart")
    entries = [Entry("backlog", say("backlog_legend")), Entry("band", say("outage_legend"))]
    drawn = charts.line(
        Words("backlog_chart", title, description), waited.highest, ticks, _joined(bands)
    )
    rows = [
        [
            facts.time(pause.start),
            Cell(say("lasts")) if pause.end is None else facts.time(pause.end),
            facts.duration((pause.end or facts.made_at) - pause.start),
            _pause_cell(facts, pause.why),
        ]
        for pause in pauses[-MANY_ROWS:]
    ]
    columns = facts.columns("from", "until", "took", "why", numeric=["took"])
    left_out = facts.left_out(len(rows), len(pauses))
    table = Table(say("outages_table"), columns, rows, sortable=True, left_out=left_out)
    return Section(
        "receiver",
        [say("section_receiver_says")],
        pictures=[(Picture(title, *drawn, legend=entries), None)],
        tables=[table],
        empty="" if pauses else say("no_outages"),
    )


def _joined(bands: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    # Those between which nobody would see a gap are one: a receiver may fall over every minute.
    joined: list[tuple[float, float]] = []
    for start, end in sorted(bands):
        if joined and start - joined[-1][1] < 1 / _PARTS:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _pause_cell(facts: Facts, why: str) -> Cell:
    status, error = pause_reason(why)
    return Cell(answer_name(status, error), more=facts.cause(status, error))


def attention(facts: Facts) -> Section:
    """What was given up or is no answer, why, and the command that sends it again."""
    say = facts.language.text
    found = [
        each
        for each in facts.history.deliveries.values()
        if each.turn.counted
        and each.revision == each.turn.revision
        and each.turn.outcome in (Outcome.DEAD, Outcome.FAILED)
    ]
    rows = [
        [
            *facts.turn_cells(each.turn, each.accepted_at),
            _reason(facts, each),
            Cell(
                answer_name(each.status, each.error, each.detail),
                more=_why_given_up(facts, each) if each.turn.outcome is Outcome.DEAD else "",
            ),
            Cell(facts.command(f"paliadin-sidecar replay {each.turn.turn_id}"), code=True),
        ]
        for each in found[:MANY_ROWS]
    ]
    columns = facts.turn_columns("accepted", "reason", "last_answer", "command")
    elsewhere = facts.dead - sum(each.turn.outcome is Outcome.DEAD for each in found)
    command = None
    if elsewhere > 0:
        name = say("dead_elsewhere", number=facts.language.number(elsewhere))
        command = Named(name, facts.command("paliadin-sidecar turns --state dead"))
    left_out = facts.left_out(len(rows), len(found))
    return Section(
        "attention",
        [say("section_attention_says")] if found else [],
        tables=[Table(say("attention_table"), columns, rows, sortable=True, left_out=left_out)],
        empty="" if found else say("nothing"),
        command=command,
    )


def _why_given_up(facts: Facts, delivery: Delivery) -> str:
    cause = facts.cause(delivery.status, delivery.error, delivery.detail)
    said = delivery.said
    if said is None:
        return cause
    if facts.anonymous and delivery.turn.user:
        said = said.replace(delivery.turn.user, "…")
    return f"{cause} {facts.language.text('receiver_said', said=said)}"


def _reason(facts: Facts, delivery: Delivery) -> Cell:
    name = facts.language.text(delivery.turn.outcome.value)
    reason = facts.language.reason(delivery.reason or "")
    return Cell(f"{name}: {reason}", more=delivery.why or "", more_english=True)


def twice(facts: Facts) -> Section:
    """What was sent more than once, and what the receiver may have twice."""
    say = facts.language.text
    again = [each for each in facts.deliveries if each.requests > 1]
    kinds: list[tuple[str, Callable[[Delivery], bool]]] = [
        ("twice_all", lambda _: True),
        ("twice_unanswered", _may_have_come),
        ("twice_replayed", lambda each: each.replays > 0),
        ("twice_acknowledged", lambda each: each.acknowledgements > 1),
    ]
    summary = Table(
        say("twice_summary"),
        facts.columns("section_twice", "number", numeric=["number"]),
        [[Cell(say(name)), facts.number(sum(map(is_it, again)))] for name, is_it in kinds],
    )
    found = [each for each in again if _may_have_come(each) or each.replays]
    found.sort(key=lambda each: (-each.acknowledgements, -each.unanswered, each.accepted_at))
    numbers = ("revision", "attempts", "unanswered", "replays", "acknowledged")
    rows = [
        [
            *facts.turn_cells(each.turn, each.accepted_at),
            facts.number(each.revision),
            facts.number(each.requests),
            facts.number(each.unanswered),
            facts.number(each.replays),
            facts.number(each.acknowledgements),
        ]
        for each in found[:FEW_ROWS]
    ]
    columns = facts.turn_columns("accepted", *numbers, numeric=numbers)
    left_out = facts.left_out(len(rows), len(found))
    table = Table(say("twice_table"), columns, rows, sortable=True, left_out=left_out)
    return Section("twice", [say("section_twice_says")], tables=[summary, table])


def _may_have_come(delivery: Delivery) -> bool:
    # An attempt that got no answer, and another one beside it.
    return delivery.unanswered > 0 and delivery.requests > 1
