"""One app that is sent callbacks: a bare route, or the inbox. Prints its port, and serves.

    inbox_app.py KIND FOLDER

KIND is a key of `KINDS`. The secret is in PALIADIN_CALLBACK_SECRET.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from paliadin_client import Inbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

_SECRETS = [os.environ["PALIADIN_CALLBACK_SECRET"]]


def bare(store: Callable[[bytes, bytes], object]) -> App:
    """A route that stores the body under its id, and does nothing else."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        store(dict(scope["headers"])[b"webhook-id"], body)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


def bare_in_memory(_folder: Path) -> App:
    """The bare route with a dictionary."""
    return bare(dict[bytes, bytes]().__setitem__)


def bare_with_sqlite(folder: Path) -> App:
    """The bare route with one durable write on a connection that is kept.

    On the event loop: with a thread for each write it is slower.
    """
    db = sqlite3.connect(folder / "bare.sqlite3", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE push (id TEXT PRIMARY KEY, body BLOB)")

    def store(webhook_id: bytes, body: bytes) -> None:
        db.execute("INSERT OR IGNORE INTO push VALUES (?, ?)", (webhook_id.decode(), body))

    return bare(store)


def inbox_in_memory(_folder: Path) -> App:
    """The inbox that remembers in memory."""
    return Inbox(_SECRETS, environ={})


def inbox_with_sqlite(folder: Path) -> App:
    """The inbox with a database."""
    return Inbox(_SECRETS, store=folder / "inbox.sqlite3")


KINDS: dict[str, Callable[[Path], App]] = {
    "bare": bare_in_memory,
    "bare-sqlite": bare_with_sqlite,
    "inbox": inbox_in_memory,
    "inbox-sqlite": inbox_with_sqlite,
}


def main() -> None:
    """Serve until killed."""
    app = KINDS[sys.argv[1]](Path(sys.argv[2]))
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, lifespan="off", log_level="critical", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
