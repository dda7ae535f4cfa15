"""What a receiver does on its connections, byte by byte; see also `test_policy_on_the_wire`."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
import trustme
from support.answers import CLEAN, ODD
from support.sidecar import new_secret
from support.waiting import PATIENCE_S

from paliadin_sidecar.delivery import connection, connections, happy_eyeballs
from paliadin_sidecar.delivery.sender import Sender
from paliadin_sidecar.host.resources import Threads
from paliadin_sidecar.outbox.records import Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 204 No Content\r\n\r\n"
UNAVAILABLE = b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n"


@pytest.fixture(autouse=True)
def anyio_backend() -> str:
    return "asyncio"


class Peer:
    """One connection, as a receiver has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> bytes:
        """A whole request; its head."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        await self.reader.readexactly(length)
        return head

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()


class Server:
    """Its connections are served by `scripts` in their order; the last one serves the rest."""

    def __init__(self, *scripts: Callable[[Peer], Awaitable[None]]) -> None:
        self.scripts = list(scripts)
        self.heads: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.connections += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await script(Peer(reader, writer))
        finally:
            writer.transport.abort()

    async def well(self, peer: Peer) -> None:
        """Acknowledge all."""
        while True:
            self.heads.append(await peer.read())
            await peer.say(OK)


@asynccontextmanager
async def serving(
    server: Server, tls: ssl.SSLContext | None = None, *, host: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(server.accept(reader, writer)))

    listening = await asyncio.start_server(accept, host, 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.001)  # what was aborted is closed by the loop


@pytest.fixture(params=["http", "https"])
async def sending(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[Sender]]]:
    """Makes a sender to a server, with and without TLS."""
    async with AsyncExitStack() as stack:

        async def send_to(
            server: Server, path: str = "/callback", timeout_s: float = 5.0
        ) -> Sender:
            tls, ca_file = None, None
            if request.param == "https":
                authority, ca_file = trustme.CA(), tmp_path / "ca.pem"
                authority.cert_pem.write_to_path(str(ca_file))
                tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                authority.issue_cert("127.0.0.1").configure_cert(tls)
            await stack.enter_async_context(serving(server, tls))
            url = f"{request.param}://127.0.0.1:{server.port}{path}"
            sender = Sender(url, [new_secret()], timeout_s=timeout_s, ca_file=ca_file)
            return await stack.enter_async_context(sender)

        yield send_to


def said(outcome: Outcome) -> int | str | None:
    return outcome.status if outcome.error is None else outcome.error


async def push(sender: Sender, body: bytes = b"{}") -> int | str | None:
    return said(await sender.attempt("t", body))


# --- whose answer is it? ----------------------------------------------------------------------


async def test_a_connection_is_used_again(sending: Callable[..., Awaitable[Sender]]) -> None:
    """One after the other goes over the same one; at the same time each has its own."""
    server = Server()
    server.scripts = [server.well]
    sender = await sending(server)
    for _ in range(5):
        assert await push(sender) == 204
    assert server.connections == 1
    outcomes = await asyncio.gather(*(push(sender) for _ in range(4)))
    assert outcomes == [204] * 4
    assert server.connections == 4


@pytest.mark.parametrize(
    "unasked",
    [OK, b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"x", b""],
    ids=["204", "408", "100", "garbage", "the end"],
)
@pytest.mark.parametrize("when", ["with the answer", "at rest"])
async def test_what_nobody_asked_for_is_no_answer(
    sending: Callable[..., Awaitable[Sender]], unasked: bytes, when: str
) -> None:
    """A second answer, a timeout or an end costs the connection, and the next turn gets its own."""
    said_it = anyio.Event()

    async def answers_twice(peer: Peer) -> None:
        await peer.read()
        if when == "with the answer":
            await peer.say(OK + unasked)
        else:
            await peer.say(OK)
            await anyio.sleep(0.05)
            await peer.say(unasked)
        if not unasked and peer.writer.can_write_eof():
            peer.writer.write_eof()
        elif not unasked:
            return
        said_it.set()
        await peer.read()
        await peer.say(UNAVAILABLE)

    server = Server(answers_twice)
    sender = await sending(server)
    assert await push(sender) == 204
    if unasked or when == "at rest":
        with anyio.move_on_after(1):
            await said_it.wait()
    else:
        await anyio.sleep(0.05)
    server.scripts = [partial(say_after_reading, UNAVAILABLE)]
    assert await push(sender) == 503
    assert server.connections == 2


async def say_after_reading(data: bytes, peer: Peer) -> None:
    await peer.read()
    await peer.say(data)


async def test_who_answers_twice_gets_one_request_a_connection(
    sending: Callable[..., Awaitable[Sender]],
) -> None:
    """The second answer may come in time for the next request; a 408 at rest is no such sign."""

    async def says(unasked: bytes, peer: Peer) -> None:
        await peer.read()
        await peer.say(OK)
        await sent.wait()
        await peer.say(unasked)
        await peer.reader.read()
        ended.set()

    for unasked, kept in ((OK, 3), (b"HTTP/1.1 408 x\r\n\r\n", 1)):
        sent, ended = anyio.Event(), anyio.Event()
        server = Server()
        server.scripts = [partial(says, unasked), server.well]
        sender = await sending(server)
        assert await push(sender) == 204
        sent.set()
        with anyio.fail_after(PATIENCE_S):
            await ended.wait()
        for _ in range(3):
            assert await push(sender) == 204
        assert server.connections == 1 + kept


async def test_bytes_that_the_loop_has_not_read_yet(
    sending: Callable[..., Awaitable[Sender]],
) -> None:
    """They are in the kernel when the connection is wanted again."""
    peers: list[Peer] = []

    async def keep(peer: Peer) -> None:
        peers.append(peer)
        await peer.read()
        await peer.say(OK)
        await peer.reader.read()

    server = Server(keep, partial(say_after_reading, UNAVAILABLE))
    sender = await sending(server)
    assert await push(sender) == 204
    peers[0].writer.write(OK)  # goes out at once, and nobody looks before the next attempt
    assert await push(sender) == 503


async def test_an_answer_before_the_question(sending: Callable[..., Awaitable[Sender]]) -> None:
    """A receiver that acknowledges whoever connects has taken nothing."""

    async def eager(peer: Peer) -> None:
        await peer.say(OK)
        await peer.reader.read()

    sender = await sending(Server(eager))
    assert await push(sender, b"x" * 8_000_000) in {"reset", "early"}


async def test_an_answer_before_the_whole_body(sending: Callable[..., Awaitable[Sender]]) -> None:
    """A 2xx acknowledges nothing then; a refusal is one."""

    async def early(data: bytes, peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(data)
        await anyio.sleep(0.2)

    body = b"x" * 24_000_000
    server = Server(partial(early, OK))
    sender = await sending(server)
    assert await push(sender, body) == "early"
    for status in (413, 503):
        server.scripts = [partial(early, f"HTTP/1.1 {status} x\r\n\r\n".encode())]
        assert await push(sender, body) == status


async def test_a_large_body_arrives(sending: Callable[..., Awaitable[Sender]]) -> None:
    """In pieces, whole, and its connection is used again."""
    server = Server()
    server.scripts = [server.well]
    sender = await sending(server)
    for size in (0, 1, 65_000, 66_000, 24_000_000):
        assert await push(sender, b"x" * size) == 204
        assert f"content-length: {size}\r\n".encode() in server.heads[-1]
    assert server.connections == 1


async def test_an_interim_answer_is_passed_over(
    sending: Callable[..., Awaitable[Sender]],
) -> None:
    """`100 Continue` and `103 Early Hints` come before the answer."""
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nlink: a\r\n\r\n"
    sender = await sending(Server(partial(say_after_reading, data + UNAVAILABLE)))
    assert await push(sender) == 503


async def test_the_same_instance_is_not_asked_again(
    sending: Callable[..., Awaitable[Sender]],
) -> None:
    """An answer that is no 2xx costs its connection, so that a balancer chooses anew."""

    async def refuses(peer: Peer) -> None:
        while True:
            await peer.read()
            await peer.say(UNAVAILABLE)

    server = Server(refuses)
    sender = await sending(server)
    for _ in range(3):
        assert await push(sender) == 503
    assert server.connections == 3


# --- a 2xx is one -----------------------------------------------------------------------------


@pytest.mark.parametrize("what", [*ODD, *CLEAN])
async def test_a_2xx_acknowledges(sending: Callable[..., Awaitable[Sender]], what: str) -> None:
    """Whatever stands behind its status line, and the next turn gets through as well."""
    data = (ODD | CLEAN)[what]

    async def odd(peer: Peer) -> None:
        while True:
            await peer.read()
            await peer.say(data)

    sender = await sending(Server(odd))
    for _ in range(2):
        outcome = await push(sender)
        assert isinstance(outcome, int)
        assert 200 <= outcome < 300


@pytest.mark.parametrize("end", ["reset", "end", "silence"])
async def test_a_status_line_is_enough(sending: Callable[..., Awaitable[Sender]], end: str) -> None:
    """The rest may be missing."""

    async def stops(status: bytes, peer: Peer) -> None:
        await peer.read()
        await peer.say(status)
        await anyio.sleep(0.05)
        if end == "reset":
            peer.reset()
        elif end == "silence":
            await anyio.sleep_forever()

    for status in (204, 503):
        sender = await sending(Server(partial(stops, f"HTTP/1.1 {status} x\r\n".encode())))
        assert await push(sender) == status


@pytest.mark.parametrize("reads", [True, False])
async def test_a_status_line_that_comes_late_is_enough(
    monkeypatch: pytest.MonkeyPatch, *, reads: bool
) -> None:
    """Also where its rest would come when the attempt has ended, and the request is not read."""

    def answer(listening: socket.socket) -> None:
        accepted, _ = listening.accept()
        with accepted:
            head = accepted.recv(64 * 1024)
            while reads and not head.endswith(b"}"):
                head = accepted.recv(64 * 1024)
            accepted.sendall(b"HTTP/1.1 %d x\r\n" % (204 if reads else 429))
            done.wait(PATIENCE_S)

    monkeypatch.setattr(connection, "_BODY_TIMEOUT_S", PATIENCE_S)
    done = threading.Event()
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/callback"
        try:
            async with Sender(url, [new_secret()], timeout_s=2.0) as sender:
                assert await push(sender, b"{%s}" % bytes(0 if reads else 8 * 1024 * 1024)) == (
                    204 if reads else 429
                )
        finally:
            done.set()
            thread.join(PATIENCE_S)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 204 No Con", b"SSH-2.0-x\r\n", b"\0" * 100])
async def test_no_answer(sending: Callable[..., Awaitable[Sender]], data: bytes) -> None:
    """A cut status line, another protocol, or nothing."""
    sender = await sending(Server(partial(say_after_reading, data)))
    assert await push(sender) == "reset"


async def test_a_body_that_comes_later(sending: Callable[..., Awaitable[Sender]]) -> None:
    """The turn does not wait for it; the connection does, and is used again."""
    come = anyio.Event()

    async def slow(peer: Peer) -> None:
        while True:
            await peer.read()
            await peer.say(b"HTTP/1.1 200 x\r\ncontent-length: 4\r\n\r\nnu")
            await come.wait()
            await peer.say(b"ll")

    server = Server(slow)
    sender = await sending(server)
    assert await push(sender) == 200
    come.set()
    await anyio.sleep(0.05)
    assert await push(sender) == 200
    assert server.connections == 1


async def test_a_body_that_does_not_come(
    sending: Callable[..., Awaitable[Sender]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is closed after a while."""
    monkeypatch.setattr(connection, "_BODY_TIMEOUT_S", 0.01)
    closed = anyio.Event()

    async def never(peer: Peer) -> None:
        await peer.read()
        await peer.say(b"HTTP/1.1 200 x\r\ncontent-length: 4\r\n\r\nnu")
        with suppress(OSError):
            await peer.reader.read()
        closed.set()

    sender = await sending(Server(never))
    assert await push(sender) == 200
    with anyio.fail_after(PATIENCE_S):
        await closed.wait()


