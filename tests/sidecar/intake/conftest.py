"""Watched roots, as most tests of intake want them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from support.users import ORDINARY, without_privilege
from support.watched import (
    Place,
    make,
)

from paliadin_sidecar.intake.turnfile import TurnFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = make(tmp_path / "root")
    yield place
    place.files.close()


@pytest.fixture(params=["events", "scans"])
def heard(place: Place, request: pytest.FixtureRequest) -> Place:
    """A place whose events come, and one where they are all lost."""
    place.hears = request.param == "events"
    return place


T = TypeVar("T")


@pytest.fixture
def looks(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When any file was looked at, or tried to be opened."""
    found: list[float] = []

    def counted(real: Callable[..., T]) -> Callable[..., T]:
        def call(*args: object, **kwargs: object) -> T:
            found.append(place.now)
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(TurnFile, "inspect", counted(TurnFile.inspect))
    monkeypatch.setattr(TurnFile, "__init__", counted(TurnFile.__init__))
    return found


@pytest.fixture
def ordinary() -> Iterator[Place]:
    """A place of an ordinary user's."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "root"
        path.mkdir(mode=0o700)
        os.chown(path, ORDINARY, -1)
        Path(name).chmod(0o755)
        place = Place(path, owner=ORDINARY)
        with without_privilege():
            yield place
            path.chmod(0o700)
            place.files.close()
