"""One HTTP/1.1 connection to the receiver: a request, its answer, and what becomes of it then.

An answer is taken only for the request that it follows: a connection on which anything came
that nobody had asked for, or an end, is not used again, and neither is one whose last answer was
no 2xx, or was not read to its very end.
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
from collections.abc import Callable
from functools import partial

from paliadin_sidecar.delivery.response import Response
from paliadin_sidecar.errors import ConnectionLost, EarlyAnswer

#: How long a connection is kept that nobody uses.
_KEPT_S = 30.0
#: What follows a status line is waited for so long: the rest of the head, a short body.
_BODY_TIMEOUT_S = 1.0
#: A body goes out in pieces, so that it is in memory once.
_PIECE = 64 * 1024


class Connection(asyncio.Protocol):
    """A connection, which is among the idle ones while it may be used again.

    Args:
        idle: where it puts itself, and takes itself away.
        unsent_s: a peer that takes nothing for so long has lost the connection.
        on_unsolicited: called for a 2xx that nobody asked for.
    """

    def __init__(
        self, idle: list[Connection], unsent_s: float, on_unsolicited: Callable[[], None]
    ) -> None:
        self._idle = idle
        self._on_unsolicited = on_unsolicited
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
        """It is open."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")
        # What is closed with unsent bytes is the kernel's: a peer that reads nothing would keep
        # it for ever.
        self._socket.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self._unsent_s * 1000)
        )

    def data_received(self, data: bytes) -> None:
        """Something came."""
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
        """The peer sends nothing more."""
        self.abort()  # the receiver sends nothing more, so no further answer can come

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed; with an error, by that."""
        self._end()
        self._lost = exc
        self._answer()

    def pause_writing(self) -> None:
        """The system takes nothing more for now."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
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
