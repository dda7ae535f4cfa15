"""One signed attempt → its outcome."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from paliadin_contract.signature import Keys
from paliadin_sidecar.delivery.connections import Connections
from paliadin_sidecar.delivery.refusal_reader import RefusalReader
from paliadin_sidecar.errors import ConnectionLost, EarlyAnswer
from paliadin_sidecar.host.resources import Threads
from paliadin_sidecar.outbox.records import Outcome
from paliadin_sidecar.settings import Settings

#: Threads for the lookup of names: a name that does not resolve can keep one for half a minute.
_LOOKUPS = 4
_HEADERS = {"content-type": "application/json", "user-agent": "paliadin-sidecar"}


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
        self._url = url
        self._keys = Keys(secrets)
        self._timeout_s = timeout_s
        self._wall = wall
        self._ca_file = ca_file

    async def __aenter__(self) -> Self:
        tls = _verified(self._ca_file) if self._url.lower().startswith("https:") else None
        self._lookups = Threads(_LOOKUPS, "lookup")
        self._refusals = RefusalReader()
        self._connections = Connections(
            self._url, tls=tls, timeout_s=self._timeout_s, lookups=self._lookups
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._refusals.close()
        self._connections.close()
        self._lookups.close()

    @property
    def opened(self) -> int:
        """How many connections were opened so far."""
        return self._connections.opened

    def interrupted(self, slept_s: float) -> None:
        """Leave what the machine cannot use any more; see `Connections.interrupted`."""
        self._connections.interrupted(slept_s)

    async def attempt(self, webhook_id: str, body: bytes) -> Outcome:
        """Push once, with a fresh timestamp and signature. Raises nothing but cancellation."""
        now = datetime.fromtimestamp(self._wall(), UTC)
        return await self.post(self._keys.sign(webhook_id, body, now), body)

    async def post(self, signed: Mapping[str, str], body: bytes) -> Outcome:
        """Push once, under these headers. Raises nothing but cancellation."""
        started = time.monotonic()
        try:
            response = await self._connections.post({**_HEADERS, **signed}, body)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it costs one attempt only
            return Outcome(error=_error(exc), detail=_tls_detail(exc), ms=_ms_since(started))
        return Outcome(
            status=response.status,
            retry_after=response.headers.get("retry-after"),
            date=response.headers.get("date"),
            location=response.headers.get("location"),
            ms=_ms_since(started),
            said=self._refusals.read(response, body),
        )


def sender_of(settings: Settings, secrets: Iterable[str] | None = None) -> Sender:
    """A sender to the configured callback, which signs with other secrets where some are given."""
    return Sender(
        settings.callback_url,
        settings.secrets if secrets is None else secrets,
        timeout_s=settings.callback_timeout_s,
        ca_file=settings.callback_ca_file,
    )


def _verified(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()  # the system's authorities
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


def _ms_since(started: float) -> float:
    return (time.monotonic() - started) * 1000


def _error(exc: Exception) -> str:
    for kind, name in (
        (TimeoutError, "timeout"),
        (socket.gaierror, "dns"),
        (ssl.SSLError, "tls"),
        (EarlyAnswer, "early"),
        (ConnectionLost, "reset"),
        (OSError, "connect"),
    ):
        if isinstance(exc, kind):
            return name
    return type(exc).__name__


#: Source: openssl/x509_vfy.h, X509_V_ERR_*.
_VERIFY_CODES = {
    9: "not_yet_valid",
    10: "expired",
    # 18: it signed itself. 19: its root did, and is not known here.
    **dict.fromkeys((18, 19, 20, 21), "unknown_authority"),
    **dict.fromkeys((62, 64), "wrong_name"),  # the second: of an address
}
#: What OpenSSL says to bytes that are no TLS.
_NO_TLS = {
    "WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE",
}  # fmt: skip


def _tls_detail(exc: Exception) -> str | None:
    if not isinstance(exc, ssl.SSLError):
        return None
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _VERIFY_CODES.get(exc.verify_code, f"verify_code_{exc.verify_code}")
    reason = exc.reason or type(exc).__name__
    return "no_tls" if reason in _NO_TLS else reason.lower()
