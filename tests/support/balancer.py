"""One address before several servers, as a load balancer of TCP is."""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress
from itertools import cycle
from threading import Event, Thread
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Address", "Balancer", "balancer"]

#: A host and a port, or the path of a UNIX socket.
Address: TypeAlias = tuple[str, int] | str


class Balancer:
    """Hands each connection to the next of its servers that takes one."""

    def __init__(self, servers: Sequence[Address]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._turns, self._servers = cycle(servers), len(servers)
        self._links: list[_Link] = []
        self._thread = Thread(target=self._accept)
        self._thread.start()

    def stall(self) -> None:
        """Forget the connections that there are, and close none: what is sent there gets lost."""
        for link in self._links:
            link.stalled.set()

    def close(self) -> None:
        """End all connections, and wait until nothing of it is left."""
        # A thread that accepts is not woken by a close.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for link in self._links:
            link.close()

    def _accept(self) -> None:
        with suppress(OSError):  # it was shut down
            while True:
                client, _ = self._listener.accept()
                if server := self._connect():
                    self._links.append(_Link(client, server))
                else:
                    client.close()

    def _connect(self) -> socket.socket | None:
        for _ in range(self._servers):
            address = next(self._turns)
            unix = isinstance(address, str)
            server = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
            try:
                server.connect(address)
            except OSError:
                server.close()
            else:
                return server
        return None


class _Link:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.stalled = Event()
        self._sockets = client, server
        ways = (client, server), (server, client)
        self._threads = [Thread(target=self._pump, args=way) for way in ways]
        for thread in self._threads:
            thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while (data := source.recv(65536)) and not self.stalled.is_set():
                sink.sendall(data)
        if not self.stalled.is_set():
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()


@contextmanager
def balancer(*servers: Address) -> Iterator[Balancer]:
    """A balancer before these servers, until the block ends."""
    made = Balancer(servers)
    try:
        yield made
    finally:
        made.close()
