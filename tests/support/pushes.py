"""Pushes as an inbox hands them to its store."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from paliadin_client.store.protocol import Push
from paliadin_contract import ids
from paliadin_contract.callback import Answer, Failure, TurnCompleted, TurnFailed, encode


def push(
    turn_id: str,
    response: str | None = "Morgen endet eine Frist.",
    *,
    submitted: str | None = None,
    revision: int = 1,
    webhook_id: str | None = None,
) -> Push:
    """An answer; without a response a failure."""
    now = datetime.now(UTC)
    turn: dict[str, Any] = {
        "turn_id": turn_id,
        "submitted_turn_id": submitted,
        "revision": revision,
        "backend": "aichat",
        "persona": "paliadin",
        "host": "mriver",
        "user_id": None,
        "completed_at": now,
    }
    callback: TurnCompleted | TurnFailed
    if response is None:
        content = "empty"
        callback = TurnFailed(now, Failure(**turn, reason=content, bytes=0))
    else:
        file = response.encode()
        content = hashlib.sha256(file).hexdigest()
        answer = Answer(**turn, response=response, bytes=len(file), sha256=content, lossy=False)
        callback = TurnCompleted(now, answer)
    name = ids.webhook_id("aichat", "paliadin", turn_id, revision, content)
    return Push(webhook_id or name, callback, encode(callback))
