from __future__ import annotations

import sqlite3
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING

import anyio
import pytest
from support.outbox_box import ROOT
from support.waiting import PATIENCE_S

from paliadin_sidecar.errors import Locked
from paliadin_sidecar.outbox import acceptance, database, event_rows, opening
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.opening import open_outbox, quarantine_outbox
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from support.sidecar import Sidecar

pytestmark = pytest.mark.anyio


async def test_a_lock_is_waited_for(host: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process holds it, the reason is reported once; then the outbox opens."""
    monkeypatch.setattr(opening, "BLOCKED_S", 0.01)
    monkeypatch.setattr(database, "_BUSY_TIMEOUT_S", 0.0)
    settings = Settings.from_environment(host.environ)
    host.state.mkdir(mode=0o700)
    reasons: list[str] = []
    tries = 0
    connect = sqlite3.connect

    def counted(*args: object, **kwargs: object) -> sqlite3.Connection:
        nonlocal tries
        tries += 1
        if tries == 5:
            other.execute("COMMIT")
        return connect(*args, **kwargs)  # type: ignore[call-overload,no-any-return]  # handed on

    with closing(connect(host.state / FILENAME, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite3, "connect", counted)
        async with AsyncExitStack() as stack:
            with anyio.fail_after(PATIENCE_S):
                outbox = await open_outbox(stack, settings, reasons.append)
            assert event_rows.events(outbox, 0) == []
            with pytest.raises(Locked):
                quarantine_outbox(settings)
    assert tries == 5
    assert len(reasons) == 1
    assert "another process holds its lock" in reasons[0]


async def test_what_follows_a_quarantine_is_a_successor(host: Sidecar) -> None:
    """The outbox that was moved aside is kept, and in the next one no root is new."""
    settings = Settings.from_environment(host.environ)
    for _ in range(2):
        async with AsyncExitStack() as stack:
            outbox = await open_outbox(stack, settings, lambda _: None)
            known = acceptance.is_known_root(outbox, ROOT)
        if not known:
            quarantine_outbox(settings)
    assert known
    assert len(list(host.state.rglob("outbox.db*"))) >= 2
