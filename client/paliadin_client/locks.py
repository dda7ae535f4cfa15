"""A lock for each key, that is gone when nobody holds or awaits it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import anyio

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["KeyedLocks"]


class KeyedLocks:
    """`async with locks[key]:` is held by one task at a time for each key."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Hashable, anyio.Lock] = WeakValueDictionary()

    def __getitem__(self, key: Hashable) -> anyio.Lock:
        return self._locks.setdefault(key, anyio.Lock())
