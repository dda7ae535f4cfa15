"""The connections to one receiver: opened, kept for a while, used again.

An answer that is wrong costs its connection, see `connection`, and the next request goes wherever
a balancer sends a new one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

from paliadin_sidecar.delivery.connection import Connection
from paliadin_sidecar.delivery.happy_eyeballs import Resolver, connect
from paliadin_sidecar.delivery.response import Response
from paliadin_sidecar.host.resources import Threads


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
        self._under_way: set[Connection] = set()
        self._idle: list[Connection] = []
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

    async def _idle_connection(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_readable():
                # What came was not read yet: the loop looks, then reads.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            if connection.reuse():
                return connection
        return None

    async def _open(self) -> Connection:
        connected = await connect(self._host, self._port, self._resolver)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._idle, self._timeout_s, self._disable_reuse),
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
