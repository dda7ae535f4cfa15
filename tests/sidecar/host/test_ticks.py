from __future__ import annotations

import pytest

from paliadin_sidecar.host.ticks import next_tick


@pytest.mark.parametrize(
    ("now", "expected"), [(0.0, 2.0), (0.1, 2.0), (1.999, 2.0), (2.0, 4.0), (7.5, 8.0)]
)
def test_all_wait_for_the_same_time(now: float, expected: float) -> None:
    """Whenever each began to wait, it is the same multiple, and never the present."""
    assert next_tick(now, 2.0) == expected
