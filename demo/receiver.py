"""Stands for paliad: an inbox on loopback, which keeps account of everything that came to it."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import anyio
import uvicorn

from paliadin_client import Inbox
from paliadin_contract.callback import Answer, Ping, TurnCompleted, decode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import Message, Receive, Scope, Send


class Arrival(NamedTuple):
    """An answer that was acknowledged, at so many epoch seconds."""

    at: float
    webhook_id: str
    answer: Answer


class Receiver:
    """An ASGI app: hands each callback to the inbox, and notes what the inbox acknowledged.

    Args:
        secret: the callback's.

    Attributes:
        arrivals: every arrival, also one that the inbox had already.
        wrong: what should never come.
    """

    def __init__(self, secret: str) -> None:
        self.inbox = Inbox([secret])
        self.arrivals: list[Arrival] = []
        self.wrong: list[str] = []
        self._port = reserve()
        self.url = "http://{}:{}/callback".format(*self._port.getsockname())

    def arrivals_of(self, turn_id: str) -> list[Arrival]:
        """What came of a turn, by the id it was asked under or its file's."""
        return [
            arrival
            for arrival in self.arrivals
            if turn_id in (arrival.answer.submitted_turn_id, arrival.answer.turn_id)
        ]

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Listen, on the same port each time."""
        config = uvicorn.Config(
            self, lifespan="off", log_level="error", timeout_graceful_shutdown=1
        )
        server = _Server(config)
        listening = socket.create_server(self._port.getsockname())
        running = asyncio.ensure_future(server.serve([listening]))
        try:
            yield
        finally:
            server.should_exit = True
            with anyio.CancelScope(shield=True):
                await running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request."""
        body, ended = bytearray(), False

        async def read() -> Message:
            nonlocal ended
            message = await receive()
            body.extend(message.get("body", b""))
            ended = message["type"] == "http.request" and not message["more_body"]
            return message

        async def answer(message: Message) -> None:
            # A refusal of half a body is not noted: the sidecar was killed while it sent.
            if ended and message["type"] == "http.response.start":
                self._note(dict(scope["headers"]), bytes(body), message["status"])
            await send(message)

        await self.inbox(scope, read, answer)

    def _note(self, headers: dict[bytes, bytes], body: bytes, status: int) -> None:
        webhook_id = headers.get(b"webhook-id", b"").decode()
        if status != HTTPStatus.NO_CONTENT:
            self.wrong.append(f"callback {webhook_id!r} was answered with {status}")
            return
        callback = decode(body)
        if isinstance(callback, TurnCompleted):
            self.arrivals.append(Arrival(time.time(), webhook_id, callback.data))
        elif not isinstance(callback, Ping):
            self.wrong.append(f"{webhook_id} came, and no answer was in it")


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are for the demo, which then stops everything


def reserve() -> socket.socket:
    """A port of 127.0.0.1, bound and never listened on: it stays ours while nobody serves it."""
    port = socket.socket()
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port.bind(("127.0.0.1", 0))
    return port
