"""Checks and builds the names that travel: turn ids, labels, webhook ids."""

from __future__ import annotations

import re

from paliadin_contract.errors import BadId

#: No dot (it delimits what is signed) and no slash (ids meet paths).
TURN_ID_PATTERN = r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z"
#: A backend or a persona. No underscore: it delimits the webhook id.
LABEL_PATTERN = r"\A[a-z0-9-]{1,32}\Z"

_TURN_ID = re.compile(TURN_ID_PATTERN)
_LABEL = re.compile(LABEL_PATTERN)


def is_turn_id(text: str) -> bool:
    """Whether `text` may name a turn."""
    return _TURN_ID.match(text) is not None


def is_label(text: str) -> bool:
    """Whether `text` may name a backend or a persona."""
    return _LABEL.match(text) is not None


def turn_id_of(filename: str, suffix: str = ".txt") -> str | None:
    """The turn that a file of this name belongs to, or None where it is no turn's file."""
    stem = filename.removesuffix(suffix)
    return stem if stem != filename and is_turn_id(stem) else None


def webhook_id(backend: str, persona: str, turn_id: str, revision: int, content_key: str) -> str:
    """The id under which one revision is pushed, the same at every attempt.

    Args:
        backend: label of the backend that answered.
        persona: label of the assistant.
        turn_id: id of the turn.
        revision: 1 for the first content, then counting up.
        content_key: hex SHA-256 of the content, of which 16 digits are kept, or a failure's reason.

    Raises:
        BadId: one of the parts is not what it must be.
    """
    for text, good, what in (
        (backend, is_label(backend), "backend"),
        (persona, is_label(persona), "persona"),
        (turn_id, is_turn_id(turn_id), "turn id"),
    ):
        if not good:
            raise BadId(f"{text!r} is no {what}")
    return f"{backend}_{persona}_{turn_id}_{revision}_{content_key[:16]}"
