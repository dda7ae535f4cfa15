from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from paliadin_sidecar.delivery import breaker
from paliadin_sidecar.outbox import group_commit
from paliadin_sidecar.outbox.database import FILENAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


from support.dispatching import Harness


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """Its pauses, and its waits for a full disk, last for instants."""
    monkeypatch.setattr(breaker, "_FIRST_PING_S", 0.01)
    monkeypatch.setattr(breaker, "_MAX_PING_S", 0.02)
    monkeypatch.setattr(group_commit, "BLOCKED_S", 0.01)
    harness = Harness(tmp_path / FILENAME)
    yield harness
    harness.outbox.close()
