"""Receives the sidecar's pushes: an ASGI app for any framework, which stores before it answers."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import anyio

from paliadin_client.errors import ConfigError, StoreFailed
from paliadin_client.host_secrets import HostSecrets
from paliadin_client.store.protocol import Push, Receipt, Store, Verdict
from paliadin_client.store.pruning import Pruner
from paliadin_client.store.selection import open_store, store_from
from paliadin_client.waiting import TurnCallback, Waiters
from paliadin_contract.callback import Ping, Unknown, decode
from paliadin_contract.errors import BadSignature, MalformedCallback
from paliadin_contract.signature import Verification
from paliadin_contract.trace import safe_trace

OnTurn = (
    Callable[[TurnCallback], Awaitable[object]] | Callable[[TurnCallback, Any], Awaitable[object]]
)
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 32 * 1024 * 1024
#: How long the next bytes of a body may take, and the whole body: a sidecar gives one attempt 10 s
#: unless it is configured otherwise, and 60 s at most.
_IDLE_S = 5.0
_BODY_S = 60.0
#: A body is in memory before it is known who sent it, so their sum is bounded. Eight at once may
#: have their full size, and a sidecar sends no more at once.
_MAX_BUFFERED_BYTES = 8 * MAX_BODY_BYTES


_TOO_LONG = f"the body has more than {MAX_BODY_BYTES} bytes"
_TOO_MANY = "too much is being sent at once"


class Inbox(Waiters):
    """Verifies, lets the app store, wakes whoever waits, and only then acknowledges.

    It answers 204 to what is stored, known already or none of its business; 400 to what is
    malformed, 401 to what is not signed, stale, or signed by another host, 405 to another method
    than POST, 408 to a body that does not come, 413 to more than 32 MiB, and 503 where the app
    could not store it, or too much is being sent at once: the sidecar comes again. A ping is 503
    where the store does not answer.

    Args:
        secrets: the callback's, each `whsec_<base64>`; several while they are being rotated. One
            that is written `<host>=whsec_<base64>` is good for that host's callbacks alone, and
            these are then taken with no other.
        on_turn: stores a turn; awaited before the acknowledgement, for every turn, waited for or
            not. It runs at least once, and never twice at a time for one turn. An exception
            means that the turn was not stored. With a PostgreSQL as store its second argument, if
            it takes one, is the connection (`psycopg.AsyncConnection`) whose transaction also
            records the push: what it writes there is stored exactly once.
        store: what remembers pushes, also for other processes: the path of a SQLite database for
            those of one host, or a URL `postgresql://…`. None is what `PALIADIN_STORE` names,
            and else the memory of this process.
        dedupe: an older name of `store`.
        now: the clock.
        environ: where `PALIADIN_STORE` is looked up.

    Raises:
        BadSecret: a secret is malformed, or none is given.
        ConfigError: the store cannot be opened, or `on_turn` is no async function of one argument.
    """

    def __init__(
        self,
        secrets: Iterable[str],
        *,
        on_turn: OnTurn | None = None,
        store: str | os.PathLike[str] | None = None,
        dedupe: str | os.PathLike[str] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__(now=now)
        self._secrets = HostSecrets(secrets)
        #: What is remembered, for who looks for it in this process.
        self.store = _open(store, dedupe, environ)
        self._on_turn = on_turn and _checked(on_turn, has_connection=self.store.has_connection)
        self._pruner = Pruner(self.store)
        self._read_bytes = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The ASGI app. It needs no lifespan of its own, and lets a server's pass."""
        if scope["type"] == "lifespan":
            await _acknowledge_lifespan(receive, send)
            await self.aclose()
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the inbox speaks http, not {scope['type']}")
        if scope["method"] == "POST":
            status, text = await self._receive(scope, receive)
        else:
            status, text = HTTPStatus.METHOD_NOT_ALLOWED, "only POST"
        await _answer(send, status, text)
        await self._pruner.prune_if_due()

    async def aclose(self) -> None:
        """Let go of what the store keeps open: connections, files. The next push opens it again.

        `connect()` calls it when its context ends. A process that only receives calls it itself.
        """
        await self.store.aclose()

    async def _receive(self, scope: Message, receive: Receive) -> tuple[HTTPStatus, str]:
        headers = {
            name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]
        }
        try:
            verification = self._secrets.begin(headers, self._now())
            body = await self._read(receive, verification, _length(headers))
            webhook_id = verification.finish()
            callback = decode(body)
            if not isinstance(callback, Unknown):
                self._secrets.check_host(verification, callback.data.host)
        except BadSignature as exc:
            _log.warning("push.rejected error=%s", exc)
            return HTTPStatus.UNAUTHORIZED, str(exc)
        except _BodyError as exc:
            _log.warning("push.no_body error=%s", exc)
            return exc.status, str(exc)
        except MalformedCallback as exc:
            _log.warning("push.malformed error=%s", exc)
            return HTTPStatus.BAD_REQUEST, str(exc)
        if isinstance(callback, Ping):
            return await self._receive_ping()
        if isinstance(callback, Unknown):
            return HTTPStatus.NO_CONTENT, ""
        # Whoever waits for the answer need not wait for the app's database, too.
        self.offer(callback)
        return await self._receive_push(Push(webhook_id, callback, body))

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

    async def _receive_ping(self) -> tuple[HTTPStatus, str]:
        try:
            await self.store.find([])  # for no turn: whether it answers
        except StoreFailed as exc:
            _log.warning("ping.refused error=%s", exc)
            return HTTPStatus.SERVICE_UNAVAILABLE, "could not store"
        return HTTPStatus.NO_CONTENT, ""

    async def _receive_push(self, push: Push) -> tuple[HTTPStatus, str]:
        import asyncio  # noqa: PLC0415 - a command that only shows its help has no use for it

        try:
            async with self.store.receive(push) as receipt:
                if receipt.verdict is Verdict.BUSY:
                    # It is refused and not queued, since a queue behind a hanging app never ends.
                    return HTTPStatus.SERVICE_UNAVAILABLE, "being stored"
                if receipt.verdict is Verdict.OUTRANKED:
                    _log.warning("push.outranked id=%s turn=%s", push.webhook_id, push.turn)
                if receipt.verdict is Verdict.NEW and self._on_turn is not None:
                    await self._on_turn(push, receipt)
        except StoreFailed as exc:
            _log.error("push.not_stored id=%s error=%s", push.webhook_id, exc)
            return HTTPStatus.SERVICE_UNAVAILABLE, "not stored"
        except (Exception, asyncio.CancelledError) as exc:
            # Whatever it is, the turn is not known to be stored. A cancellation may also be that of
            # something that `on_turn` has waited for.
            task = asyncio.current_task()
            if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            # Types and places alone: a database's error may quote the row, and with it the answer.
            trace = " | ".join(safe_trace(exc))
            _log.error("push.not_stored id=%s error=%s", push.webhook_id, trace)
            return HTTPStatus.SERVICE_UNAVAILABLE, "not stored"
        return HTTPStatus.NO_CONTENT, ""


