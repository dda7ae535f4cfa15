"""Answers Prometheus over HTTP, within bounds that keep the daemon's own work out of its reach."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import anyio
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from paliadin_sidecar.audit.metrics import Numbers
from paliadin_sidecar.errors import NotServed, OutboxError
from paliadin_sidecar.host.threads import Threads
from paliadin_sidecar.outbox.database import FILENAME

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from paliadin_sidecar.settings import Settings

__all__ = ["serve", "serve_until_cancelled"]

#: Prometheus asks once in some seconds. Whatever else connects gets so many connections, so many
#: seconds from the first byte to the last, and so many bytes to ask in.
_MAX_CONNECTIONS, _CONNECTION_S, _MAX_HEAD = 16, 10.0, 8 * 1024
_BACKLOG = 16
#: Reading the numbers takes at most a fifth of the time, however many ask.
_REST = 4.0
#: An address that cannot be had is tried again this often.
_RETRY_S = 2.0


async def serve_until_cancelled(
    settings: Settings,
    scanned: Callable[[], tuple[int, int]],
    on_problem: Callable[[str | None], None],
) -> None:
    """Serve; while that fails, say why and try again. Answers matter more: nothing ends by it.

    Args:
        settings: of the daemon, which name an address.
        scanned: see `serve`.
        on_problem: called with each new reason why the numbers are not served, and with None when
            they are.
    """
    assert settings.metrics is not None
    path = settings.state_dir / FILENAME
    roots = [(spec.backend, spec.persona) for spec in settings.roots]
    told = ""
    while True:
        try:
            async with serve(settings.metrics, path, roots, scanned):
                told = ""
                on_problem(None)
                await anyio.sleep_forever()
        except NotServed as exc:
            if told != str(exc):
                told = str(exc)
                on_problem(told)
        await anyio.sleep(_RETRY_S)


@asynccontextmanager
async def serve(
    address: tuple[str, int],
    path: Path,
    roots: list[tuple[str, str]],
    scanned: Callable[[], tuple[int, int]],
) -> AsyncGenerator[None, None]:
    """Answer at `address` until the block ends.

    All on the event loop, within bounds of its own: so many connections, so much time and so many
    bytes each. The numbers are read in one thread, for a part of the time at most.

    Args:
        address: host and port.
        path: the outbox.
        roots: backend and persona of each.
        scanned: how often a root was scanned, and how many files only a scan found.

    Raises:
        NotServed: the address cannot be had, or the outbox not be read.
    """
    # A second series for each one, which nothing here needs.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
    registry = CollectorRegistry()
    with ExitStack() as stack:
        try:
            in_thread = Threads(1, "metrics")
            stack.callback(in_thread.close)
            numbers = await in_thread(partial(Numbers, path, roots, scanned))
            registry.register(numbers)
            ProcessCollector(registry=registry)
            listening = _listen(*address)
            stack.enter_context(listening)
        except (OutboxError, RuntimeError, OSError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise NotServed(":".join(map(str, address)), str(why)) from None
        scrapes = Scrapes(registry, in_thread)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(scrapes.connection, sock=listening, backlog=_BACKLOG)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scrapes.answer)
            try:
                yield
            finally:
                server.close()
                scrapes.close()
                tasks.cancel_scope.cancel()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


class Scrapes:
    """The connections that ask for the numbers, and their answers.

    Args:
        registry: what is asked for.
        in_thread: where it is read.
    """

    def __init__(self, registry: CollectorRegistry, in_thread: Threads) -> None:
        self._registry = registry
        self._in_thread = in_thread
        self._open: dict[_Connection, None] = {}  # the oldest first
        self._asking: list[_Connection] = []
        self._asked = anyio.Event()

    def connection(self) -> asyncio.Protocol:
        """A protocol for one more connection."""
        return _Connection(self)

    def opened(self, connection: _Connection) -> None:
        """One more is open; beyond the bound, one goes that has not asked, else the oldest."""
        self._open[connection] = None
        if len(self._open) > _MAX_CONNECTIONS:
            others = [one for one in self._open if one is not connection]
            next((one for one in others if not one.asked), others[0]).abort()

    def closed(self, connection: _Connection) -> None:
        """It is gone."""
        self._open.pop(connection, None)

    def ask(self, connection: _Connection) -> None:
        """Answer this one when the numbers are read the next time."""
        self._asking.append(connection)
        self._asked.set()

    async def answer(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            asking, self._asking = self._asking, []
            began = time.monotonic()
            for accept in {one.accept for one in asking}:
                status, body, content_type = await self._read(accept)
                for one in asking:
                    if one.accept == accept:
                        one.respond(status, body, content_type)
            await anyio.sleep(_REST * (time.monotonic() - began))

    async def _read(self, accept: str) -> tuple[str, bytes, str]:
        encoder, content_type = choose_encoder(accept)
        try:
            return "200 OK", await self._in_thread(encoder, self._registry), content_type
        except Exception as exc:  # noqa: BLE001 - it costs this scrape, and nothing else
            return "500 Internal Server Error", type(exc).__name__.encode(), "text/plain"

    def close(self) -> None:
        """End every connection."""
        for connection in list(self._open):
            connection.abort()


class _Connection(asyncio.Protocol):
    # One request, one answer, and the end.

    def __init__(self, scrapes: Scrapes) -> None:
        self._scrapes = scrapes
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self._late: asyncio.TimerHandle | None = None
        self._with_body = True
        self.asked = False
        self.accept = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._late = asyncio.get_running_loop().call_later(_CONNECTION_S, self.abort)
        self._scrapes.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - it is over anyhow
        if self._late is not None:
            self._late.cancel()
        self._scrapes.closed(self)

    def data_received(self, data: bytes) -> None:
        if self.asked:
            return  # a body, or another request: this one's answer is the last
        self._head += data
        head, end, _ = self._head.partition(b"\r\n\r\n")
        if len(head) > _MAX_HEAD:
            self._refuse("431 Request Header Fields Too Large")
        elif end:
            self._read(head.decode("latin-1"))

    def eof_received(self) -> bool:
        return self.asked  # who has asked may close this direction, and still be answered

    def _read(self, head: str) -> None:
        request, *lines = head.split("\r\n")
        method, _, rest = request.partition(" ")
        if not rest.startswith("/") or " HTTP/1." not in rest:
            self._refuse("400 Bad Request")
        elif method not in {"GET", "HEAD"}:
            self._refuse("405 Method Not Allowed")
        else:
            fields = [line.partition(":") for line in lines]
            accepted = [value for name, _, value in fields if name.lower() == "accept"]
            self.accept = ",".join(accepted)
            self._with_body = method == "GET"
            self.asked = True
            self._scrapes.ask(self)

    def _refuse(self, status: str) -> None:
        self.asked = True
        self.respond(status, b"", "text/plain")

    def respond(self, status: str, body: bytes, content_type: str) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._transport.write(head.encode() + (body if self._with_body else b""))
        self._transport.close()  # when it was read; who does not read is aborted in time

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
