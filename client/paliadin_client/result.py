"""How a turn ended: what an app gets of it, and what is left for whoever waits for it elsewhere.

What a backend said of a failure is not left: it may quote the question or the token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct

from paliadin_client import errors
from paliadin_client.backend import Reply
from paliadin_client.waiting import TurnCallback
from paliadin_contract.callback import TurnFailed
from paliadin_contract.trailer import Trailer, split


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long a turn took. Of one that another process submitted only what that one left is known.

    Attributes:
        health_ms: until its window was free and the health check had passed, in milliseconds; 0
            where that is not known.
        answer_ms: from there to the answer, in milliseconds; where that is not known, how long
            `result` waited.
        backend_ms: what the backend says that it took, in milliseconds, where it says so.
        completed_at: when the answer's file was complete on the host, where a push said so.
    """

    health_ms: float
    answer_ms: float
    backend_ms: float | None
    completed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnResult:
    """An answer.

    Attributes:
        text: the answer in Markdown, without its trailer.
        trailer: what the agent said about it, where it did.
        turn_id: the request's.
        conversation_id: the backend's, where it named one in time, else the request's.
        revision: of a push, 1 for the file's first content; a response has none.
        via: which of the two brought it.
        host: which host answered: as its sidecar names it where a push brought the answer, else
            as the settings do (`AICHAT_URL`, `PALIADIN_REMOTE_HOST`).
        timings: how long it took.
    """

    text: str = field(repr=False)
    trailer: Trailer | None = field(repr=False)
    turn_id: str
    conversation_id: str | None
    revision: int | None
    via: Literal["response", "push"]
    host: str | None = None
    timings: Timings


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


def conclude(
    turn_id: str,
    push: TurnCallback | None,
    response: Response | None,
    *,
    conversation_id: str | None = None,
    health_ms: float,
    answer_ms: float,
) -> TurnResult:
    """The result that a push, or else a response, makes; there must be one of them.

    Raises:
        AnswerUnusable: the push says that there will be no answer.
        ShimError: the response has no text.
    """
    if isinstance(push, TurnFailed):
        raise errors.AnswerUnusable(turn_id, push.data.reason)
    reply = None if response is None else response.reply
    if push is not None:
        text, trailer = split(push.data.response)
        host = push.data.host
    else:
        assert response is not None
        text, trailer = response.reply.text, response.reply.trailer
        host = response.host
        if not text.strip():
            raise errors.ShimError("the backend's answer has no text", retryable=True)
    return TurnResult(
        text=text,
        trailer=trailer,
        turn_id=turn_id,
        conversation_id=(reply and reply.conversation_id) or conversation_id,
        revision=push.data.revision if push else None,
        via="push" if push else "response",
        host=host,
        timings=Timings(
            health_ms=health_ms,
            answer_ms=answer_ms,
            backend_ms=reply.duration_ms if reply else None,
            completed_at=push.data.completed_at if push else None,
        ),
    )


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