# --- what is sent -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/hook/a%3Db", "/hook/a%3Db"),
        ("/hook/a=b", "/hook/a=b"),
        ("//hook//", "//hook//"),
        ("/%40@%2F%2f/..%2e/./x/../", "/%40@%2F%2f/..%2e/./x/../"),
        ("/a;b=c:d!$&'()*+,%", "/a;b=c:d!$&'()*+,%"),
        ("/%zz%", "/%zz%"),
        ("", "/"),
        ("/", "/"),
    ],
)
async def test_the_path_is_sent_as_it_is_written(
    sending: Callable[..., Awaitable[Sender]], path: str, sent: str
) -> None:
    """Nothing is decoded, encoded or tidied on the way."""
    server = Server()
    server.scripts = [server.well]
    assert await push(await sending(server, path)) == 204
    assert server.heads[0].startswith(f"POST {sent} HTTP/1.1\r\n".encode())
    assert f"\r\nhost: 127.0.0.1:{server.port}\r\n".encode() in server.heads[0]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://paliad.example.org/x", "paliad.example.org"),
        ("https://paliad.example.org:443/x", "paliad.example.org"),
        ("https://Paliad.Example.ORG:8443/x", "paliad.example.org:8443"),
        ("http://[::1]/x", "[::1]"),
        ("http://[::1]:8080/x", "[::1]:8080"),
        ("http://127.0.0.1:443/x", "127.0.0.1:443"),
    ],
)
def test_the_host_is_named(url: str, host: str) -> None:
    """With the port where it is not the scheme's own, and brackets around an address."""
    with closing(Threads(1, "lookup")) as lookups:
        made = connections.Connections(url, tls=None, timeout_s=1.0, lookups=lookups)
    assert made._start.endswith(f"\r\nhost: {host}\r\n")


