"""A receiver on loopback that records all and answers as it is asked to, however badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from standardwebhooks import Webhook, WebhookVerificationError

from support.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True)
class Request:
    """One POST, as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:  # noqa: ANN401 - of any shape
        return json.loads(self.body)

    @property
    def is_ping(self) -> bool:
        return bool(self.json["type"] == "ping")


@dataclass(frozen=True)
class Reply:
    """What a request gets.

    `how` is one of: answer, hang (accept and say nothing), drip (a byte a second), reset
    (close hard instead of answering), endless (a body that does not end), then_reset (answer,
    then close hard). It comes after `delay_s` seconds.
    """

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    how: str = "answer"
    phrase: str = "x"
    delay_s: float = 0.0


Behaviour = Callable[[Request], Reply]


def verifying(secret: str, good: Reply | None = None) -> Behaviour:
    """What a receiver that knows this secret answers: 401 to a wrong signature."""

    def behaviour(request: Request) -> Reply:
        try:
            Webhook(secret).verify(request.body, request.headers)
        except WebhookVerificationError:
            return Reply(401)
        return good or Reply()

    return behaviour


class Receiver:
    """Serves in a thread of its own; use it as a context manager."""

    def __init__(
        self,
        behaviour: Behaviour = lambda _: Reply(),
        tls: ssl.SSLContext | None = None,
        port: int = 0,
        address: str = "127.0.0.1",
    ) -> None:
        self.behaviour = behaviour
        self.requests: list[Request] = []
        #: Whether to close hard as soon as the headers are there, with the body on its way.
        self.hangs_up: Callable[[dict[str, str]], bool] = lambda _: False
        self._tls = tls
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = port
        self._address = address

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/callback"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    # --- what came --------------------------------------------------------------------------

    @property
    def turns(self) -> list[Request]:
        return [r for r in self.requests if not r.is_ping]

    @property
    def pings(self) -> list[Request]:
        return [r for r in self.requests if r.is_ping]

    def of(self, turn_id: str) -> list[Request]:
        return [r for r in self.turns if r.json["data"]["turn_id"] == turn_id]

    def wait(self, turn_id: str, count: int = 1) -> Request:
        """The `count`th request of a turn, once it has come."""
        until(f"{count} of {turn_id}", lambda: len(self.of(turn_id)) >= count)
        return self.of(turn_id)[count - 1]

    def verify_all(self, secret: str) -> None:
        """Each request's signature, by the reference library."""
        for request in self.requests:
            Webhook(secret).verify(request.body, request.headers)

    # --- the server -------------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(
            self._accept, self._address, self.port, ssl=self._tls, limit=64 * 1024 * 1024
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        # Whoever was accepted a moment ago is ended as well: a server that is closed meanwhile
        # forgets them, and their sockets.
        self._loop.remove_reader(server.sockets[0])
        while asyncio.all_tasks() != {asyncio.current_task()}:
            for task in self._tasks:
                task.cancel()
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # what they aborted is closed by the loop
        server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head.strip().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in rest)}
        if self.hangs_up(headers):
            _reset(writer)
            return False
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Request(line.split(" ")[1], headers, body, time.monotonic())
        reply = self.behaviour(request)
        self.requests.append(request)
        return await self._answer(writer, reply)

    async def _answer(self, writer: asyncio.StreamWriter, reply: Reply) -> bool:
        if reply.delay_s:
            await asyncio.sleep(reply.delay_s)
        if reply.how == "hang":
            await asyncio.Event().wait()
        if reply.how == "reset":
            _reset(writer)
            return False
        length = {} if reply.how == "endless" else {"content-length": str(len(reply.body))}
        headers = {**length, **reply.headers}
        head = f"HTTP/1.1 {reply.status} {reply.phrase}\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in headers.items()
        )
        raw = head.encode("latin-1") + b"\r\n" + reply.body
        if reply.how == "half":
            writer.write(raw[: head.index("\r") // 2])  # of its status line
            await writer.drain()
            _reset(writer)
            return False
        if reply.how == "drip":
            for byte in raw:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)
        writer.write(raw)
        await writer.drain()
        if reply.how == "then_reset":
            _reset(writer)
            return False
        while reply.how == "endless":
            writer.write(b"x" * 65536)
            await writer.drain()
        return True


def _reset(writer: asyncio.StreamWriter) -> None:
    # Linger of zero: the peer sees a reset, not an end.
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    writer.transport.abort()
