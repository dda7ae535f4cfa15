"""All that is on the page."""

from __future__ import annotations

from paliadin_sidecar.audit import statistics
from paliadin_sidecar.audit.turn_history import Outcome
from paliadin_sidecar.operator.language import zone_name
from paliadin_sidecar.operator.report import durations_sections, trouble_sections, turns_section
from paliadin_sidecar.operator.report.facts import POLLED_MS, Facts
from paliadin_sidecar.operator.report.view import Named, Page, Verdict

#: Undelivered for longer than this is wrong, as for `status`.
_OVERDUE_MS = 300_000


def page(
    facts: Facts, *, host: str, version: str, oldest: int | None, asked_since: int | None
) -> Page:
    """The page of these facts.

    Args:
        facts: what it shows.
        host: this host's name.
        version: the program's.
        oldest: when the oldest event that is kept was written, in epoch milliseconds; None where
            there is none.
        asked_since: the period's beginning that was asked for, where that is earlier.
    """
    language, history = facts.language, facts.history
    say = language.text
    since, until = language.minute(history.since), language.minute(history.until)
    return Page(
        title=say("title", since=since, until=until),
        period=say("period", since=since, until=until),
        host=host,
        zone=say("zone", zone=zone_name(history.until)),
        made=say("made", version=version, made=language.time(facts.made_at)),
        verdict=_verdict(facts),
        cards=_cards(facts),
        sections=[
            turns_section.turns(facts),
            durations_sections.speed(facts),
            durations_sections.agent(facts),
            durations_sections.late(facts),
            trouble_sections.receiver(facts),
            trouble_sections.attention(facts),
            durations_sections.slowest(facts),
            trouble_sections.twice(facts),
        ],
        notes=_notes(facts, oldest, asked_since),
    )


def _number_of(facts: Facts, outcome: Outcome) -> int:
    return sum(turn.outcome is outcome for turn in facts.turns)


def _verdict(facts: Facts) -> Verdict:
    say, number = facts.language.text, facts.language.number
    dead, pending = _number_of(facts, Outcome.DEAD), _number_of(facts, Outcome.PENDING)
    sentences = []
    if dead:
        sentences.append(say("verdict_dead", dead=number(dead)))
    if pending:
        sentences.append(say("verdict_pending", pending=number(pending)))
    is_paused = any(pause.end is None for pause in facts.history.pauses)
    if is_paused:
        sentences.append(say("verdict_paused"))
    if not sentences:
        name = "well" if facts.turns else "none"
        return Verdict("well" if facts.turns else "quiet", [say(f"verdict_{name}")])
    # What came just now is on its way.
    overdue = any(
        turn.outcome is Outcome.PENDING and turn.at < facts.made_at - _OVERDUE_MS
        for turn in facts.turns
    )
    return Verdict("attention" if dead or overdue or is_paused else "quiet", sentences)


def _cards(facts: Facts) -> list[Named]:
    language, turns = facts.language, facts.turns
    number, duration = language.number, language.duration
    answered = _number_of(facts, Outcome.DELIVERED)
    speed = statistics.quantiles(ms for ms, _ in facts.acknowledged)
    agent = statistics.quantiles(ms for ms, _ in facts.timed)
    late = sum(turn.outcome is Outcome.DELIVERED for _, turn in facts.late)
    dead, failed = _number_of(facts, Outcome.DEAD), _number_of(facts, Outcome.FAILED)
    pauses = statistics.pauses_within(facts.history)
    unknown = "\N{EN DASH}"

    def card(name: str, value: str, **values: str) -> Named:
        return Named(language.text(name), language.text(f"{name}_note", **values), value)

    return [
        card("turns", number(len(turns))),
        card(
            "answered",
            language.percent(answered, len(turns)) if turns else unknown,
            number=number(answered),
            all=number(len(turns)),
        ),
        card(
            "delivery_time",
            duration(speed.median) if speed else unknown,
            number=number(speed.number if speed else 0),
            p99=duration(speed.p99) if speed else unknown,
        ),
        card(
            "agent_time",
            duration(agent.median) if agent else unknown,
            number=number(agent.number if agent else 0),
        ),
        card("late", number(late), limit=language.bound(POLLED_MS)),
        card("attention", number(dead + failed), dead=number(dead), failed=number(failed)),
        card(
            "outage",
            duration(statistics.paused_ms(facts.history)) if pauses else number(0),
            number=number(len(pauses)),
        ),
        card(
            "again",
            number(sum(each.requests > 1 for each in facts.deliveries)),
            twice=number(sum(each.acknowledgements > 1 for each in facts.deliveries)),
        ),
    ]


def _notes(facts: Facts, oldest: int | None, asked_since: int | None) -> list[str]:
    say, history, number = facts.language.text, facts.history, facts.language.number
    notes = [
        say("note_source_none")
        if oldest is None
        else say("note_source", oldest=facts.language.time(oldest))
    ]
    if asked_since is not None:
        notes.append(say("note_cut", since=facts.language.time(asked_since)))
    if history.old_files:
        notes.append(say("note_old_files", number=number(history.old_files)))
    if history.unsent_changes:
        notes.append(say("note_unsent", number=number(history.unsent_changes)))
    notes.append(say("note_anonymous" if facts.anonymous else "note_users"))
    notes.append(say("note_answers"))
    return notes
