"""Writes down how a submit ended, for whoever waits for the turn elsewhere, and reads it again.

What a backend said of a failure is not written: it may quote the question or the token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from paliadin_client import errors
from paliadin_client.backend import Reply
from paliadin_contract.trailer import Trailer


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


class _Response(Struct, frozen=True, kw_only=True, tag="response"):
    text: str
    trailer: Trailer | None
    whole: bool
    turn_id: str | None
    conversation_id: str | None
    duration_ms: float | None
    host: str
    health_ms: float
    answer_ms: float


class _Failure(Struct, frozen=True, kw_only=True, tag="failure"):
    error: str
    reason: str
    retryable: bool
    remedy: str


class _Timeout(Struct, frozen=True, kw_only=True, tag="timeout"):
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


def encode(outcome: Response | errors.PaliadinError) -> bytes:
    """How the submit ended, as JSON."""
    if isinstance(outcome, Response):
        reply = outcome.reply
        return msgspec.json.encode(
            _Response(
                text=reply.text,
                trailer=reply.trailer,
                whole=reply.whole,
                turn_id=reply.turn_id,
                conversation_id=reply.conversation_id,
                duration_ms=reply.duration_ms,
                host=outcome.host,
                health_ms=outcome.health_ms,
                answer_ms=outcome.answer_ms,
            )
        )
    if isinstance(outcome, errors.TurnTimeout):
        return msgspec.json.encode(
            _Timeout(
                turn_id=outcome.turn_id,
                deadline_s=outcome.deadline_s,
                queued_s=outcome.queued_s,
                unsent=outcome.unsent,
            )
        )
    kind = next(each.__name__ for each in type(outcome).__mro__ if each.__name__ in _ERRORS)
    return msgspec.json.encode(
        _Failure(
            error=kind,
            reason=str(outcome.args[0]),
            retryable=outcome.retryable,
            remedy=outcome.remedy,
        )
    )


def decode(left: bytes | None) -> Response | errors.PaliadinError | None:
    """What `encode` wrote; None where that is nothing, or of another version and not known here."""
    try:
        read = _decoder.decode(left or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if isinstance(read, _Timeout):
        return errors.TurnTimeout(
            read.turn_id, read.deadline_s, queued_s=read.queued_s, unsent=read.unsent
        )
    if isinstance(read, _Failure):
        kind = _ERRORS.get(read.error, errors.PaliadinError)
        return kind(read.reason, retryable=read.retryable, remedy=read.remedy)
    reply = Reply(
        text=read.text,
        trailer=read.trailer,
        whole=read.whole,
        turn_id=read.turn_id,
        conversation_id=read.conversation_id,
        duration_ms=read.duration_ms,
    )
    return Response(reply, read.host, read.health_ms, read.answer_ms)
