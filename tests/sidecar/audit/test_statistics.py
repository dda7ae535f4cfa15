from __future__ import annotations

import statistics as reference
import time
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliadin_sidecar.audit.statistics import (
    Quantiles,
    backlog,
    grid,
    histogram,
    paused_ms,
    pauses_within,
    quantiles,
)
from paliadin_sidecar.audit.turn_history import Pause, TurnHistory

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = 86_400_000
#: 2026-11-22, 08:00 UTC.
NOW = 1_795_334_400_000


def at(text: str) -> int:
    """A local time."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def local(ms: int) -> str:
    """The day and the hour of the host's own time."""
    return datetime.fromtimestamp(ms / 1000).astimezone().strftime("%Y-%m-%d %H")


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's time zone, whose clocks are put on and back."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")  # spelt out, for a host without tzdata
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@given(st.lists(st.integers(0, 10**7), min_size=1))
def test_quantiles_are_values_that_so_many_do_not_exceed(durations: list[int]) -> None:
    """The smallest such one."""
    found = quantiles(durations)
    assert found is not None
    assert found.median == reference.median_low(durations)
    for share, value in ((50, found.median), (90, found.p90), (99, found.p99)):
        assert value in durations
        assert sum(one <= value for one in durations) * 100 >= share * len(durations)
        assert sum(one < value for one in durations) * 100 < share * len(durations)
    assert (found.number, found.longest) == (len(durations), max(durations))


def test_quantiles_of_few() -> None:
    """None has none; one is all of them."""
    assert quantiles([]) is None
    assert quantiles([7]) == Quantiles(1, 7, 7, 7, 7)
    assert quantiles(range(1, 101)) == Quantiles(100, 50, 90, 99, 100)


@given(st.lists(st.integers(0, 300)))
def test_a_histogram_counts_each_once(durations: list[int]) -> None:
    """Up to and with a bound."""
    bounds = (10, 100, 200)
    counts = histogram(durations, bounds)
    assert sum(counts) == len(durations)
    assert counts[0] == sum(one <= 10 for one in durations)
    assert counts[2] == sum(100 < one <= 200 for one in durations)
    assert counts[3] == sum(one > 200 for one in durations)


@pytest.mark.parametrize(
    ("days", "unit"),
    [(0.001, "hour"), (1, "hour"), (3, "hour"), (4, "day"), (400, "day"), (401, "month")],
)
def test_the_longer_the_period_the_longer_its_steps(days: float, unit: str) -> None:
    """Each moment of it is in a step, and the steps follow each other."""
    until = NOW + round(days * DAY)
    found = grid(NOW, until)
    assert found.unit == unit
    assert found.starts[0] <= NOW < until
    assert found.step_of(NOW) == 0
    assert found.step_of(until - 1) == len(found.starts) - 1
    assert sorted(set(found.starts)) == list(found.starts)


def test_days_are_those_of_the_calendar(berlin: None) -> None:
    """Also where one has 23 or 25 hours."""
    found = grid(at("2026-10-20 15:00"), at("2026-10-28 03:00"))
    assert [local(one) for one in found.starts] == [f"2026-10-{day} 00" for day in range(20, 29)]
    lengths = Counter(b - a for a, b in zip(found.starts, found.starts[1:], strict=False))
    assert lengths == {DAY: 7, DAY + 3_600_000: 1}


def test_an_hour_that_comes_twice_is_two_steps(berlin: None) -> None:
    """No turn of either is lost, and none counted twice."""
    found = grid(at("2026-10-25 00:00"), at("2026-10-25 06:00"))
    assert len(found.starts) == 7
    assert len({found.step_of(one) for one in found.starts}) == 7


def test_months_are_those_of_the_calendar() -> None:
    """Whatever their length."""
    found = grid(at("2024-12-31 23:00"), at("2026-03-01 00:00"))
    shown = [local(one) for one in found.starts]
    assert shown[:4] == ["2024-12-01 00", "2025-01-01 00", "2025-02-01 00", "2025-03-01 00"]
    assert shown[-1] == "2026-02-01 00"
    assert len(shown) == 15


def past(*changes: tuple[int, int], before: int = 0, length: int = 100) -> TurnHistory:
    return TurnHistory(0, length, changes=list(changes), backlog_before=before)


def test_the_backlog_of_each_part() -> None:
    """The most that waited in it, also where nothing changed; what came after the end is not."""
    found = backlog(past((5, 1), (6, 1), (7, -1), (55, -1), (100, 9)), 10)
    assert list(found.highest) == [2, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert (found.peak, found.peak_at, found.now) == (2, 6, 0)


def test_the_backlog_of_a_part_that_something_left() -> None:
    """It waited in that part too."""
    assert list(backlog(past((35, -3), before=3), 10).highest) == [3, 3, 3, 3, 0, 0, 0, 0, 0, 0]


def test_a_backlog_of_before() -> None:
    """It is there from the first moment on."""
    found = backlog(past(before=4), 5)
    assert (list(found.highest), found.peak, found.peak_at, found.now) == ([4] * 5, 4, 0, 4)
    assert backlog(past(), 5).peak_at is None


@given(st.lists(st.tuples(st.integers(0, 120), st.sampled_from([1, -1]))), st.integers(1, 40))
def test_no_part_of_the_backlog_is_above_its_peak(steps: list[tuple[int, int]], parts: int) -> None:
    """And one has it."""
    found = backlog(past(*sorted(steps), before=len(steps)), parts)
    assert max(found.highest) == found.peak
    assert len(found.highest) == parts


def test_pauses_that_touch_the_period() -> None:
    """With their own length in the list, and with what is of the period in the sum."""
    pauses = [Pause(-20, -10, "a"), Pause(-5, 5, "b"), Pause(40, 50, "c"), Pause(90, None, "d")]
    found = TurnHistory(0, 100, pauses=[*pauses, Pause(100, None, "e")])
    assert pauses_within(found) == pauses[1:]
    assert paused_ms(found) == 5 + 10 + 10
