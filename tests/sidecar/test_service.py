"""What the service carries between the stages, where a whole process would hit it by chance."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING

import anyio
import pytest
from support.sidecar import new_secret

from paliadin_sidecar.daemon import _Service
from paliadin_sidecar.intake.intake import Finding, Hint
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.outbox import Outbox
from paliadin_sidecar.outbox.records import TurnKey
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.anyio
async def test_what_was_found_while_another_held_the_outbox_is_taken(tmp_path: Path) -> None:
    """A token is read once: what it said must not go with a transaction that never began."""
    settings = Settings.from_environment(
        {
            "PALIADIN_CALLBACK_URL": "https://paliad.example.org/callback",
            "PALIADIN_CALLBACK_SECRET": new_secret(),
            "PALIADIN_STATE_DIR": str(tmp_path),
        }
    )
    path, lines = tmp_path / FILENAME, io.StringIO()
    with Outbox(path, create=True) as outbox, closing(sqlite3.connect(path)) as other:
        service = _Service(settings, outbox, lines, 1)
        service._dispatch = SimpleNamespace(wake=lambda: None, looked=anyio.Event())  # type: ignore[assignment]  # nothing is sent here
        other.execute("BEGIN IMMEDIATE")
        scanned: list[Finding] = [
            Hint(TurnKey("aichat", "paliadin", "t1"), "submitted-1", "user-1")
        ]
        async with anyio.create_task_group() as taking:
            taking.start_soon(service._intake.roots[0]._take, scanned)
            await service._dispatch.looked.wait()  # it has said that it is blocked
            assert "outbox.blocked" in lines.getvalue()
            other.rollback()
        (turn,) = outbox.timelines("submitted-1")
    assert (turn["turn_id"], turn["user"]) == ("t1", "user-1")
