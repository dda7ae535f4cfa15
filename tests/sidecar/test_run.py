"""The daemon as a process: files in, callbacks out."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.receiver import Receiver
    from support.sidecar import Sidecar


def test_an_atomic_rename_is_pushed_whole(host: Sidecar, receiver: Receiver) -> None:
    """A file that is renamed into place arrives as it is, signed."""
    host.start()
    data = host.answer("t1", "Grüße, 你好")
    request = receiver.wait("t1")
    body = request.json
    assert request.id == f"aichat_paliadin_t1_1_{hashlib.sha256(data).hexdigest()[:16]}"
    assert body["type"] == "turn.completed"
    assert body["data"]["response"].encode() == data
    receiver.verify_all(host.secret)
    assert host.stop() == 0
