"""Writes down how a submit ended, for whoever waits for the turn elsewhere, and reads it again.

What a backend said of a failure is not written: it may quote the question or the token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from paliadin_client import errors
from paliadin_client.backend import Reply


@dataclass(frozen=True, slots=True)
class Response:
    """A backend's response, with what only the process that submitted the turn knows.

    Attributes:
        reply: the response.
        host: which host gave it.
        health_ms: how long the turn took until it was sent, in milliseconds.
        answer_ms: how long from there to the response, in milliseconds.
    """

    reply: Reply = field(repr=False)
    host: str
    health_ms: float
    answer_ms: float


class _Response(Struct, frozen=True, tag="response"):
    response: Response


class _Failure(Struct, frozen=True, tag="failure"):
    error: str
    reason: str
    retryable: bool
    remedy: str


class _Timeout(Struct, frozen=True, tag="timeout"):
    turn_id: str
    deadline_s: float
    queued_s: float
    unsent: str


_decoder = msgspec.json.Decoder(_Response | _Failure | _Timeout)
#: Errors that are made of a reason alone. Others are read as what they are a kind of.
_ERRORS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, errors.PaliadinError)
    and kind.__init__ is errors.PaliadinError.__init__
}


def encode(outcome: Response | errors.PaliadinError | None) -> bytes:
    """How the submit ended, as JSON; nothing where it goes on."""
    if outcome is None:
        return b""
    if isinstance(outcome, Response):
        return msgspec.json.encode(_Response(outcome))
    if isinstance(outcome, errors.TurnTimeout):
        return msgspec.json.encode(msgspec.convert(outcome, _Timeout, from_attributes=True))
    kind = next(each.__name__ for each in type(outcome).__mro__ if each.__name__ in _ERRORS)
    return msgspec.json.encode(
        _Failure(kind, str(outcome.args[0]), outcome.retryable, outcome.remedy)
    )


def decode(left: bytes | None) -> Response | errors.PaliadinError | None:
    """What `encode` wrote; None where that is nothing, or of another version and not known here."""
    try:
        read: _Response | _Failure | _Timeout = _decoder.decode(left or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if isinstance(read, _Timeout):
        return errors.TurnTimeout(**msgspec.structs.asdict(read))
    if isinstance(read, _Failure):
        kind = _ERRORS.get(read.error, errors.PaliadinError)
        return kind(read.reason, retryable=read.retryable, remedy=read.remedy)
    return read.response
