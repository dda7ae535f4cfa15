"""Remembers pushes in a SQLite database, and everything else in this process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from paliadin_client.dedupe import DedupeFailed, Sqlite
from paliadin_client.store.memory import MemoryStore
from paliadin_client.store.protocol import Push, Receipt, StoreFailed, Verdict
from paliadin_contract.rank import outranks, rank_of

__all__ = ["SqliteStore"]


class SqliteStore(MemoryStore):
    """As `Sqlite`, by the protocol of stores.

    Raises:
        ConfigError: as there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._dedupe = Sqlite(path)

    @asynccontextmanager
    async def receive(self, push: Push) -> AsyncIterator[Receipt]:
        """As `Store.receive`."""
        claim, rank = self._dedupe.claim, rank_of(push.callback)
        try:
            with claim(f"turn {push.turn}") as turn_is_ours, claim(f"id {push.webhook_id}") as ours:
                if not (turn_is_ours and ours):
                    yield Receipt(Verdict.BUSY)
                    return
                known, standing = await self._dedupe.find(push.webhook_id, push.turn)
                if known:
                    yield Receipt(Verdict.KNOWN)
                elif not outranks(rank, standing):
                    yield Receipt(Verdict.OUTRANKED)
                else:
                    yield Receipt(Verdict.NEW)
                    now = datetime.now(UTC)
                    await self._dedupe.remember(push.webhook_id, push.turn, rank, now)
                    self._remember(push, rank)
        except DedupeFailed as exc:
            raise StoreFailed(str(exc)) from None
