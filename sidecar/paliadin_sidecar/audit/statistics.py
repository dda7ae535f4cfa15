"""Figures about turns, each of which is exact. Pure: no clock, no I/O.

Times are epoch milliseconds, durations milliseconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from paliadin_sidecar.audit.turn_history import Pause, TurnHistory

_HOUR_S, _DAY_S = 3600, 86_400
#: A period of so many days is shown by the hour, a longer one by the day, one beyond by the month.
_HOURS_UP_TO_DAYS, _DAYS_UP_TO_DAYS = 3, 400


@dataclass(frozen=True)
class Quantiles:
    """Of so many durations those that a share does not exceed, by the nearest rank.

    So each is one that occurred.
    """

    number: int
    median: int
    p90: int
    p99: int
    longest: int


def quantiles(durations: Iterable[int]) -> Quantiles | None:
    """None where there are no durations."""
    ordered = sorted(durations)
    if not ordered:
        return None
    median, p90, p99 = (ordered[(share * len(ordered) + 99) // 100 - 1] for share in (50, 90, 99))
    return Quantiles(len(ordered), median, p90, p99, ordered[-1])


def histogram(durations: Iterable[int], bounds: Sequence[int]) -> list[int]:
    """How many are at most each bound and more than the one before; the last: more than all."""
    found = [0] * (len(bounds) + 1)
    for duration in durations:
        found[bisect_left(bounds, duration)] += 1
    return found


@dataclass(frozen=True)
class Grid:
    """A period cut into hours, days or months of the local time.

    Attributes:
        unit: what each of its steps is.
        starts: when each begins; the first may begin before the period.
    """

    unit: Literal["hour", "day", "month"]
    starts: Sequence[int]

    def step_of(self, at: int) -> int:
        """The number of the step in which a moment of the period is."""
        return bisect_right(self.starts, at) - 1


def grid(since: int, until: int) -> Grid:
    """The steps by which a period is shown."""
    days = (until - since) / 1000 / _DAY_S
    first = datetime.fromtimestamp(since / 1000).replace(minute=0, second=0, microsecond=0)  # noqa: DTZ006 - the local time, step by step
    if days <= _HOURS_UP_TO_DAYS:
        # Where a clock is put back an hour comes twice, so these are counted.
        begin = round(first.timestamp()) * 1000
        starts = [*range(begin, until, _HOUR_S * 1000)]
        return Grid("hour", starts)
    is_day = days <= _DAYS_UP_TO_DAYS
    at = first.replace(hour=0) if is_day else first.replace(hour=0, day=1)
    starts = []
    while (ms := round(at.timestamp() * 1000)) < until:
        starts.append(ms)
        at = at + timedelta(days=1) if is_day else (at + timedelta(days=31)).replace(day=1)
    return Grid("day" if is_day else "month", starts)


@dataclass(frozen=True)
class Backlog:
    """How many deliveries waited.

    Attributes:
        highest: the most of each part of the period, all of which last equally long.
        peak: the most of all.
        peak_at: when that was reached first; None where nothing ever waited.
        now: how many waited when the period ended.
    """

    highest: Sequence[int]
    peak: int
    peak_at: int | None
    now: int


def backlog(history: TurnHistory, parts: int) -> Backlog:
    """How many deliveries waited in each of so many equal parts of the period."""
    waiting = history.backlog_before
    highest = [0] * parts
    length = max(1, history.until - history.since)
    peak, peak_at = waiting, history.since if waiting else None
    part = 0
    highest[0] = waiting
    for at, step in history.changes:
        if at >= history.until:
            break
        reached = min(parts - 1, max(0, at - history.since) * parts // length)
        while part < reached:
            part += 1
            highest[part] = waiting
        waiting += step
        highest[part] = max(highest[part], waiting)
        if waiting > peak:
            peak, peak_at = waiting, at
    for rest in range(part + 1, parts):
        highest[rest] = waiting
    return Backlog(highest, peak, peak_at, waiting)


def pauses_within(history: TurnHistory) -> list[Pause]:
    """The receiver's pauses that touch the period, in their order and as long as they were."""
    return [
        pause
        for pause in history.pauses
        if pause.start < history.until and (pause.end is None or pause.end > history.since)
    ]


def paused_ms(history: TurnHistory) -> int:
    """For how long of the period the receiver was not well."""
    return sum(
        min(history.until, pause.end or history.until) - max(history.since, pause.start)
        for pause in pauses_within(history)
    )
