"""A service manager's end of the notification socket: hears, and never answers."""

from __future__ import annotations

import socket
import threading
from typing import Self

from support.waiting import PATIENCE_S, until


class Manager:
    """Binds a datagram socket; use it as a context manager.

    Args:
        address: a path, or `@name` in the abstract namespace, as systemd gives it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[str] = []  # assignments, in the order in which they came
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # ends the thread's wait
        self._thread.join(PATIENCE_S)
        self._socket.close()

    def count(self, assignment: str) -> int:
        return self.heard.count(assignment)

    def wait(self, assignment: str, count: int = 1) -> None:
        """Until this was heard so many times."""
        until(f"{count} {assignment}", lambda: self.count(assignment) >= count)

    def _listen(self) -> None:
        while message := self._socket.recv(4096):
            self.heard += message.decode().split("\n")
