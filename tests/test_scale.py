"""What `make bench-scale` says: the simulated day adds up, and each part is measured."""

from __future__ import annotations

import pytest
from bench import scale
from bench.day import simulate
from support.needs import need


def test_day() -> None:
    """All turns are counted, and a user has one at a time."""
    day = simulate(2_000, users=100, hosts=4)
    assert (day.turns, sum(day.users), len(day.users)) == (2_000, 100, 4)
    most, average = day.agents
    assert average <= most
    assert day.waiting <= 2_000
    assert sum(day.users) >= most
    assert day.busiest_hour_s <= day.busiest_s


def test_one_user() -> None:
    """Whoever asks more than an agent answers queues behind himself."""
    day = simulate(2_000, users=1, hosts=3)
    assert day.queued > 0.5
    assert day.users == (0, 0, 1)
    assert day.agents[0] == 1


@pytest.mark.slow
def test_each_part_is_measured() -> None:
    """With tiny sizes, whose figures say nothing."""
    need("psql")
    text = scale.measured(scale._TRIAL)
    for part in ("callbacks a second", "in another process", "PostgreSQL 1", "kept of a turn"):
        assert part in text
