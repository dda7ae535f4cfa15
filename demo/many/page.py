"""A user's page: it asks once, and looks for the answer until it is there, wherever it is sent."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import anyio

#: Before a page that was refused is loaded again, in seconds.
_AGAIN_S = 0.2


@dataclass
class Page:
    """One question, and what its user sees.

    Attributes:
        row: of the table that it counts in.
        user_id: whose it is.
        email: his address.
        question: what is asked.
        turn_id: the turn's.
        asked_at: in monotonic seconds, when it is asked.
        process: which process took it.
        shown: what the page shows in the end; empty while it shows nothing.
        took_s: from the question to the answer, in seconds.
        reloads: how often the page was loaded again, since its process was gone or had no answer.
        asks_again: whether the same question is sent again when there is no answer for a while:
            the process that took it may have been killed before it submitted it.
    """

    row: str
    user_id: str
    email: str
    question: str
    turn_id: str = field(default_factory=lambda: str(uuid4()))
    asked_at: float = 0.0
    process: str = ""
    shown: dict[str, Any] = field(default_factory=dict)
    took_s: float = 0.0
    reloads: int = 0
    asks_again: bool = False

    async def ask(self, port: int) -> None:
        """Ask at this port of loopback.

        Raises:
            OSError, ValueError, EOFError: it is not known whether the question was taken.
        """
        self.asked_at = self.asked_at or time.monotonic()
        form = {
            "turn_id": self.turn_id,
            "user_id": self.user_id,
            "email": self.email,
            "message": self.question,
        }
        status, taken = await request(port, "POST", "/turns", form)
        if status != HTTPStatus.OK:
            raise OSError(f"the question was answered with {status}")
        self.process = taken["process"]

    async def look(self, port: int) -> None:
        """Return when the page shows the answer, or an error that will not go away."""
        while True:
            try:
                status, shown = await request(port, "GET", f"/turns/{self.turn_id}")
            except (OSError, ValueError, EOFError):  # its process was killed
                status, shown = HTTPStatus.BAD_GATEWAY, {}
            if status == HTTPStatus.OK or (shown and status != HTTPStatus.SERVICE_UNAVAILABLE):
                self.shown, self.took_s = shown, time.monotonic() - self.asked_at
                return
            self.reloads += 1
            await anyio.sleep(_AGAIN_S)
            if shown and self.asks_again:
                with suppress(OSError, ValueError, EOFError):
                    await self.ask(port)

    @property
    def is_elsewhere(self) -> bool:
        """Whether another process showed the answer than the one that was asked."""
        return bool(self.shown) and self.shown.get("process") != self.process


async def request(
    port: int, method: str, path: str, form: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """The status and the JSON of an answer.

    Raises:
        OSError: nobody takes the request, or the connection was lost.
        ValueError: what comes is no answer, or half of one.
        EOFError: the same.
    """
    body = b"" if form is None else json.dumps(form).encode()
    head = f"{method} {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        answer = b""
        try:
            await stream.send(head.encode() + body)
            async for chunk in stream:
                answer += chunk
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise ConnectionError(str(exc)) from exc
    top, separator, content = answer.partition(b"\r\n\r\n")
    if not separator:
        raise EOFError("the connection was lost")
    return int(top.split()[1]), json.loads(content)
