"""Removes what nobody can ask for any more, in small steps, by whoever comes to it first.

Each step is a transaction of its own, and passes over the rows that another process has at hand.
A process takes one of each every few seconds, which is more than it receives meanwhile.
"""

from __future__ import annotations

from typing import LiteralString

from paliadin_client.store.postgresql.database import Database
from paliadin_client.store.protocol import KEEP_BODIES_S, KEEP_IDS_S

#: How long a step may take: a large body is thousands of rows.
_STEP_S = 60.0

# The bodies of answers that nobody waits for any more.
_BODIES = """
    UPDATE paliadin.turns SET body = NULL WHERE turn IN (
        SELECT turn FROM paliadin.turns
        WHERE body IS NOT NULL AND stored_at < now() - %(bodies_s)s * interval '1 second'
        ORDER BY stored_at LIMIT 200 FOR UPDATE SKIP LOCKED)"""
# What backends said, as long ago.
_REPLIES = """
    DELETE FROM paliadin.replies WHERE turn IN (
        SELECT turn FROM paliadin.replies
        WHERE left_at < now() - %(bodies_s)s * interval '1 second'
        ORDER BY left_at LIMIT 200 FOR UPDATE SKIP LOCKED)"""
# The ids of pushes that no sidecar sends once more.
_PUSHES = """
    DELETE FROM paliadin.pushes WHERE webhook_id IN (
        SELECT webhook_id FROM paliadin.pushes
        WHERE stored_at < now() - %(ids_s)s * interval '1 second'
        ORDER BY stored_at LIMIT 1000 FOR UPDATE SKIP LOCKED)"""
# The ranks of their turns.
_TURNS = """
    DELETE FROM paliadin.turns WHERE turn IN (
        SELECT turn FROM paliadin.turns
        WHERE stored_at < now() - %(ids_s)s * interval '1 second'
        ORDER BY stored_at LIMIT 1000 FOR UPDATE SKIP LOCKED)"""
# The windows of users who were not there for as long.
_WINDOWS = """
    DELETE FROM paliadin.windows WHERE name IN (
        SELECT name FROM paliadin.windows
        WHERE used_at < now() - %(ids_s)s * interval '1 second'
            AND (expires_at IS NULL OR expires_at < now())
        LIMIT 1000 FOR UPDATE SKIP LOCKED)"""

_STEPS: tuple[LiteralString, ...] = (_BODIES, _REPLIES, _PUSHES, _TURNS, _WINDOWS)


async def prune(database: Database) -> None:
    """Take one step of each kind.

    Raises:
        StoreFailed: PostgreSQL did not do one, or did not answer.
    """
    values = {"bodies_s": KEEP_BODIES_S, "ids_s": KEEP_IDS_S}
    for statement in _STEPS:
        await database.rows(statement, values, _STEP_S)
