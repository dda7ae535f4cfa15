"""One signed attempt → its outcome. The only module that knows aiohttp."""

from __future__ import annotations

import io
import math
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from types import NoneType
from typing import TYPE_CHECKING, Any, Self, cast

import aiohttp
import anyio

from paliadin_contract.signature import Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from paliadin_sidecar.threads import Threads

__all__ = ["Outcome", "Sender"]

#: Read this much of an answer's body, so that the connection can be used again; a longer
#: body costs the connection and nothing else.
_MAX_DRAINED = 4096
_DRAIN_S = 1.0
#: A proxy's policies and cookies can be long, and a 2xx is one whatever stands beside it.
_MAX_HEADER = 64 * 1024
_LARGE = 256 * 1024
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
        detail: why TLS failed: `expired`, `not_yet_valid`, `wrong_name`, `unknown_authority`,
            `no_tls`, or OpenSSL's own word; None where there is no more to say.
        retry_after: the header of that name, as it came.
        date: the header of that name, as it came.
        location: the header of that name, as it came.
        ms: how long the attempt took.
    """

    status: int | None = None
    error: str | None = None
    detail: str | None = None
    retry_after: str | None = None
    date: str | None = None
    location: str | None = None
    ms: float = 0.0


class Sender:
    """Pushes bodies to one callback.

    Args:
        url: where to.
        secrets: what to sign with, one or several while rotating.
        timeout_s: the total time of an attempt, from connecting to the answer's head.
        ca_file: an authority to trust beside the system's.
        wall: the clock for signatures.
        lookups: threads for the names' lookups; the loop's where there are none of their own.
    """

    def __init__(
        self,
        url: str,
        secrets: Iterable[str],
        *,
        timeout_s: float,
        ca_file: Path | None = None,
        wall: Callable[[], float] = time.time,
        lookups: Threads | None = None,
    ) -> None:
        self._url = url
        self._lookups = lookups
        self._keys = Keys(secrets)
        self._timeout_s = timeout_s
        self._wall = wall
        self._tls: ssl.SSLContext | bool = True  # the system's authorities
        if ca_file is not None:
            self._tls = ssl.create_default_context()
            self._tls.load_verify_locations(ca_file)

    async def __aenter__(self) -> Self:
        self._session = _session(tls=self._tls, timeout_s=self._timeout_s, lookups=self._lookups)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def attempt(self, webhook_id: str, body: bytes) -> Outcome:
        """Push once, with a fresh timestamp and signature. Raises nothing but cancellation."""
        started = time.monotonic()
        try:
            response = await self._post(webhook_id, body)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it costs one attempt only
            return Outcome(error=_error(exc), detail=_tls_detail(exc), ms=_ms_since(started))
        outcome = Outcome(
            status=response.status,
            retry_after=response.headers.get("retry-after"),
            date=response.headers.get("date"),
            location=response.headers.get("location"),
            ms=_ms_since(started),
        )
        await _drain(response)
        return outcome

    async def _post(self, webhook_id: str, body: bytes) -> aiohttp.ClientResponse:
        signed = self._keys.sign(webhook_id, body, datetime.fromtimestamp(self._wall(), UTC))
        # No redirects: a body must not go where nobody configured it to.
        # As a file a large one goes in pieces, and is not copied while it waits for the network.
        large = len(body) > _LARGE
        data = aiohttp.BytesIOPayload(io.BytesIO(body)) if large else body
        return await self._session.post(
            self._url, data=data, headers=_HEADERS | signed, allow_redirects=False
        )


class _Lookups:
    # What aiohttp's resolver asks its loop for, in threads that are there already. One that
    # hangs is left alone.
    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    async def getaddrinfo(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - handed through
        return await self._threads.abandonable(partial(socket.getaddrinfo, *args, **kwargs))

    async def getnameinfo(self, *args: Any) -> Any:  # noqa: ANN401 - handed through
        return await self._threads.abandonable(partial(socket.getnameinfo, *args))


def _session(
    *, tls: ssl.SSLContext | bool, timeout_s: float, lookups: Threads | None
) -> aiohttp.ClientSession:
    resolver: aiohttp.abc.AbstractResolver | None = None  # aiohttp's
    if lookups is not None:
        resolver = aiohttp.ThreadedResolver(cast("Any", _Lookups(lookups)))

    def new_socket(address: aiohttp.AddrInfoType) -> socket.socket:
        # A connection is not closed while it has unsent bytes, and a peer that reads nothing
        # would keep it for ever: the kernel ends it.
        made = socket.socket(*address[:3])
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(timeout_s * 1000))
        return made

    # It knows no proxies of the environment; and one callback has nothing to do with the one
    # before: no cookie is kept.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            ssl=tls,
            keepalive_timeout=_KEEPALIVE_S,
            socket_factory=new_socket,
            resolver=resolver,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        # From connecting to the end, and not rounded to whole seconds.
        timeout=aiohttp.ClientTimeout(total=timeout_s, ceil_threshold=math.inf),
        auto_decompress=False,
        skip_auto_headers=("accept", "accept-encoding"),
        max_field_size=_MAX_HEADER,
    )


async def _drain(response: aiohttp.ClientResponse) -> None:
    # The head was the answer: what becomes of the body changes nothing any more.
    length = response.headers.get("content-length", "")
    short = length.isdecimal() and int(length[:9]) <= _MAX_DRAINED
    if short and response.status != HTTPStatus.NO_CONTENT:
        with suppress(Exception), anyio.move_on_after(_DRAIN_S):
            await response.read()
    response.release()  # one that was not read to its end costs the connection


def _ms_since(started: float) -> float:
    return (time.monotonic() - started) * 1000


def _error(exc: Exception) -> str:
    # An alert that comes after our half of the handshake is told as a lost connection.
    if isinstance(exc.__cause__, ssl.SSLError):
        return "tls"
    for kind, name in (
        (TimeoutError, "timeout"),
        (aiohttp.ClientConnectorDNSError, "dns"),
        (aiohttp.ClientSSLError, "tls"),
        (aiohttp.ClientConnectorError, "connect"),
        (aiohttp.ClientError, "reset"),
    ):
        if isinstance(exc, kind):
            return name
    return type(exc).__name__


#: Source: openssl/x509_vfy.h, X509_V_ERR_*.
_VERIFY_CODES = {
    9: "not_yet_valid",
    10: "expired",
    18: "unknown_authority",  # it signed itself
    19: "unknown_authority",  # its root did, and is not known here
    20: "unknown_authority",
    21: "unknown_authority",
    62: "wrong_name",
    64: "wrong_name",  # an address
}
#: What OpenSSL says to bytes that are no TLS.
_NO_TLS = {
    "WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE",
}  # fmt: skip


def _tls_detail(exc: BaseException | None) -> str | None:
    # aiohttp keeps OpenSSL's error as the cause of its own, which also calls itself one.
    while isinstance(exc, aiohttp.ClientError) or not isinstance(exc, (ssl.SSLError, NoneType)):
        exc = exc.__cause__
    if exc is None:
        return None
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _VERIFY_CODES.get(exc.verify_code, f"verify_code_{exc.verify_code}")
    reason = exc.reason or type(exc).__name__
    return "no_tls" if reason in _NO_TLS else reason.lower()