async def test_a_name_that_ends_in_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same host, and its certificate's name has no dot at the end."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("paliad.example.org").configure_cert(tls)
    server = Server()
    server.scripts = [server.well]

    async def addresses(*_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", server.port))]

    monkeypatch.setattr(happy_eyeballs.Resolver, "__call__", addresses)
    async with serving(server, tls):
        for dot in ("", "."):
            url = f"https://paliad.example.org{dot}/callback"
            async with Sender(
                url, [new_secret()], timeout_s=PATIENCE_S, ca_file=tmp_path / "ca.pem"
            ) as sender:
                assert await push(sender) == 204


# --- a machine that slept, or is in another network ---------------------------------------------


async def test_an_idle_connection_after_an_interruption(
    sending: Callable[..., Awaitable[Sender]],
) -> None:
    """It is not used again: whoever was at its other end has long gone."""
    server = Server()
    server.scripts = [server.well]
    sender = await sending(server)
    assert await push(sender) == 204
    sender.interrupted(0.0)
    assert await push(sender) == 204
    assert server.connections == 2


async def pushed_meanwhile(
    sender: Sender, came: anyio.Event, interrupt: Callable[[], None]
) -> int | str | None:
    """What an attempt gets in which this happens, once the receiver has it."""
    outcomes: list[int | str | None] = []

    async def attempt() -> None:
        outcomes.append(await push(sender))

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(attempt)
            await came.wait()
            interrupt()
    return outcomes[0]


class Late:
    """A receiver that has the request, and answers once it may."""

    def __init__(self) -> None:
        self.came, self.go_on = anyio.Event(), anyio.Event()

    async def __call__(self, peer: Peer) -> None:
        await peer.read()
        self.came.set()
        await self.go_on.wait()
        await peer.say(OK)


async def test_an_attempt_that_was_slept_over(sending: Callable[..., Awaitable[Sender]]) -> None:
    """Its time has passed, so it is tried again at once."""
    late = Late()
    sender = await sending(Server(late), timeout_s=10 * PATIENCE_S)
    slept = partial(sender.interrupted, 10 * PATIENCE_S)
    assert await pushed_meanwhile(sender, late.came, slept) == "timeout"


async def test_an_attempt_in_a_short_sleep(sending: Callable[..., Awaitable[Sender]]) -> None:
    """It has the rest of its time."""
    late = Late()
    sender = await sending(Server(late), timeout_s=10 * PATIENCE_S)

    def interrupt() -> None:
        sender.interrupted(PATIENCE_S)
        late.go_on.set()

    assert await pushed_meanwhile(sender, late.came, interrupt) == 204


async def test_an_attempt_whose_address_is_still_there(
    sending: Callable[..., Awaitable[Sender]],
) -> None:
    """Another network that came beside its own takes nothing from it."""
    late = Late()
    sender = await sending(Server(late))

    def interrupt() -> None:
        sender.interrupted(0.0)
        late.go_on.set()

    assert await pushed_meanwhile(sender, late.came, interrupt) == 204


async def test_an_attempt_whose_address_has_gone(
    sending: Callable[..., Awaitable[Sender]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer can come any more, so none is waited for."""
    late = Late()
    sender = await sending(Server(late), timeout_s=10 * PATIENCE_S)
    monkeypatch.setattr(connection, "_is_local", lambda _: False)
    assert await pushed_meanwhile(sender, late.came, partial(sender.interrupted, 0.0)) == "reset"


async def test_an_attempt_that_is_connecting() -> None:
    """Nothing of it was sent, so it ends, and the next one goes the new way."""
    came = anyio.Event()

    async def silent(_: Peer) -> None:
        came.set()
        await anyio.sleep_forever()

    async with serving(Server(silent)) as server:
        url = f"https://127.0.0.1:{server.port}/callback"
        async with Sender(url, [new_secret()], timeout_s=10 * PATIENCE_S) as sender:
            interrupt = partial(sender.interrupted, 0.0)
            assert await pushed_meanwhile(sender, came, interrupt) == "timeout"


def test_whether_an_address_is_ours() -> None:
    """The system knows."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connected,
    ):
        assert connection._is_local(connected)


# --- an event loop that is held ---------------------------------------------------------------


def hold(seconds: float) -> None:
    """Keep the event loop from doing anything, as a commit does whose disk takes long to flush."""
    time.sleep(seconds)


@pytest.mark.parametrize("pieces", [[OK], [OK[:7], OK[7:]], [OK[:20], OK[20:]]])
async def test_an_answer_that_came_while_the_loop_was_held(
    sending: Callable[..., Awaitable[Sender]], pieces: list[bytes]
) -> None:
    """It counts, however late it is read: the receiver has the turn, and must not get it again."""
    *before, last = pieces

    async def late(peer: Peer) -> None:
        while True:
            await peer.read()
            for piece in before:
                await peer.say(piece)
                await anyio.sleep(0.01)
            peer.writer.write(last)  # into the system's buffer, at once
            hold(1.2)

    server = Server(late)
    sender = await sending(server, timeout_s=1.0)  # a busy machine connects in it
    assert [await push(sender), await push(sender)] == [204, 204]
    assert server.connections == 1


async def test_no_answer_while_the_loop_was_held(
    sending: Callable[..., Awaitable[Sender]],
) -> None:
    """What is not there when the time is up did not come in time."""

    async def silent(peer: Peer) -> None:
        await peer.read()
        await peer.say(OK[:7])
        hold(0.3)
        await peer.reader.read()

    sender = await sending(Server(silent), timeout_s=0.2)
    assert await push(sender) == "timeout"


# --- the ways there ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 30])
async def test_an_attempt_that_ends_leaves_nothing_open(count: int) -> None:
    """Neither one that never connects nor one that is never answered."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - of this process
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        async with Sender(url, [new_secret()], timeout_s=0.2) as sender:
            outcomes = await asyncio.gather(*(push(sender) for _ in range(count)))
    assert set(outcomes) == {"timeout"}
    await anyio.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - of this process


async def test_after_a_silence_no_kept_connection_is_trusted(
    sending: Callable[..., Awaitable[Sender]],
) -> None:
    """They lead to the same place, which may be gone: the next attempt opens a new one."""

    async def falls_silent(peer: Peer) -> None:
        await peer.read()
        await peer.say(OK)
        await anyio.sleep_forever()

    server = Server(falls_silent)
    sender = await sending(server, timeout_s=0.3)
    assert await asyncio.gather(*(push(sender) for _ in range(3))) == [204] * 3
    assert await push(sender) == "timeout"
    server.scripts = [server.well]
    assert await push(sender) == 204
    assert server.connections == 4


async def test_a_connection_is_kept_for_a_while(
    sending: Callable[..., Awaitable[Sender]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And closed by us."""
    monkeypatch.setattr(connection, "_KEPT_S", 0.01)
    closed = anyio.Event()

    async def waits(peer: Peer) -> None:
        await peer.read()
        await peer.say(OK)
        await peer.reader.read()
        closed.set()

    sender = await sending(Server(waits))
    assert await push(sender) == 204
    with anyio.fail_after(PATIENCE_S):
        await closed.wait()
