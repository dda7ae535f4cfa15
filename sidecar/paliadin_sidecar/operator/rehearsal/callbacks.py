"""Callbacks of turns that nobody has: each has an id of its own, which no record knows. Pure."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any, NamedTuple
from uuid import uuid4

from paliadin_contract.callback import (
    REHEARSAL_HOST,
    Answer,
    Failure,
    Host,
    Ping,
    TurnCompleted,
    TurnFailed,
    encode,
)
from paliadin_contract.ids import webhook_id

#: Both are in each id, so that a receiver's log and its store show whose turns these are.
BACKEND, PERSONA = "aichat", "rehearsal"
_TEXT = "This is a rehearsal. Nobody asked, and nothing of it need be kept.\n"


class Message(NamedTuple):
    """A callback before it is signed."""

    id: str
    body: bytes


class Author:
    """Makes callbacks.

    Args:
        host: this host's name, which each of them shows as a rehearsal's.
        at: when all the turns were completed.
    """

    def __init__(self, host: str, at: datetime) -> None:
        self._host = REHEARSAL_HOST + host
        self._at = at

    def ping(self) -> Message:
        """A ping."""
        return Message(f"rehearsal_ping_{uuid4()}", encode(Ping(self._at, Host(self._host))))

    def answer(
        self, turn_id: str | None = None, *, text: str = _TEXT, revision: int = 1
    ) -> Message:
        """An answer, of a turn of its own unless one is named; then without hints of who asked."""
        content = text.encode()
        data = Answer(
            turn_id=turn_id or str(uuid4()),
            submitted_turn_id=None if turn_id else str(uuid4()),
            revision=revision,
            backend=BACKEND,
            persona=PERSONA,
            host=self._host,
            user_id=None if turn_id else str(uuid4()),
            response=text,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            lossy=False,
            completed_at=self._at,
        )
        return _message(TurnCompleted(self._at, data), data.sha256)

    def failure(self, turn_id: str | None = None, *, reason: str = "empty") -> Message:
        """A turn without an answer."""
        data = Failure(
            turn_id=turn_id or str(uuid4()),
            submitted_turn_id=None,
            revision=1,
            backend=BACKEND,
            persona=PERSONA,
            host=self._host,
            user_id=None,
            reason=reason,
            bytes=0,
            completed_at=self._at,
        )
        return _message(TurnFailed(self._at, data), reason.replace("_", "-"))

    def later_type(self) -> Message:
        """A type that no version knows."""
        data = {"host": self._host, "rehearsal": True}
        body = {"type": "rehearsal.unknown", "timestamp": self._at.isoformat(), "data": data}
        return Message(f"rehearsal_{uuid4()}", json.dumps(body).encode())

    def later_fields(self) -> Message:
        """An answer with fields that no version knows."""
        unknown = {"rehearsal": {"is": ["unknown"]}}
        return self._changed(unknown, unknown)

    def no_json(self) -> Message:
        """Half an object."""
        return Message(f"rehearsal_{uuid4()}", self.answer().body[:-40])

    def wrong_shape(self, **changed: Any) -> Message:  # noqa: ANN401 - of any type but the right one
        """An answer with these of its data's fields replaced."""
        return self._changed({}, changed)

    def _changed(self, fields: dict[str, Any], data: dict[str, Any]) -> Message:
        message = self.answer()
        body = json.loads(message.body)
        body |= fields
        body["data"] |= data
        return Message(message.id, json.dumps(body).encode())


def _message(callback: TurnCompleted | TurnFailed, content_key: str) -> Message:
    data = callback.data
    id_ = webhook_id(data.backend, data.persona, data.turn_id, data.revision, content_key)
    return Message(id_, encode(callback))
