from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from support.host import Aichat, Place, Shim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def place() -> Iterator[Place]:
    with Place() as place:
        yield place


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture
def aichat(place: Place) -> Callable[..., Aichat]:
    def start(*flags: str, persona: str = "", python: str = "") -> Aichat:
        return Aichat(place, *flags, persona=persona, python=python)

    return start


@pytest.fixture
def shim(place: Place) -> Callable[..., Shim]:
    def start(*flags: str, **environment: str) -> Shim:
        return Shim(place, *flags, **environment)

    return start
