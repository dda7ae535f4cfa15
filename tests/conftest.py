"""Fixtures for tests on the real daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.receiver import Receiver
from support.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
