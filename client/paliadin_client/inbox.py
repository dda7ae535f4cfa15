"""Receives the sidecar's pushes: an ASGI app for any framework, which stores before it answers."""

from __future__ import annotations

import inspect
import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import anyio

from paliadin_client.dedupe import DedupeFailed, Memory, Sqlite
from paliadin_client.errors import BadRequest, ConfigError
from paliadin_contract.callback import TurnCompleted, TurnFailed, decode
from paliadin_contract.errors import BadSignature, MalformedCallback
from paliadin_contract.rank import outranks, rank_of
from paliadin_contract.signature import Keys, Verification
from paliadin_contract.trace import safe_trace

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

__all__ = ["MAX_BODY_BYTES", "Inbox", "TurnCallback", "Waiter"]

_log = logging.getLogger(__name__)

TurnCallback = TurnCompleted | TurnFailed

MAX_BODY_BYTES = 32 * 1024 * 1024
#: Pushes that came before somebody waited. They are few, and are soon asked for or never.
_MAX_EARLY_PUSHES = 64
_EARLY_PUSH_LIFETIME = timedelta(seconds=60)
#: How long the next bytes of a body may take, and the whole body: a sidecar gives one attempt 10 s
#: unless it is configured otherwise, and 60 s at most.
_IDLE_S = 5.0
_BODY_S = 60.0
#: A body is in memory before it is known who sent it, so their sum is bounded. Eight at once may
#: have their full size, and a sidecar sends no more at once.
_MAX_BUFFERED_BYTES = 8 * MAX_BODY_BYTES


_TOO_LONG = f"the body has more than {MAX_BODY_BYTES} bytes"
_TOO_MANY = "too much is being sent at once"


@dataclass(slots=True, eq=False)
class Waiter:
    """Waits for a turn: when `push` is there, `arrived` is set and `on_push` has been called."""

    push: TurnCallback | None = None
    arrived: anyio.Event = field(default_factory=anyio.Event)
    on_push: Callable[[], None] = lambda: None
    aliases: list[str] = field(default_factory=list)

    def offer(self, callback: TurnCallback) -> None:
        """Keep `callback`, unless what is here outranks it."""
        if outranks(rank_of(callback), rank_of(self.push) if self.push else None):
            self.push = callback
            self.arrived.set()
            self.on_push()


