"""An app in a process of its own: what its inbox is given goes into its database.

    python -m support.app_process FD FOLDER [dies | rests]

FD is a socket that listens. One that `dies` does so by SIGKILL once a turn is stored, before that
is acknowledged; one that `rests` waits there until somebody writes to the FIFO `go` in FOLDER.
"""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from anyio import to_thread

from paliadin_client import Inbox

if TYPE_CHECKING:
    from paliadin_client import TurnCallback


def database(folder: Path) -> sqlite3.Connection:
    """`turn` is what the app has, `stored` how often it was called to store what."""
    db = sqlite3.connect(folder / "app.sqlite3", timeout=30)
    db.execute("CREATE TABLE IF NOT EXISTS turn (id PRIMARY KEY, response)")
    db.execute("CREATE TABLE IF NOT EXISTS stored (id, pid)")
    return db


def main(fd: int, folder: Path, how: str = "") -> None:
    async def store(turn: TurnCallback) -> None:
        with closing(database(folder)) as db, db:
            row = turn.data.turn_id, getattr(turn.data, "response", None)
            db.execute("INSERT OR REPLACE INTO turn VALUES (?, ?)", row)
            db.execute("INSERT INTO stored VALUES (?, ?)", (turn.data.turn_id, os.getpid()))
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "rests":
            await to_thread.run_sync((folder / "go").read_bytes)

    secrets = os.environ["PALIADIN_CALLBACK_SECRET"].split()
    inbox = Inbox(secrets, on_turn=store, dedupe=folder / "inbox.sqlite3")
    server = uvicorn.Server(uvicorn.Config(inbox, lifespan="off", log_level="critical"))
    server.run(sockets=[socket.socket(fileno=fd)])


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
