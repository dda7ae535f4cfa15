"""The callback's vectors: frozen bytes that every implementation must agree on."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct


class Vector(Struct, frozen=True, forbid_unknown_fields=True):
    """One callback as the sender makes it."""

    name: str
    secrets: list[str]
    """Those that the sender signs with, in the order of the signatures."""
    id: str
    timestamp: int
    """When it is sent, in seconds since 1970."""
    body: str
    signature: str
    file: str | None = None
    """The turn file, in base64, where there is one."""


class Request(Struct, frozen=True, forbid_unknown_fields=True):
    """One request as a receiver meets it."""

    name: str
    secrets: list[str]
    """Those that the receiver has."""
    now: int
    """The receiver's clock, in seconds since 1970."""
    headers: dict[str, str]
    body: str


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    callbacks: list[Vector]
    accepted: list[Request]
    rejected: list[Request]


PATH = Path(__file__).parents[1] / "contract" / "vectors.json"
_file = msgspec.json.decode(PATH.read_bytes(), type=_File)

CALLBACKS = _file.callbacks
ACCEPTED = _file.accepted
#: Each differs from a good request in one way.
REJECTED = _file.rejected