def _open(
    store: str | os.PathLike[str] | None,
    dedupe: str | os.PathLike[str] | None,
    environ: Mapping[str, str],
) -> Store:
    if dedupe is None:
        return open_store(store_from(environ) if store is None else store)
    if store is not None:
        raise ConfigError(["store= and dedupe= name the same thing: give one of them"])
    try:
        return open_store(dedupe)
    except ConfigError as exc:
        raise ConfigError([f"the dedupe database: {each}" for each in exc.problems]) from None


def _checked(
    on_turn: OnTurn, *, has_connection: bool
) -> Callable[[Push, Receipt], Awaitable[object]]:
    """`on_turn` as it is called for a push: with the turn, or with turn and connection."""
    # The function, or an object that can be called, may be inside a partial or a wrapper.
    held = [on_turn, inspect.unwrap(on_turn), getattr(on_turn, "func", None)]
    if not any(map(inspect.iscoroutinefunction, (*held, *(type(each).__call__ for each in held)))):
        raise ConfigError(["on_turn is no async function: write `async def`"])
    call: Callable[..., Awaitable[object]] = on_turn
    signature = inspect.signature(on_turn)
    if has_connection:
        with suppress(TypeError):
            signature.bind(None, None)
            return lambda push, receipt: call(push.callback, receipt.connection)
    try:
        signature.bind(None)
    except TypeError as exc:
        more = (
            ", nor with a turn and a connection"
            if has_connection
            else "; only a PostgreSQL as store has a connection for it, too"
        )
        raise ConfigError([f"on_turn cannot be called with one turn: {exc}{more}"]) from None
    return lambda push, _: call(push.callback)


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
