from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import anyio
import pytest
from support.outbox_box import answer
from support.waiting import PATIENCE_S

from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.outbox import Outbox
from paliadin_sidecar.outbox.upkeep import follow_commands

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_what_a_command_wrote_is_noticed(tmp_path: Path) -> None:
    """At the start, and after each write of another process; not after the outbox's own."""
    path = tmp_path / FILENAME
    changes = 0
    changed = anyio.Event()

    def on_change() -> None:
        nonlocal changes, changed
        changes += 1
        changed.set()
        changed = anyio.Event()

    with closing(Outbox(path, create=True)) as outbox, closing(Outbox(path)) as command:
        group = GroupCommit(outbox, lambda: None, lambda _: None)
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(PATIENCE_S):
                first = changed
                tasks.start_soon(follow_commands, group, 0.01, on_change)
                await first.wait()
                await group.commit(Outbox.accept, answer())
                second = changed
                command.transaction([lambda: command.pause("status_404")])
                await second.wait()
            tasks.cancel_scope.cancel()
    assert changes == 2
