"""A receiver that keeps the protocol, and the same with one fault at a time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import formatdate

from paliadin_contract.callback import Unknown, decode
from paliadin_contract.errors import BadSignature, MalformedCallback
from paliadin_contract.signature import Keys
from support.receiver import Behaviour, Reply, Request

MAX_BODY = 32 * 1024 * 1024


class Keeping:
    """Answers as docs/protocol.md says.

    Args:
        secrets: those that it knows.
        max_body: the bytes of the largest body that it takes.
        clock_s: how far its clock is ahead.
    """

    def __init__(self, *secrets: str, max_body: int = MAX_BODY, clock_s: float = 0) -> None:
        self.keys = Keys(secrets)
        self.max_body = max_body
        self.clock_s = clock_s
        self.seen: list[str] = []  #: the ids that were proven, in the order in which they came

    def now(self) -> float:
        return time.time() + self.clock_s

    def verify(self, headers: Mapping[str, str], body: bytes) -> None:
        self.keys.verify(headers, body, datetime.fromtimestamp(self.now(), UTC))

    def __call__(self, request: Request) -> Reply:
        date = {"date": formatdate(self.now(), usegmt=True)}
        return replace(reply := self.reply(request), headers=date | reply.headers)

    def reply(self, request: Request) -> Reply:
        if len(request.body) > self.max_body:
            return Reply(413)
        try:
            self.verify(request.headers, request.body)
        except BadSignature:
            return Reply(401)
        self.seen.append(request.id)
        try:
            decode(request.body)
        except MalformedCallback:
            return Reply(400)
        return Reply()


#: Makes a bad receiver of a good one.
Fault = Callable[[Keeping], Behaviour]


def instead(matches: Callable[[Keeping, Request, Reply], bool], reply: Reply) -> Fault:
    """A fault: this reply to whatever request, with the right reply to it, matches."""

    def make(good: Keeping) -> Behaviour:
        def behaviour(request: Request) -> Reply:
            right = good(request)
            if matches(good, request, right):
                return replace(reply, headers=right.headers | reply.headers)
            return right

        return behaviour

    return make


def data(request: Request) -> dict[str, object]:
    """The turn's or the ping's, empty where there is none."""
    try:
        found = json.loads(request.body)["data"]
    except (ValueError, LookupError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def kind(request: Request) -> str:
    try:
        return str(json.loads(request.body)["type"])
    except (ValueError, LookupError, TypeError):
        return ""


def is_taken(right: Reply) -> bool:
    return right.status == 204


def is_stale(good: Keeping, request: Request, within_s: float = 300) -> bool:
    stamp = request.headers.get("webhook-timestamp", "")
    return bool(re.fullmatch("[0-9]{1,11}", stamp)) and abs(int(stamp) - good.now()) > within_s


def is_malformed(request: Request) -> bool:
    """Whether a header is there and cannot be right."""
    signature = request.headers.get("webhook-signature", "v1,x")
    stamp = request.headers.get("webhook-timestamp", "1")
    return not re.search("(^| )v1,.", signature) or not re.fullmatch("[0-9]{1,11}", stamp)


def is_missing(request: Request) -> bool:
    return not {"webhook-id", "webhook-timestamp", "webhook-signature"} <= set(request.headers)


def is_wrong(good: Keeping, request: Request) -> bool:
    """Whether all headers are well, and the signature is of another secret or body."""
    return not (is_missing(request) or is_malformed(request) or is_stale(good, request))


def is_again(good: Keeping, request: Request) -> bool:
    return good.seen.count(request.headers.get("webhook-id", "")) > 1


def is_uuid(text: object) -> bool:
    return re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", str(text)) is not None


def first_signature_only(good: Keeping) -> Behaviour:
    """A fault: it looks at no more than one signature."""

    def behaviour(request: Request) -> Reply:
        headers = dict(request.headers)
        if "webhook-signature" in headers:
            headers["webhook-signature"] = headers["webhook-signature"].split(" ")[0]
        return good(replace(request, headers=headers))

    return behaviour


def unproven_pings(good: Keeping) -> Behaviour:
    """A fault: it answers pings before it looks at the signature."""
    return instead(lambda _, request, __: kind(request) == "ping", Reply())(good)


def closing(good: Keeping) -> Behaviour:
    """It closes each connection after its answer."""

    def behaviour(request: Request) -> Reply:
        right = good(request)
        return replace(right, headers=right.headers | {"connection": "close"})

    return behaviour


def in_work(good: Keeping, status: int = 500) -> Behaviour:
    """A fault: what comes while the same is at work is an error."""
    until: dict[str, float] = {}

    def behaviour(request: Request) -> Reply:
        right = good(request)
        if not is_taken(right):
            return right
        if time.monotonic() < until.get(request.id, 0.0):
            return Reply(status)
        # After one was sent again by itself, the next is at work for long enough.
        if not until and len(set(good.seen)) < len(good.seen) and good.seen.count(request.id) == 1:
            until[request.id] = time.monotonic() + 1.0
            return replace(right, delay_s=1.0)
        return right

    return behaviour


def busy(good: Keeping) -> Behaviour:
    """What comes while the same is at work is put off."""
    return in_work(good, 503)


def once(status: int, headers: dict[str, str]) -> Fault:
    """The first request gets this and the others what is right."""

    def make(good: Keeping) -> Behaviour:
        replies = [Reply(status, headers)]
        return lambda request: replies.pop() if replies else good(request)

    return make


def slow(delay_s: float) -> Fault:
    """A fault: the first turn takes this long."""

    def make(good: Keeping) -> Behaviour:
        delays = [delay_s]

        def behaviour(request: Request) -> Reply:
            right = good(request)
            if delays and is_taken(right) and kind(request) == "turn.completed":
                return replace(right, delay_s=delays.pop())
            return right

        return behaviour

    return make


def is_known(request: Request) -> bool:
    """Whether a turn is of a type, and has the fields, of this version."""
    known = {
        "turn_id", "submitted_turn_id", "revision", "backend", "persona", "host", "user_id",
        "response", "bytes", "sha256", "lossy", "completed_at", "reason",
    }  # fmt: skip
    return isinstance(decode(request.body), Unknown) or set(data(request)) <= known
