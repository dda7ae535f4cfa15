"""One signed attempt → its outcome. The only module that knows httpx."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

import aiohttp
import anyio
import httpx
from httpx_aiohttp import AiohttpTransport

from paliadin_contract.signature import Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from aiohttp.connector import Connection

__all__ = ["Outcome", "Sender"]

#: Read this much of an answer's body, so that the connection can be used again; a longer
#: body costs the connection and nothing else.
_MAX_DRAINED = 4096
_DRAIN_S = 1.0
#: A proxy's policies and cookies can be long, and a 2xx is one whatever stands beside it.
_MAX_HEADER = 64 * 1024
#: Connecting is part of an attempt's deadline; this only bounds how long a kept one is kept.
_KEEPALIVE_S = 30.0
_HEADERS = {"content-type": "application/json", "user-agent": "paliadin-sidecar"}


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        status: the HTTP status, None where no answer came.
        error: what came instead: `connect`, `dns`, `tls`, `timeout`, `reset`, or another
            error's name.
        retry_after: the header of that name, as it came.
        date: the header of that name, as it came.
        ms: how long the attempt took.
    """

    status: int | None = None
    error: str | None = None
    retry_after: str | None = None
    date: str | None = None
    ms: float = 0.0


class Sender:
    """Pushes bodies to one callback.

    Args:
        url: where to.
        secrets: what to sign with, one or several while rotating.
        timeout_s: the total time of an attempt, from connecting to the answer's head.
        ca_file: an authority to trust beside the system's.
        wall: the clock for signatures.
    """

    def __init__(
        self,
        url: str,
        secrets: Iterable[str],
        *,
        timeout_s: float,
        ca_file: Path | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._url = httpx.URL(url)
        self._keys = Keys(secrets)
        self._timeout_s = timeout_s
        self._wall = wall
        tls: ssl.SSLContext | bool = False
        if self._url.scheme == "https":
            tls = ssl.create_default_context()  # 2.5 MB: the system's authorities
            if ca_file is not None:
                tls.load_verify_locations(ca_file)
        # A bare transport: no redirects (a body must not go where nobody configured it to), no
        # proxies of the environment. And not httpx's own: docs/performance.md
        self._transport = AiohttpTransport(
            verify=tls, client=lambda: _session(tls=tls, timeout_s=timeout_s)
        )

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._transport.__aexit__(kind, exc, trace)

    async def attempt(self, webhook_id: str, body: bytes) -> Outcome:
        """Push once, with a fresh timestamp and signature. Raises nothing but cancellation."""
        started = anyio.current_time()
        outcome, response = Outcome(error="timeout"), None
        with anyio.move_on_after(self._timeout_s):
            try:
                response = await self._post(webhook_id, body)
                headers = response.headers
                outcome = Outcome(
                    status=response.status_code,
                    retry_after=headers.get("retry-after"),
                    date=headers.get("date"),
                )
            except Exception as exc:  # noqa: BLE001 - whatever it is, it costs one attempt only
                outcome = Outcome(error=_error(exc))
        ms = (anyio.current_time() - started) * 1000
        if response is not None:
            await _drain(response)
        return replace(outcome, ms=ms)

    async def _post(self, webhook_id: str, body: bytes) -> httpx.Response:
        headers = self._keys.sign(webhook_id, body, datetime.fromtimestamp(self._wall(), UTC))
        request = httpx.Request("POST", self._url, content=body, headers=_HEADERS | headers)
        return await self._transport.handle_async_request(request)


def _session(*, tls: ssl.SSLContext | bool, timeout_s: float) -> aiohttp.ClientSession:
    def new_socket(address: aiohttp.AddrInfoType) -> socket.socket:
        # A connection is not closed while it has unsent bytes, and a peer that reads nothing
        # would keep it for ever: the kernel ends it.
        made = socket.socket(*address[:3])
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(timeout_s * 1000))
        return made

    # One callback has nothing to do with the one before: no cookie is kept.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            ssl=tls, keepalive_timeout=_KEEPALIVE_S, socket_factory=new_socket
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        response_class=_Response,
        max_field_size=_MAX_HEADER,
    )


class _Response(aiohttp.ClientResponse):
    async def start(self, connection: Connection) -> Self:
        await super().start(connection)
        self.reason = None  # the transport fails on one that is no UTF-8, and nobody needs it
        return self


async def _drain(response: httpx.Response) -> None:
    # The head was the answer: what becomes of the body changes nothing any more.
    with anyio.move_on_after(_DRAIN_S):
        try:
            length = response.headers.get("content-length", "")
            short = length.isdecimal() and int(length[:9]) <= _MAX_DRAINED
            if short and response.status_code != httpx.codes.NO_CONTENT:
                await response.aread()
            await response.aclose()
        except Exception:  # noqa: BLE001, S110 - as above; the client drops the connection
            pass


def _error(exc: BaseException) -> str:
    # The transport has few names for much: the causes tell more.
    causes = list(_causes(exc))
    for kind, name in (
        (socket.gaierror, "dns"),
        (ssl.SSLError, "tls"),
        (aiohttp.ClientConnectorError, "connect"),
        (aiohttp.ClientError, "reset"),
    ):
        if any(isinstance(cause, kind) for cause in causes):
            return name
    return type(exc).__name__


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__ or exc.__context__
