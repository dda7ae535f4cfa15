"""Says in words why there is no connection, by the exceptions under an HTTP library's own."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator

from paliadin_client.errors import Unreachable

#: Source: openssl/x509_vfy.h, X509_V_ERR_*.
_CERTIFICATES = {
    9: "its certificate is not valid yet: is the clock right?",
    10: "its certificate has expired",
    # 18: it signed itself. 19: its root did.
    **dict.fromkeys(
        (18, 19, 20, 21),
        "its certificate is of an authority that is not known here: AICHAT_CA_FILE adds one",
    ),
    # The second: of an address.
    **dict.fromkeys((62, 64), "its certificate is for another name than AICHAT_URL has"),
}
#: What OpenSSL says to bytes that are no TLS.
_NO_TLS = ("HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "WRONG_VERSION_NUMBER")
#: Names that the name service knows not to exist.
_NO_SUCH_HOST = {socket.EAI_NONAME, socket.EAI_FAIL, getattr(socket, "EAI_NODATA", None)}


def connection_error(exc: BaseException) -> Unreachable:
    """The error for what made a connection fail; nothing was sent on it."""
    described = filter(None, map(_describe, _causes(exc)))
    words, retryable = next(described, ("it failed", True))
    return Unreachable(
        f"no connection to aichat: {words}",
        detail=system_message(exc),
        retryable=retryable,
        remedy=None if retryable else "",  # the reason says it
    )


def system_message(exc: BaseException) -> str:
    """What the system says of the innermost cause; it may name the host, and nothing else."""
    return next((f"{each}" for each in _causes(exc) if isinstance(each, OSError)), "")


def _describe(cause: BaseException) -> tuple[str, bool] | None:
    # In words, and whether the cause may well go away by itself.
    match cause:
        case ssl.SSLCertVerificationError():
            other = f"its certificate is not accepted ({cause.verify_message})"
            found = (_CERTIFICATES.get(cause.verify_code, other), False)
        case ssl.SSLError(reason=reason) if reason in _NO_TLS:
            found = ("what answers there does not speak TLS: is AICHAT_URL http?", False)
        case ssl.SSLError():
            found = (f"the TLS handshake failed ({cause.reason or 'it was ended'})", True)
        case socket.gaierror(errno=code) if code in _NO_SUCH_HOST:
            found = ("there is no such host: is AICHAT_URL right?", False)
        case socket.gaierror():
            found = ("the name service does not answer", True)
        case ConnectionRefusedError():
            found = ("refused: nothing listens there", True)
        case TimeoutError():
            found = ("no answer in time", True)
        case OSError(errno=int(code)):
            found = (os.strerror(code), True)
        case _:
            return None
    return found


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    # The innermost comes first: an HTTP library's errors have its transport's as their cause, and
    # those the system's.
    if exc is None:
        return
    yield from _causes(exc.__cause__ or exc.__context__)
    if isinstance(exc, BaseExceptionGroup):
        for each in exc.exceptions:
            yield from _causes(each)
    yield exc
