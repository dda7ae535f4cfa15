"""HTTP/1.1 connections to one receiver: opened, kept for a while, used again.

An answer is taken only for the request that it follows: a connection on which anything came
that nobody had asked for, or an end, is not used again, and neither is one whose last answer was
no 2xx, or was not read to its very end. So an answer that is wrong costs its connection, and the
next request goes wherever a balancer sends a new one.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import select
import socket
import ssl
import struct
import termios
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import urlsplit

from paliadin_sidecar.delivery.happy_eyeballs import Resolver, connect
from paliadin_sidecar.delivery.response import Response
from paliadin_sidecar.errors import ConnectionLost, EarlyAnswer
from paliadin_sidecar.host.resources import Threads

#: How long a connection is kept that nobody uses.
_KEPT_S = 30.0
#: What follows a status line is waited for so long: the rest of the head, a short body.
_BODY_TIMEOUT_S = 1.0
#: A body goes out in pieces, so that it is in memory once.
_PIECE = 64 * 1024


class Connections:
    """The connections to one URL.

    Args:
        url: where requests go: what stands behind the host is sent as it is written.
        tls: how a receiver is verified; None for plain HTTP.
        timeout_s: the total time of a request, from connecting to the answer's head. A peer that
            takes nothing for so long has lost the connection.
        lookups: threads that resolve names.

    Attributes:
        opened: how many were opened so far.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: ssl.SSLContext | None,
        timeout_s: float,
        lookups: Threads,
    ) -> None:
        parts = urlsplit(url)
        default = 443 if parts.scheme == "https" else 80
        self._host, self._port = parts.hostname or "", parts.port or default
        host = f"[{self._host}]" if ":" in self._host else self._host
        named = host if self._port == default else f"{host}:{self._port}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._start = f"POST {target} HTTP/1.1\r\nhost: {named}\r\n"
        self._tls = tls
        self._timeout_s = timeout_s
        self.opened = 0
        self._resolver = Resolver(lookups)
        self._connecting: set[asyncio.Timeout] = set()
        self._under_way: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._reuse_enabled = True

    async def post(self, headers: Mapping[str, str], body: bytes) -> Response:
        """Send one request, on an idle connection or a new one.

        Where the event loop was held for longer than the timeout, by a slow disk say, an answer
        that came meanwhile is an answer: it is read before the time is up.

        Args:
            headers: beside those of HTTP itself.
            body: goes out as it is.

        Returns:
            An answer whose status is there.

        Raises:
            OSError: no connection. `socket.gaierror` is a kind of it, and so is `ssl.SSLError`,
                which is also raised for what a receiver says after the handshake.
            ConnectionLost, EarlyAnswer: there is no answer.
            TimeoutError: there was none in time.
        """
        head = f"{self._start}content-length: {len(body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection = await self._idle_connection()
        # From here on: what is sent gets its time, also where the loop was held before.
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        if connection is None:
            async with asyncio.timeout_at(deadline) as connecting:
                self._connecting.add(connecting)
                try:
                    connection = await self._open()
                finally:
                    self._connecting.remove(connecting)
        self._under_way.add(connection)
        try:
            response = await connection.exchange(f"{head}\r\n".encode("latin-1"), body, deadline)
        except BaseException:
            connection.abort()
            # The others lead to the same place.
            self.close()
            raise
        finally:
            self._under_way.remove(connection)
        if not self._reuse_enabled:
            self.close()
        return response

    def interrupted(self, slept_s: float) -> None:
        """The machine slept, or came to another network: leave what leads nowhere any more.

        An attempt that is still connecting has sent nothing, and ends. One that waits for its
        answer ends where that cannot come any more, since its address has gone, or where its time
        is up, that of the sleep included.

        Args:
            slept_s: for how long the machine slept.
        """
        self.close()
        self._resolver.forget()
        now = asyncio.get_running_loop().time()
        for connecting in self._connecting:
            connecting.reschedule(now)
        for connection in self._under_way.copy():
            connection.interrupted(slept_s)

    def close(self) -> None:
        """Close the idle ones."""
        for connection in self._idle.copy():
            connection.abort()

    def _disable_reuse(self) -> None:
        # A receiver that acknowledges what nobody sent may do so in time for the next request,
        # which looks like its answer: from here on each request has a connection of its own.
        self._reuse_enabled = False
        self.close()

    async def _idle_connection(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_readable():
                # What came was not read yet: the loop looks, then reads.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            if connection.reuse():
                return connection
        return None

    async def _open(self) -> _Connection:
        connected = await connect(self._host, self._port, self._resolver)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self._idle, self._timeout_s, self._disable_reuse),
                sock=connected,
                ssl=self._tls,
                # The dot that ends a whole name belongs to DNS alone (RFC 6066, 3).
                server_hostname=self._host.rstrip(".") if self._tls else None,
            )
        except BaseException:
            connected.close()
            raise
        self.opened += 1
        return connection


