"""The app of `demo.many`, which keeps account of the callbacks that it acknowledges.

    python -m chaos.app NAME PORT ARRIVED

ARRIVED is the receiver's log, which all processes of the app share.
"""

from __future__ import annotations

import socket
import sys
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from demo.many.app import make_app

from chaos.verdict import append, arrival

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: How long a page waits before it is loaded again, in seconds.
_PAGE_S = 5.0


def noted(app: ASGIApp, arrived: Path) -> ASGIApp:
    """The same app; each callback's line is written before it is acknowledged."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/callback":
            await app(scope, receive, send)
            return
        body = bytearray()

        async def read() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def answer(message: Message) -> None:
            if message.get("status") == HTTPStatus.NO_CONTENT:
                id_ = dict(scope["headers"])[b"webhook-id"].decode()
                line = arrival(time.monotonic(), id_, bytes(body), stored=True, fault=False)
                append(arrived, line)
            await send(message)

        await app(scope, read, answer)

    return call


def main() -> None:
    """Serve until killed."""
    name, port, arrived = sys.argv[1:]
    app = noted(make_app(name, _PAGE_S), Path(arrived))
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    with socket.create_server(("127.0.0.1", int(port)), backlog=1024) as listening:
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
