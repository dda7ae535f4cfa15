"""The intake of all roots, over a real outbox and real directories."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import anyio
import pytest
from support.sidecar import new_secret
from support.tokens import unsigned_token

from paliadin_sidecar.intake.service import IntakeService
from paliadin_sidecar.outbox import queries
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.anyio
async def test_what_was_found_while_another_held_the_outbox_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token is read once: what it said must not go with a transaction that never began."""
    monkeypatch.setattr("paliadin_sidecar.outbox.group_commit.BLOCKED_S", 0.01)
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    settings = Settings.from_environment(
        {
            "PALIADIN_CALLBACK_URL": "https://paliad.example.org/callback",
            "PALIADIN_CALLBACK_SECRET": new_secret(),
            "PALIADIN_STATE_DIR": str(tmp_path),
            "PALIADIN_WATCH": f"aichat/paliadin={root}",
            "PALIADIN_EVENTS": "inotify",
        }
    )
    blocked, unblocked = anyio.Event(), anyio.Event()

    async def record(name: str, **fields: object) -> None:
        pass

    path = tmp_path / FILENAME
    with Outbox(path, create=True) as outbox, closing(sqlite3.connect(path)) as other:
        group = GroupCommit(outbox, lambda: None, lambda _: blocked.set())
        intake = IntakeService(
            settings,
            group,
            record=record,
            on_accepted=lambda _: None,
            on_unblocked=unblocked.set,
            on_no_events=lambda _: None,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(intake.run)
            await intake.began()
            other.execute("BEGIN IMMEDIATE")
            (root / "t1.jwt").write_text(unsigned_token(jti="submitted-1", sub="user-1"))
            await blocked.wait()
            (root / "t1.jwt").unlink()
            other.rollback()
            await unblocked.wait()
            tasks.cancel_scope.cancel()
        intake.close()
        (turn,) = queries.timelines(outbox, "submitted-1")
    assert (turn["turn_id"], turn["user"]) == ("t1", "user-1")
