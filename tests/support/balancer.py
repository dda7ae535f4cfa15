"""One address before several servers, as a load balancer of TCP is."""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress
from itertools import cycle
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Balancer:
    """Hands each connection to the next of its servers that takes one."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._turns, self._servers = cycle(ports), len(ports)
        self._links: list[_Link] = []
        self._thread = Thread(target=self._accept)
        self._thread.start()

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
            with suppress(OSError):  # it is down
                return socket.create_connection(("127.0.0.1", next(self._turns)))
        return None


class _Link:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._sockets = client, server
        ways = (client, server), (server, client)
        self._threads = [Thread(target=self._pump, args=way) for way in ways]
        for thread in self._threads:
            thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one was killed: the other must not wait for it
            self._break_off()

    def _break_off(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._break_off()
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()


@contextmanager
def balancer(*ports: int) -> Iterator[Balancer]:
    """A balancer before the servers on these ports of loopback, until the block ends."""
    made = Balancer(ports)
    try:
        yield made
    finally:
        made.close()