class Inbox:
    """Verifies, lets the app store, wakes whoever waits, and only then acknowledges.

    It answers 204 to what is stored, known already or none of its business; 400 to what is
    malformed, 401 to what is not signed or stale, 405 to another method than POST, 408 to a body
    that does not come, 413 to more than 32 MiB, and 503 where the app could not store it, or too
    much is being sent at once: the sidecar comes again.

    Args:
        secrets: the callback's, each `whsec_<base64>`; several while they are being rotated.
        on_turn: stores a turn; awaited before the acknowledgement, for every turn, waited for or
            not. It runs at least once, and never twice at a time for one turn. An exception
            means that the turn was not stored.
        dedupe: path of a SQLite database that remembers what was stored, also for other
            processes; None remembers in this process alone.
        now: the clock.

    Raises:
        BadSecret: a secret is malformed, or none is given.
        ConfigError: the database can be neither opened nor made, or `on_turn` is no async function
            of one argument.
    """

    def __init__(
        self,
        secrets: Iterable[str],
        *,
        on_turn: Callable[[TurnCallback], Awaitable[object]] | None = None,
        dedupe: str | os.PathLike[str] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keys = Keys(secrets)
        if on_turn is not None:
            _check_on_turn(on_turn)
        self._on_turn = on_turn
        self._dedupe = Memory() if dedupe is None else Sqlite(dedupe)
        self._now = now
        self._waiters: dict[str, Waiter] = {}
        self._early_pushes: dict[str, tuple[datetime, Waiter]] = {}
        self._read_bytes = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The ASGI app. It needs no lifespan of its own, and lets a server's pass."""
        if scope["type"] == "lifespan":
            await _acknowledge_lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the inbox speaks http, not {scope['type']}")
        if scope["method"] == "POST":
            status, text = await self._receive(scope, receive)
        else:
            status, text = HTTPStatus.METHOD_NOT_ALLOWED, "only POST"
        await _answer(send, status, text)

    @contextmanager
    def expect(self, turn_id: str) -> Iterator[Waiter]:
        """Wait for a turn: by the id under which it was submitted, or its own.

        Raises:
            BadRequest: somebody waits for it already.
        """
        turn_id = str(turn_id)  # a uuid.UUID is one too
        if turn_id in self._waiters:
            raise BadRequest(f"turn {turn_id} is being waited for already")
        waiter = Waiter()
        self.add_alias(waiter, turn_id)
        try:
            yield waiter
        finally:
            for alias in waiter.aliases:
                del self._waiters[alias]

    def add_alias(self, waiter: Waiter, turn_id: str | None) -> None:
        """Let `waiter` wait for `turn_id` too, unless another does."""
        if turn_id is None or turn_id in self._waiters:
            return
        self._waiters[turn_id] = waiter
        waiter.aliases.append(turn_id)
        for turn, (since, early) in list(self._early_pushes.items()):
            assert early.push is not None
            if self._now() - since > _EARLY_PUSH_LIFETIME:
                del self._early_pushes[turn]
            elif turn_id in (early.push.data.submitted_turn_id, early.push.data.turn_id):
                del self._early_pushes[turn]
                waiter.offer(early.push)

    async def _receive(self, scope: Message, receive: Receive) -> tuple[HTTPStatus, str]:
        headers = {
            name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]
        }
        try:
            verification = self._keys.begin(headers, self._now())
            body = await self._read(receive, verification, _length(headers))
            webhook_id = verification.finish()
            callback = decode(body)
        except BadSignature as exc:
            _log.warning("push.rejected error=%s", exc)
            return HTTPStatus.UNAUTHORIZED, str(exc)
        except _BodyError as exc:
            _log.warning("push.no_body error=%s", exc)
            return exc.status, str(exc)
        except MalformedCallback as exc:
            _log.warning("push.malformed error=%s", exc)
            return HTTPStatus.BAD_REQUEST, str(exc)
        if not isinstance(callback, TurnCallback):
            return HTTPStatus.NO_CONTENT, ""
        # The id under which the app finds the turn in its own records.
        turn = callback.data.submitted_turn_id or callback.data.turn_id
        # Whoever waits for the answer need not wait for the app's database, too.
        self._wake_waiter(turn, callback)
        return await self._store(webhook_id, turn, callback)

    async def _read(
        self, receive: Receive, verification: Verification, length: int | None
    ) -> bytearray:
        body = bytearray()
        if length is not None and length > MAX_BODY_BYTES:
            raise _BodyError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _TOO_LONG)
        until = anyio.current_time() + _BODY_S
        try:
            more = True
            while more:
                deadline = min(until, anyio.current_time() + _IDLE_S)
                with anyio.CancelScope(deadline=deadline) as waiting:
                    message = await receive()
                if waiting.cancelled_caught or message["type"] != "http.request":
                    raise _BodyError(HTTPStatus.REQUEST_TIMEOUT, _missing_part(len(body), length))
                chunk = message.get("body", b"")
                verification.update(chunk)
                body += chunk
                self._read_bytes += len(chunk)
                if len(body) > MAX_BODY_BYTES:
                    raise _BodyError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _TOO_LONG)
                if self._read_bytes > _MAX_BUFFERED_BYTES:
                    raise _BodyError(HTTPStatus.SERVICE_UNAVAILABLE, _TOO_MANY)
                more = message.get("more_body", False)
        finally:
            self._read_bytes -= len(body)
        if length is not None and length > len(body):
            raise _BodyError(HTTPStatus.REQUEST_TIMEOUT, _missing_part(len(body), length))
        return body

    async def _store(
        self, webhook_id: str, turn: str, callback: TurnCallback
    ) -> tuple[HTTPStatus, str]:
        claim, rank = self._dedupe.claim, rank_of(callback)
        try:
            with claim(f"turn {turn}") as turn_is_ours, claim(f"id {webhook_id}") as id_is_ours:
                if not (turn_is_ours and id_is_ours):
                    # It is refused and not queued, since a queue behind a hanging app never ends.
                    return HTTPStatus.SERVICE_UNAVAILABLE, "being stored"
                known, standing = await self._dedupe.find(webhook_id, turn)
                if not known and outranks(rank, standing):
                    if self._on_turn is not None:
                        await self._on_turn(callback)
                    await self._dedupe.remember(webhook_id, turn, rank, self._now())
                elif not known:
                    _log.warning("push.outranked id=%s turn=%s", webhook_id, turn)
        except DedupeFailed as exc:
            _log.error("push.not_stored id=%s error=%s", webhook_id, exc)
            return HTTPStatus.SERVICE_UNAVAILABLE, "not stored"
        except Exception as exc:  # noqa: BLE001 - whatever it is, the turn is not known to be stored
            # Types and places alone: a database's error may quote the row, and with it the answer.
            trace = " | ".join(safe_trace(exc))
            _log.error("push.not_stored id=%s error=%s", webhook_id, trace)
            return HTTPStatus.SERVICE_UNAVAILABLE, "not stored"
        return HTTPStatus.NO_CONTENT, ""

    def _wake_waiter(self, turn: str, callback: TurnCallback) -> None:
        waiter = self._waiters.get(turn, self._waiters.get(callback.data.turn_id))
        if waiter is not None:
            waiter.offer(callback)
            return
        _, early = self._early_pushes.pop(turn, (None, Waiter()))
        early.offer(callback)
        self._early_pushes[turn] = (self._now(), early)
        if len(self._early_pushes) > _MAX_EARLY_PUSHES:
            del self._early_pushes[next(iter(self._early_pushes))]


def _check_on_turn(on_turn: Callable[[TurnCallback], Awaitable[object]]) -> None:
    # The function, or an object that can be called, may be inside a partial or a wrapper.
    held = [on_turn, inspect.unwrap(on_turn), getattr(on_turn, "func", None)]
    if not any(map(inspect.iscoroutinefunction, (*held, *(type(each).__call__ for each in held)))):
        raise ConfigError(["on_turn is no async function: write `async def`"])
    try:
        inspect.signature(on_turn).bind(None)
    except TypeError as exc:
        raise ConfigError([f"on_turn cannot be called with one turn: {exc}"]) from None


class _BodyError(Exception):
    """The body did not come as it should: nothing can be said about its signature."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def _length(headers: dict[str, str]) -> int | None:
    text = headers.get("content-length", "")
    return int(text[:18]) if text.isdecimal() else None


def _missing_part(read: int, length: int | None) -> str:
    if read == 0 and length != 0:
        return (
            "no body came: something in the app has read it before (a middleware), or none was sent"
        )
    whole = "" if length is None else f" of {length}"
    return f"the sender went away, or stopped, after {read} bytes{whole}"


async def _acknowledge_lifespan(receive: Receive, send: Send) -> None:
    # A dispatcher hands its lifespan to each of its apps, and an exception would end them all.
    for moment in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{moment}.complete"})


async def _answer(send: Send, status: HTTPStatus, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")] if text else []
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
