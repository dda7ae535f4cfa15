from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import anyio
import pytest
from support.waiting import PATIENCE_S

from paliadin_sidecar.delivery.happy_eyeballs import connect
from paliadin_sidecar.host.resources import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def lookups() -> Iterator[Threads]:
    with closing(Threads(1, "lookup")) as threads:
        yield threads


def resolve(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let each name have these addresses."""

    def addresses(host: str, port: int, *, flags: int = 0, **_: object) -> list[tuple[object, ...]]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port)) for host in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)


async def test_an_address(listener: socket.socket, lookups: Threads) -> None:
    """An address needs nobody to resolve it, and its socket does not block."""
    with await connect("127.0.0.1", listener.getsockname()[1], lookups) as connected:
        assert connected.getpeername() == listener.getsockname()
        assert not connected.getblocking()


async def test_an_address_that_does_not_answer(
    listener: socket.socket, lookups: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one of the name is tried after a moment, while the first is still waited for."""
    resolve(monkeypatch, "192.0.2.1", "127.0.0.1")  # the first is nobody's (RFC 5737)
    with anyio.fail_after(PATIENCE_S):
        with await connect("two.example", listener.getsockname()[1], lookups) as connected:
            assert connected.getpeername() == listener.getsockname()


async def test_an_address_that_refuses(
    listener: socket.socket, lookups: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is tried at once."""
    resolve(monkeypatch, "127.0.0.2", "127.0.0.1")
    with await connect("two.example", listener.getsockname()[1], lookups) as connected:
        assert connected.getpeername() == listener.getsockname()


async def test_nobody_answers(listener: socket.socket, lookups: Threads) -> None:
    """The first error is the one that is raised."""
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        await connect("127.0.0.1", port, lookups)
