from __future__ import annotations

import queue
import time
from typing import TYPE_CHECKING

import pytest
from support.waiting import PATIENCE_S, until

from paliadin_sidecar.outbox import held
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.held import held_transactions_reported

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "_LONG_S", 0.05)
    monkeypatch.setattr(held, "_LOOK_S", 0.01)


def test_a_transaction_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported once, also where others follow that take long, and once when none does."""
    reported: queue.Queue[str | None] = queue.Queue()
    looks = 0
    with Outbox(tmp_path / FILENAME, create=True) as outbox:

        def began_at() -> float | None:
            nonlocal looks
            looks += 1
            return outbox.began_at

        def slow() -> None:
            began, seen = time.monotonic(), looks
            until("it to take long", lambda: time.monotonic() > began + 0.1)
            until("several looks more", lambda: looks > seen + 3)

        with held_transactions_reported(began_at, reported.put):
            outbox.transaction([slow])
            assert reported.get(timeout=PATIENCE_S) == "its disk needs more than 0 s to answer"
            outbox.transaction([slow])
            assert reported.empty()
            monkeypatch.setattr(held, "_WELL_S", 0.0)
            assert reported.get(timeout=PATIENCE_S) is None
            outbox.transaction([lambda: None])
    assert reported.empty()
