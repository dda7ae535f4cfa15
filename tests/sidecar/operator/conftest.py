"""What the tests of the commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.receiver import Receiver
    from support.sidecar import Sidecar


@pytest.fixture
def delivered(host: Sidecar, receiver: Receiver) -> Sidecar:
    """A running daemon that delivered t1, and t2 twice."""
    host.start()
    host.answer("t1", "eins")
    host.answer("t2", "zwei")
    host.wait_event("delivery.delivered", turn_id="t2", revision=1)
    host.answer("t2", "drei")
    host.wait_event("delivery.delivered", turn_id="t2", revision=2)
    host.wait_event("delivery.delivered", turn_id="t1")
    return host
