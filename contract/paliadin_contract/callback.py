"""Encodes and decodes the callback's bodies: built once, sent unchanged, read by any receiver.

The shapes are described for receivers in `docs/protocol.md`.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from paliadin_contract.errors import MalformedCallback
from paliadin_contract.ids import LABEL_PATTERN, TURN_ID_PATTERN

_Id = Annotated[str, Meta(pattern=TURN_ID_PATTERN)]
_Label = Annotated[str, Meta(pattern=LABEL_PATTERN)]
_Utc = Annotated[datetime, Meta(tz=True)]

#: Why a turn file cannot become an answer: what a sidecar of this version says.
Reason = Literal["too_large", "empty", "untrusted"]


class _Turn(Struct, frozen=True, kw_only=True):
    turn_id: _Id
    submitted_turn_id: _Id | None
    """Hint from the turn's token: the id under which the caller waits."""
    revision: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    """At most what a database's integer holds: a larger one could never be stored."""
    backend: _Label
    persona: _Label
    host: str
    user_id: _Id | None
    """Hint from the turn's token. No proof of anything."""


class Answer(_Turn, frozen=True, kw_only=True):
    """A whole answer."""

    response: str
    """The file as text; what was no UTF-8 became U+FFFD."""
    bytes: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    """Of the file's bytes."""
    lossy: bool
    """Whether a byte was no UTF-8, so that `response` is not exactly the file."""
    completed_at: _Utc
    """The file's modification time."""

    def __repr__(self) -> str:
        """Without the answer: this may end in a log."""
        return f"Answer({self.turn_id!r}, revision={self.revision}, bytes={self.bytes})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        """The same: rich prefers this one, and msgspec's own shows every field."""
        return [("turn_id", self.turn_id), ("revision", self.revision), ("bytes", self.bytes)]


class Failure(_Turn, frozen=True, kw_only=True):
    """A turn whose file cannot become an answer."""

    reason: Annotated[str, Meta(pattern=r"\A[a-z0-9_-]{1,64}\Z")]
    """A `Reason`, or one of a later version."""
    bytes: Annotated[int, Meta(ge=0)]
    completed_at: _Utc


class Host(Struct, frozen=True):
    """Who asks whether the receiver is well."""

    host: str


class TurnCompleted(Struct, frozen=True, tag_field="type", tag="turn.completed"):
    """A turn has an answer."""

    timestamp: _Utc
    data: Answer


class TurnFailed(Struct, frozen=True, tag_field="type", tag="turn.failed"):
    """A turn will have no answer from this file."""

    timestamp: _Utc
    data: Failure


class Ping(Struct, frozen=True, tag_field="type", tag="ping"):
    """Is the receiver well?"""

    timestamp: _Utc
    data: Host


class Unknown(Struct, frozen=True):
    """A type that this version does not know: a receiver acknowledges it and goes on."""

    type: str


#: What `host` begins with in a rehearsal, whose turns nobody asked; the sender's own name follows.
REHEARSAL_HOST = "rehearsal of "

Callback = TurnCompleted | TurnFailed | Ping

_decoder = msgspec.json.Decoder(Callback)
_head = msgspec.json.Decoder(Unknown)
_KNOWN = frozenset({"turn.completed", "turn.failed", "ping"})
#: Where msgspec wants one of a few words, its error quotes what it read instead.
_QUOTED = re.compile(r"(?<=value )['\"].*['\"]", re.DOTALL)


def encode(callback: Callback) -> bytes:
    """The body's bytes: JSON in UTF-8, the fields in the order of `docs/protocol.md`."""
    return msgspec.json.encode(callback)


def decode(body: bytes | bytearray) -> Callback | Unknown:
    """Read a body whose signature has been verified.

    Fields that this version does not know are passed over.

    Raises:
        MalformedCallback: the body is not JSON, or not of its type's shape. The text names
            the field, never its value.
    """
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedCallback(_shape_only(exc)) from None


def _decode(body: bytes | bytearray) -> Callback | Unknown:
    try:
        callback: Callback = _decoder.decode(body)
    except msgspec.ValidationError:
        # Only what is none of the known types is read a second time.
        head = _head.decode(body)
        if head.type in _KNOWN:
            raise
        return head
    return callback


def _shape_only(exc: Exception) -> str:
    # A validation error names expectation and path; other errors may quote what they read.
    if isinstance(exc, msgspec.ValidationError):
        return _QUOTED.sub("…", str(exc))
    return f"not JSON in UTF-8 ({type(exc).__name__})"
