"""Fixtures and settings for all tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from support.receiver import Receiver
from support.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A busy machine is no fault of the code: how long one example takes decides nothing.
settings.register_profile("paliadin", deadline=None)
settings.load_profile("paliadin")


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that the daemon runs on."""
    return "asyncio"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


@pytest.fixture
def host(tmp_path: Path, receiver: Receiver) -> Iterator[Sidecar]:
    """A host with both roots; the daemon is not started yet."""
    sidecar = Sidecar(tmp_path, receiver.url)
    sidecar.make_roots()
    yield sidecar
    sidecar.close()
