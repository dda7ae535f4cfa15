from __future__ import annotations

import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import anyio
import pytest
from support.waiting import PATIENCE_S

from paliadin_sidecar.delivery.happy_eyeballs import Resolver, connect
from paliadin_sidecar.host.resources import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    with closing(Threads(2, "lookup")) as threads:
        yield Resolver(threads)


def resolve(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let each name have these addresses."""

    def addresses(host: str, port: int, *, flags: int = 0, **_: object) -> list[tuple[object, ...]]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port)) for host in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)


async def test_an_address(listener: socket.socket, resolver: Resolver) -> None:
    """An address needs nobody to resolve it, and its socket does not block."""
    with await connect("127.0.0.1", listener.getsockname()[1], resolver) as connected:
        assert connected.getpeername() == listener.getsockname()
        assert not connected.getblocking()


async def test_an_address_that_does_not_answer(
    listener: socket.socket, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one of the name is tried after a moment, while the first is still waited for."""
    resolve(monkeypatch, "192.0.2.1", "127.0.0.1")  # the first is nobody's (RFC 5737)
    with anyio.fail_after(PATIENCE_S):
        with await connect("two.example", listener.getsockname()[1], resolver) as connected:
            assert connected.getpeername() == listener.getsockname()


async def test_an_address_that_refuses(
    listener: socket.socket, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is tried at once."""
    resolve(monkeypatch, "127.0.0.2", "127.0.0.1")
    with await connect("two.example", listener.getsockname()[1], resolver) as connected:
        assert connected.getpeername() == listener.getsockname()


async def test_nobody_answers(listener: socket.socket, resolver: Resolver) -> None:
    """The first error is the one that is raised."""
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        await connect("127.0.0.1", port, resolver)


async def test_one_question_for_all(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants to know at the same time shares it, also where one of them waits no longer."""
    questions = Questions(monkeypatch)
    async with anyio.create_task_group() as tasks:
        gone = anyio.CancelScope()

        async def ask_and_go() -> None:
            with gone:
                await resolver("one.example", 1)

        tasks.start_soon(ask_and_go)
        tasks.start_soon(resolver, "one.example", 1)
        await anyio.wait_all_tasks_blocked()
        gone.cancel()
        questions.answer.set()
    assert questions.count == 1
    await resolver("one.example", 1)
    assert questions.count == 2


async def test_a_name_server_of_another_network(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that hangs there holds nobody who asks after the network has changed."""
    questions = Questions(monkeypatch)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(resolver, "one.example", 1)
        await anyio.wait_all_tasks_blocked()
        resolver.forget()
        hangs, questions.answer = questions.answer, threading.Event()
        questions.answer.set()
        with anyio.fail_after(PATIENCE_S):
            await resolver("one.example", 1)
        hangs.set()
    assert questions.count == 2


class Questions:
    """A resolver that answers each question once its `answer` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.answer = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", self._ask)

    def _ask(self, host: str, *_: object, flags: int = 0, **__: object) -> list[object]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, host)
        self.count += 1
        assert self.answer.wait(PATIENCE_S)
        return []
