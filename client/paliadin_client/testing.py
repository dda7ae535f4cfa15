"""A host in memory, for the tests of an app: it answers, fails, times out and pushes as told.

    host = FakeHost()
    monkeypatch.setenv("PALIADIN_CALLBACK_SECRET", host.secret)
    monkeypatch.setattr("app.connect", host.connect)
    host.answers("Am 3. Januar.")

Only the host is made up. What the app meets is the real client: `Paliadin`, the inbox, which
verifies each push by its signature, and the app's own `on_turn`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, TypeAlias

import anyio

from paliadin_client.backend import Reply, TurnRequest, User
from paliadin_client.connection import open_paliadin
from paliadin_client.errors import BackendTimeout, PaliadinError, TurnTimeout
from paliadin_client.hosts import Hosts
from paliadin_client.inbox import Inbox
from paliadin_client.store.selection import store_from
from paliadin_client.turn import Paliadin
from paliadin_contract.callback import (
    Answer,
    Failure,
    Reason,
    TurnCompleted,
    TurnFailed,
    encode,
)
from paliadin_contract.ids import webhook_id
from paliadin_contract.signature import Keys
from paliadin_contract.trailer import split

__all__ = ["FakeHost", "SignedPush", "Text"]

#: An answer's file, or what makes one of a question.
Text: TypeAlias = str | Callable[[TurnRequest], str]

_BACKEND, _PERSONA = "memory", "paliadin"


@dataclass(frozen=True, slots=True)
class SignedPush:
    """A callback as a sidecar sends it, for a test client's POST to the app's own route.

    Attributes:
        content: the request's body.
        headers: the request's headers, with a signature that is good for five minutes.
    """

    content: bytes = field(repr=False)
    headers: dict[str, str]


class FakeHost:
    """A host that does with each turn what it was told last; before that, it answers.

    Attributes:
        secret: what signs its pushes, made for this host alone: the app's inbox must have it. Bound
            to a host it is `memory=<secret>`.
        turns: all turns that were submitted, in their order.
        resets: the users whose sessions were ended.
        down: what health checks and turns fail with, such as `Unreachable("…")`; None is well.

    Args:
        deadline_s: how long `run_turn` waits in all, in seconds.
    """

    def __init__(self, *, deadline_s: float = 30.0) -> None:
        self.secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self.turns: list[TurnRequest] = []
        self.resets: list[User] = []
        self.down: PaliadinError | None = None
        self._deadline_s = deadline_s
        self._keys = Keys([self.secret])
        self._inbox: Inbox | None = None
        self._act: Callable[[TurnRequest, Inbox | None], Awaitable[Reply]]
        self.answers(lambda request: f"The answer to: {request.message}")

    @asynccontextmanager
    async def connect(
        self, *, inbox: Inbox | None = None, environ: Mapping[str, str] = os.environ
    ) -> AsyncIterator[Paliadin]:
        """Stands in for `paliadin_client.connect`.

        Args:
            inbox: where pushes arrive, and whose store is used; without one nothing is pushed.
            environ: `PALIADIN_STORE` is read where there is no inbox, and nothing else.
        """
        self._inbox = inbox
        backend = _Backend(self, inbox)
        async with open_paliadin(
            nullcontext(Hosts({backend.name: backend})),
            inbox=inbox,
            store=store_from(environ),
            deadline_s=self._deadline_s,
        ) as paliadin:
            yield paliadin

    def answers(self, text: Text, *, pushed: bool = True) -> None:
        """From now on, the backend responds with this answer.

        Args:
            text: the whole file; it may have a trailer.
            pushed: whether the sidecar pushes it as well, and before that, as it usually does.
        """

        async def act(request: TurnRequest, inbox: Inbox | None) -> Reply:
            file = text if isinstance(text, str) else text(request)
            if pushed and inbox:
                await _push(inbox, self.completed(request.turn_id, file))
            answer, trailer = split(file)
            return Reply(text=answer, trailer=trailer, whole=True)

        self._act = act

    def fails(self, error: PaliadinError) -> None:
        """From now on, the backend fails with this error, such as `BootstrapFailed("…")`."""

        async def act(_: TurnRequest, _inbox: Inbox | None) -> Reply:
            raise error

        self._act = act

    def fails_by_push(self, reason: Reason = "too_large") -> None:
        """From now on, the sidecar pushes that the agent's file cannot become an answer."""

        async def act(request: TurnRequest, inbox: Inbox | None) -> Reply:
            if inbox:
                await _push(inbox, self.failed(request.turn_id, reason))
            raise _gave_up()

        self._act = act

    def gives_up(self) -> None:
        """From now on, the backend gives up on each turn, which stays open.

        `run_turn` then waits for a push, which the test sends, until `deadline_s` are over.
        """
        self.fails(_gave_up())

    def times_out(self) -> None:
        """From now on, `run_turn` raises `TurnTimeout`, at once: no test waits for a deadline.

        The answer may still be pushed, by the test, and is then a late one.
        """

        async def act(request: TurnRequest, _inbox: Inbox | None) -> Reply:
            raise TurnTimeout(request.turn_id, self._deadline_s)

        self._act = act

    def completed(
        self,
        turn_id: str,
        text: str,
        *,
        revision: int = 1,
        submitted_turn_id: str | None = None,
    ) -> SignedPush:
        """The push of an answer.

        Args:
            turn_id: the id of the answer's file.
            text: the whole file.
            revision: 1 for the file's first content, then counting up.
            submitted_turn_id: the id under which the turn was submitted, where it is another one.
        """
        now, file = datetime.now(UTC), text.encode()
        digest = hashlib.sha256(file).hexdigest()
        data = Answer(
            **self._turn(turn_id, revision, submitted_turn_id),
            response=text,
            bytes=len(file),
            sha256=digest,
            lossy=False,
            completed_at=now,
        )
        return self._sign(TurnCompleted(timestamp=now, data=data), digest)

    def failed(
        self,
        turn_id: str,
        reason: Reason = "too_large",
        *,
        revision: int = 1,
        submitted_turn_id: str | None = None,
    ) -> SignedPush:
        """The push that a file cannot become an answer; the arguments are those of `completed`."""
        now = datetime.now(UTC)
        data = Failure(
            **self._turn(turn_id, revision, submitted_turn_id),
            reason=reason,
            bytes=0,
            completed_at=now,
        )
        return self._sign(TurnFailed(timestamp=now, data=data), reason)

    async def push(self, push: SignedPush, *, inbox: Inbox | None = None) -> int:
        """Give a push to an inbox, beside the app's routes; return the status of its response.

        It must be called in the app's event loop. A test client that has the app in another one
        posts the push to the app's own route.

        Args:
            push: what `completed` or `failed` returned.
            inbox: which one; None is the inbox that `connect` was given last.

        Raises:
            RuntimeError: there is none.
        """
        inbox = inbox or self._inbox
        if inbox is None:
            raise RuntimeError("connect() has been given no inbox: nothing can be pushed")
        status, _ = await _post(inbox, push)
        return status

    def _turn(self, turn_id: str, revision: int, submitted: str | None) -> dict[str, Any]:
        return {
            "turn_id": turn_id,
            "submitted_turn_id": submitted,
            "revision": revision,
            "backend": _BACKEND,
            "persona": _PERSONA,
            "host": _BACKEND,
            "user_id": None,
        }

    def _sign(self, callback: TurnCompleted | TurnFailed, content_key: str) -> SignedPush:
        data = callback.data
        name = webhook_id(_BACKEND, _PERSONA, data.turn_id, data.revision, content_key)
        body = encode(callback)
        headers = self._keys.sign(name, body, callback.timestamp)
        return SignedPush(body, {"content-type": "application/json"} | headers)


