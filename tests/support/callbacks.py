"""Callbacks as a sender signs them."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta

from paliadin_contract.ids import webhook_id
from paliadin_contract.signature import Keys
from support.sidecar import new_secret

SECRET = new_secret()
KEYS = Keys([SECRET])
#: What no log may hold.
MARKER = "MARKER of an answer"


def callback(
    turn_id: str, revision: int = 1, response: str | None = MARKER, **changed: object
) -> tuple[bytes, dict[str, str]]:
    """A signed callback; without a response it is a failure."""
    known = {"turn_id": turn_id, "submitted_turn_id": None, "revision": revision}
    known |= {"backend": "aichat", "persona": "paliadin", "host": "mriver", "user_id": None}
    known |= {"reason": "empty"} if response is None else {"response": response}
    kind = "turn.failed" if response is None else "turn.completed"
    body = json.dumps({"type": kind, "data": known | changed}).encode()
    digest = hashlib.sha256(body).hexdigest()
    return body, sign(body, webhook_id("aichat", "paliadin", turn_id, revision, digest))


def sign(body: bytes, id_: str = "test", keys: Keys = KEYS, age: float = 0) -> dict[str, str]:
    """The headers of a callback that was sent `age` seconds ago."""
    return keys.sign(id_, body, datetime.now(UTC) - timedelta(seconds=age))
