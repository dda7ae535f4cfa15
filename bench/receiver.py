"""The same receiver for every candidate: says 204, and stamps when a body was there.

    receiver.py

Prints its port. `GET /take` returns a line `<arrived> <stamp>` for each turn since the last
one, in nanoseconds of the monotonic clock, which all processes of a Linux host share.
"""

from __future__ import annotations

import asyncio
import re
import time

_STAMP = re.compile(rb"stamp=(\d{20})")
_LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)
_NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"

taken: list[bytes] = []


class Receiver(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with nothing."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._unread = b""

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        arrived = time.monotonic_ns()
        self._unread += data
        while (end := self._unread.find(b"\r\n\r\n")) >= 0:
            head, rest = self._unread[:end], self._unread[end + 4 :]
            length = _LENGTH.search(head)
            size = int(length[1]) if length else 0
            if len(rest) < size:
                return
            body, self._unread = rest[:size], rest[size:]
            if head.startswith(b"GET"):
                self._hand_over()
                continue
            self._transport.write(_NO_CONTENT)
            if stamp := _STAMP.search(body):
                taken.append(b"%d %s\n" % (arrived, stamp[1]))

    def _hand_over(self) -> None:
        body = b"".join(taken)
        taken.clear()
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
