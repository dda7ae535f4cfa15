"""Why aichat cannot be reached: each cause in its words, from real sockets and certificates."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import trustme

import paliadin_client
from paliadin_client import ConfigError, PaliadinError, ShimError, Unreachable
from paliadin_client import aichat as module
from paliadin_client.http_cause import connection_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.anyio

CA = trustme.CA()


def environ(url: str, **more: str) -> dict[str, str]:
    return {"PALIADIN_BACKEND": "aichat", "AICHAT_URL": url, "AICHAT_TOKEN": "token-marker", **more}


async def failure(url: str, **more: str) -> PaliadinError:
    async with paliadin_client.connect(environ=environ(url, **more)) as paliadin:
        with pytest.raises(PaliadinError) as caught:
            await paliadin.health()
    assert "marker" not in f"{caught.value!r}{caught.value.detail}"
    return caught.value


async def well(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4096)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    await writer.drain()
    writer.close()


@asynccontextmanager
async def serving(serve: Serve = well, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def tls(name: str, *, expired: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    times = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC))
    issued = (
        CA.issue_cert(name, not_before=times[0], not_after=times[1])
        if expired
        else CA.issue_cert(name)
    )
    issued.configure_cert(context)
    return context


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


async def test_authority(ca_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority is known by AICHAT_CA_FILE alone; no variable of OpenSSL's adds one."""
    async with serving(tls=tls("localhost")) as port:
        url = f"https://localhost:{port}"
        async with paliadin_client.connect(
            environ=environ(url, AICHAT_CA_FILE=ca_file)
        ) as paliadin:
            await paliadin.health()
        monkeypatch.setenv("SSL_CERT_FILE", ca_file)
        error = await failure(url)
    assert isinstance(error, Unreachable)
    assert not error.retryable
    assert str(error) == (
        "mriver_unreachable: no connection to aichat: its certificate is of an authority that is "
        "not known here: AICHAT_CA_FILE adds one"
    )
    assert "certificate verify failed" in error.detail


@pytest.mark.parametrize(
    ("name", "expired", "words"),
    [
        ("other.example.org", False, "its certificate is for another name than AICHAT_URL has"),
        ("localhost", True, "its certificate has expired"),
    ],
)
async def test_certificates(ca_file: str, name: str, words: str, *, expired: bool) -> None:
    """A certificate of a known authority that will not do says why."""
    async with serving(tls=tls(name, expired=expired)) as port:
        error = await failure(f"https://localhost:{port}", AICHAT_CA_FILE=ca_file)
    assert str(error).endswith(f": no connection to aichat: {words}")
    assert not error.retryable


async def test_no_tls() -> None:
    """A port that speaks plain HTTP is reported as that."""
    async with serving() as port:
        error = await failure(f"https://127.0.0.1:{port}")
    assert str(error).endswith("does not speak TLS: is AICHAT_URL http?")
    assert (type(error), error.retryable) == (Unreachable, False)


async def test_handshake_ended() -> None:
    """A server that hangs up in the handshake was sent nothing."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with serving(hang_up) as port:
        error = await failure(f"https://127.0.0.1:{port}")
    assert (type(error), error.retryable) == (Unreachable, True)
    assert error.detail


async def test_refused() -> None:
    """A port where nothing listens is refused, and the detail says which."""
    error = await failure("http://127.0.0.1:1")
    assert str(error).endswith("no connection to aichat: refused: nothing listens there")
    assert "('127.0.0.1', 1)" in error.detail
    assert error.retryable


async def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that takes no more connections is given up after a while."""
    monkeypatch.setattr(module, "_CONNECT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.settimeout(0)
            each.connect_ex(full.getsockname())
        error = await failure(f"http://127.0.0.1:{full.getsockname()[1]}")
        for each in waiting:
            each.close()
    assert str(error).endswith("no connection to aichat: no answer in time")
    assert (type(error), error.retryable) == (Unreachable, True)


@pytest.mark.parametrize(
    ("cause", "words", "retryable"),
    [
        (socket.gaierror(socket.EAI_NONAME, "x"), "no such host: is AICHAT_URL right?", False),
        (socket.gaierror(socket.EAI_AGAIN, "x"), "the name service does not answer", True),
        (OSError(113, "x"), "No route to host", True),
        (ValueError("marker"), "it failed", True),
    ],
)
def test_other_causes(cause: Exception, words: str, *, retryable: bool) -> None:
    """What no test can make for real is named by the innermost cause, also one of a group's."""
    outer = OSError("All connection attempts failed")
    outer.__cause__ = ExceptionGroup("each attempt", [cause])
    found = connection_error(outer)
    assert str(found).endswith(words)
    assert "marker" not in found.detail
    assert found.retryable is retryable


@pytest.mark.parametrize("there", [False, True])
async def test_no_such_file(tmp_path: Path, *, there: bool) -> None:
    """A file without a certificate is reported by `connect`."""
    path = tmp_path / "ca.pem"
    if there:
        path.write_text("none\n")
    with pytest.raises(ConfigError, match=r"AICHAT_CA_FILE=.* is no readable file of PEM"):
        async with paliadin_client.connect(
            environ=environ("https://localhost", AICHAT_CA_FILE=str(path))
        ):
            pytest.fail("connected")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect(status: int) -> None:
    """A redirect is not followed, and says where to, without what a query may hold."""

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        head = f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\nLocation: https://a:marker@example.org/in?t=marker#marker\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        writer.close()

    async with serving(redirect) as port:
        error = await failure(f"http://127.0.0.1:{port}")
    assert type(error) is ShimError
    assert str(error).startswith(f"shim_error: HTTP {status}: a redirect, which is not followed")
    assert error.detail == "Location: https://example.org/in"