class _Backend:
    """The backend of a `FakeHost`."""

    name: ClassVar[str] = _BACKEND
    reply_has_metadata: ClassVar[bool] = True
    health_per_pane: ClassVar[bool] = False

    def __init__(self, host: FakeHost, inbox: Inbox | None) -> None:
        self._host = host
        self._inbox = inbox

    def pane(self, user: User) -> str:
        return (user.email or user.user_id).partition("@")[0]

    def prepare(self, request: TurnRequest, _primer: str) -> Callable[[], Awaitable[Reply]]:
        return partial(self._submit, request)

    async def health(self, _user: User | None, /) -> None:
        if self._host.down is not None:
            raise self._host.down

    async def reset(self, user: User) -> None:
        self._host.resets.append(user)

    async def _submit(self, request: TurnRequest) -> Reply:
        await self.health(request.user)  # `Paliadin` trusts a check for some seconds
        self._host.turns.append(request)
        return await self._host._act(request, self._inbox)  # noqa: SLF001 - it is the host's other half


def _gave_up() -> BackendTimeout:
    return BackendTimeout("the backend gave up waiting, as the test says")


async def _push(inbox: Inbox, push: SignedPush) -> None:
    # That the push wakes `run_turn`, which then ends the submit, must not end `on_turn`.
    with anyio.CancelScope(shield=True):
        status, text = await _post(inbox, push)
    if status == HTTPStatus.UNAUTHORIZED:
        raise AssertionError("the inbox answered 401: its secrets lack that of the FakeHost")
    if status != HTTPStatus.NO_CONTENT:
        raise AssertionError(f"the inbox answered {status} ({text}): its log says why")


async def _post(inbox: Inbox, push: SignedPush) -> tuple[int, str]:
    """Post a push as a server of ASGI does; return the status and the text of the response."""
    headers = [(name.encode(), value.encode()) for name, value in push.headers.items()]
    scope = {"type": "http", "method": "POST", "headers": headers}
    sent: list[Mapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": push.content, "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    await inbox(scope, receive, send)
    return sent[0]["status"], sent[1]["body"].decode()