class _Connection(asyncio.Protocol):
    def __init__(
        self, idle: list[_Connection], unsent_s: float, on_unsolicited: Callable[[], None]
    ) -> None:
        self._idle = idle
        self._on_unsolicited = on_unsolicited  # called for a 2xx that nobody asked for
        self._unsent_s = unsent_s
        self._loop = asyncio.get_running_loop()
        self._response: Response | None = None  # of the request that is under way
        self._answered: asyncio.Future[None] = self._loop.create_future()
        self._deadline = 0.0
        self._writable = asyncio.Event()
        self._writable.set()
        self._is_sent = self._is_early = self._is_over = False
        self._is_awaited = False  # somebody in `exchange` decides what becomes of it
        self._lost: Exception | None = None
        self._rest: asyncio.Future[None] | None = None  # of what a refusal says
        self._due_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None  # at that time, or before

    # --- a request ------------------------------------------------------------------------

    async def exchange(self, head: bytes, body: bytes, deadline: float) -> Response:
        """Send one request and wait for the head of its answer, until this time of the loop's."""
        if self._is_over:
            raise self._why_lost()
        self._response = response = Response()
        self._answered = self._loop.create_future()
        self._is_awaited = True
        self._deadline = deadline
        self._set_timer(deadline)
        await self._send(head, body)
        await self._answered
        if self._is_early:
            raise EarlyAnswer
        if response.status is None:
            raise self._why_lost()
        self._is_awaited = False
        self._settle(response)
        return response

    def _why_lost(self) -> Exception:
        # A receiver that refuses our certificate, say, does so after our half of the handshake.
        return self._lost if isinstance(self._lost, ssl.SSLError) else ConnectionLost()

    async def _send(self, head: bytes, body: bytes) -> None:
        self._is_sent = False
        first = _PIECE - len(head)
        self._transport.write(head + body[:first])
        rest = memoryview(body)[first:]
        while rest and not self._answered.done():
            await self._writable.wait()
            self._transport.write(rest[:_PIECE])
            rest = rest[_PIECE:]
        self._is_sent = not rest

    def _settle(self, response: Response) -> None:
        # What becomes of the connection after its answer.
        if response.is_clean and self._is_sent and not self._is_over:
            self._response = None
            self._set_timer(self._loop.time() + _KEPT_S)
            self._idle.append(self)
        elif response.is_partial and self._is_sent:
            self._set_timer(self._loop.time() + _BODY_TIMEOUT_S)
        elif response.has_more_to_say and not self._is_over:
            if self._rest is None:
                response.rest = self._rest = self._loop.create_future()
                self._set_timer(self._loop.time() + _BODY_TIMEOUT_S)
        else:
            self.abort()

    # --- idle ----------------------------------------------------------------------------

    def is_readable(self) -> bool:
        """Whether something came that the loop has not read yet."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def reuse(self) -> bool:
        """Use it again; False where it is over."""
        self._set_timer(None)
        return not self._is_over

    def interrupted(self, slept_s: float) -> None:
        """The machine slept so long while an answer is awaited, or lost addresses."""
        if not _is_local(self._socket):
            self.abort()
        elif slept_s > 0:
            self._deadline -= slept_s
            if self._due_at is not None:
                self._set_timer(self._due_at - slept_s)

    def abort(self) -> None:
        """Close it at once."""
        self._end()
        self._transport.abort()

    def _end(self) -> None:
        self._is_over = True
        if self._rest is not None and not self._rest.done():
            self._rest.set_result(None)
        self._set_timer(None)
        self._cancel_timer()
        if self in self._idle:
            self._idle.remove(self)

    def _set_timer(self, at: float | None) -> None:
        # A timer that is there already is left to find the new time: a request has three of them.
        self._due_at = at
        if at is not None and (self._timer is None or at < self._timer.when()):
            self._cancel_timer()
            self._timer = self._loop.call_at(at, self._timer_fired)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _timer_fired(self) -> None:
        self._timer = None
        if self._due_at is not None and self._due_at > self._loop.time():
            self._set_timer(self._due_at)
        elif self._due_at is not None:
            self._on_timer()

    def _on_timer(self, *, is_last: bool = False) -> None:
        if self._answered.done():
            if not self._is_awaited:
                self.abort()
        elif self._response is not None and self._response.status is not None:
            self._answer()  # its status line is there, which is enough
        elif self.is_readable() and not is_last:
            # The loop was held: what came meanwhile has its turn first.
            self._loop.call_soon(partial(self._on_timer, is_last=True))
        else:
            self._answered.set_exception(TimeoutError())
            self._writable.set()

    def _answer(self) -> None:
        self._writable.set()  # the rest of the request is not waited for
        if not self._answered.done():
            self._answered.set_result(None)

    # --- called by the transport ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")
        # What is closed with unsent bytes is the kernel's: a peer that reads nothing would keep
        # it for ever.
        self._socket.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self._unsent_s * 1000)
        )

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            self.abort()  # nobody asked
            unsolicited = Response()
            unsolicited.feed(data)
            if (unsolicited.status or 0) // 100 == 2:  # noqa: PLR2004 - HTTP's own classes
                self._on_unsolicited()
            return
        is_first = response.status is None
        response.feed(data)
        if is_first and response.status is not None:
            self._is_early = response.status // 100 == 2 and not self._has_arrived()  # noqa: PLR2004 - HTTP's own classes
            if not response.has_ended:
                # One that is late is not lost while its rest is waited for.
                now = self._loop.time()
                self._set_timer(now + min(_BODY_TIMEOUT_S, max(0.0, self._deadline - now) / 2))
        if not self._is_awaited:
            self._settle(response)
        elif response.has_ended or self._is_early:
            self._answer()

    def eof_received(self) -> None:
        self.abort()  # who asks nothing more gets nothing more

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._lost = exc
        self._answer()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _has_arrived(self) -> bool:
        # Whether the peer has all that was sent: an answer comes with its word that it has.
        if not self._is_sent or self._transport.get_write_buffer_size():
            return False
        unacknowledged = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
        return bool(struct.unpack("i", unacknowledged)[0] == 0)


def _is_local(connected: socket.socket) -> bool:
    # Whether the host still has the address of this end. Nobody else can say without asking the
    # peer, which takes its time.
    try:
        with socket.socket(connected.family, socket.SOCK_DGRAM) as probe:
            probe.bind((connected.getsockname()[0], 0))
    except OSError as exc:
        return exc.errno != errno.EADDRNOTAVAIL
    return True
