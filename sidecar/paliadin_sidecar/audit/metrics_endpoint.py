"""Answers Prometheus over HTTP, within bounds that keep the daemon's own work out of its reach."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial

import anyio
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from paliadin_sidecar.audit.metrics import Numbers
from paliadin_sidecar.errors import NotServed, OutboxError
from paliadin_sidecar.host.resources import Threads
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.settings import Settings

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

    All on the event loop, within bounds of its own: so many connections, so much time and so many
    bytes each. The numbers are read in one thread, for a part of the time at most.

    Args:
        settings: of the daemon, which name an address.
        scanned: how often a root was scanned, and how many files only a scan found.
        on_problem: called with the reason why the numbers are not served, each time that is tried,
            and with None when they are.
    """
    # A second series for each one, which nothing here needs.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
    while True:
        try:
            await _serve(settings, scanned, on_ready=partial(on_problem, None))
        except NotServed as exc:
            on_problem(str(exc))
        await anyio.sleep(_RETRY_S)


async def _serve(
    settings: Settings, scanned: Callable[[], tuple[int, int]], on_ready: Callable[[], None]
) -> None:
    # Raises NotServed where the address cannot be had, or the outbox not be read.
    assert settings.metrics is not None
    host, port = settings.metrics
    path = settings.state_dir / FILENAME
    roots = [(spec.backend, spec.persona) for spec in settings.roots]
    registry = CollectorRegistry()
    with ExitStack() as stack:
        try:
            in_thread = stack.enter_context(closing(Threads(1, "metrics")))
            registry.register(await in_thread(Numbers, path, roots, scanned))
            ProcessCollector(registry=registry)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except (OutboxError, RuntimeError, OSError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise NotServed(f"{host}:{port}", str(why)) from None
        scrapes = _Scrapes(registry, in_thread)
        async with anyio.create_task_group() as tasks:
            server = await asyncio.start_server(
                lambda reader, writer: tasks.start_soon(scrapes.serve, reader, writer),
                sock=listening,
                limit=_MAX_HEAD,
            )
            stack.callback(server.close)
            on_ready()
            await anyio.sleep_forever()


class _Scrapes:
    # The connections that ask for the numbers, and their answers: one request, one answer, the end.

    def __init__(self, registry: CollectorRegistry, in_thread: Threads) -> None:
        self._registry = registry
        self._in_thread = in_thread
        self._open: dict[asyncio.StreamWriter, bool] = {}  # the oldest first; whether it has asked
        self._reading = anyio.Lock()
        self._read: dict[str, tuple[float, bytes]] = {}  # by content type: when it began, and what
        self._rested_at = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._make_place()
        self._open[writer] = False
        try:
            # Who sends or reads too slowly is aborted, as is who goes away.
            with suppress(OSError, asyncio.IncompleteReadError), anyio.move_on_after(_CONNECTION_S):
                is_answered = await self._answer(reader, writer)
                writer.write_eof()
                # What is unread when a connection is closed would destroy the answer.
                while not is_answered and await reader.read(_MAX_HEAD):
                    pass
                writer.close()
                await writer.wait_closed()
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    def _make_place(self) -> None:
        if len(self._open) == _MAX_CONNECTIONS:
            silent = (one for one, has_asked in self._open.items() if not has_asked)
            oldest = next(silent, None) or next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        # Whether that was a request for the numbers.
        body, content_type, method = b"", "text/plain", ""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            status = "431 Request Header Fields Too Large"
        else:
            request, *lines = head.decode("latin-1").split("\r\n")
            method, _, rest = request.partition(" ")
            if not rest.startswith("/") or " HTTP/1." not in rest:
                status = "400 Bad Request"
            elif method not in {"GET", "HEAD"}:
                status = "405 Method Not Allowed"
            else:
                if writer in self._open:
                    self._open[writer] = True
                fields = [line.partition(":") for line in lines]
                accepted = [value for name, _, value in fields if name.lower() == "accept"]
                status, body, content_type = await self._numbers(",".join(accepted))
        head_lines = (
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head_lines.encode() + (b"" if method == "HEAD" else body))
        return status.startswith("2")

    async def _numbers(self, accept: str) -> tuple[str, bytes, str]:
        # One reading for all that asked before it began.
        encoder, content_type = choose_encoder(accept)
        asked_at = anyio.current_time()
        async with self._reading:
            began, body = self._read.get(content_type, (0.0, b""))
            if began < asked_at:
                await anyio.sleep_until(self._rested_at)
                began = anyio.current_time()
                try:
                    body = await self._in_thread(encoder, self._registry)
                except Exception as exc:  # noqa: BLE001 - it costs this scrape, and nothing else
                    return "500 Internal Server Error", type(exc).__name__.encode(), "text/plain"
                finally:
                    now = anyio.current_time()
                    self._rested_at = now + _REST * (now - began)
                self._read[content_type] = began, body
        return "200 OK", body, content_type
