from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from paliadin_sidecar.intake.turnfile import ignore_lease_breaks

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="session")
def lease_breaks() -> Iterator[None]:
    """As in the daemon: an opener that meets a lease must not end the process."""
    before = signal.getsignal(signal.SIGIO)
    ignore_lease_breaks()
    yield
    signal.signal(signal.SIGIO, before)
