"""An app that asks and is pushed to, in a process of its own, as one of several with one store.

    python -m support.asking_app FD FOLDER [stores | acknowledges]

FD is a socket that listens; the environment is that of `connect`, with PALIADIN_STORE. What
`on_turn` gets goes into a table: in the transaction that it is given, else of a database in FOLDER.
One that `stores` or `acknowledges` is killed when it has stored a turn, before the inbox knows, or
when it is about to acknowledge it.
"""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import sys
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

import paliadin_client
from paliadin_client import Exchange, Inbox, PaliadinError, TurnRequest, User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import psycopg
    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

    from paliadin_client import Paliadin, TurnCallback, TurnResult


TABLE = "CREATE TABLE IF NOT EXISTS stored (id text)"


def database(folder: Path) -> sqlite3.Connection:
    """`stored` has each turn as often as the app was asked to store it."""
    db = sqlite3.connect(folder / "app.sqlite3", timeout=30)
    db.execute(TABLE)
    return db


async def ask(paliadin: Paliadin, what: str, form: dict[str, Any]) -> TurnResult | None:
    user = User(form["user_id"])
    primer = [Exchange("Frage", "Antwort")]
    turn = TurnRequest(user=user, message="Frage", primer=primer, turn_id=form["turn_id"])
    match what:
        case "ask":
            return await paliadin.run_turn(turn)
        case "result":
            return await paliadin.result(turn.turn_id, form.get("timeout"))
        case "submit":
            await paliadin.submit(turn)
        case "reset":
            await paliadin.reset_session(user)
    return None


def make_app(folder: Path, dies: str) -> Starlette:
    async def on_turn(
        turn: TurnCallback, connection: psycopg.AsyncConnection[Any] | None = None
    ) -> None:
        if connection is not None:
            await connection.execute("INSERT INTO stored VALUES (%s)", [turn.data.turn_id])
        else:
            with closing(database(folder)) as db, db:
                db.execute("INSERT INTO stored VALUES (?)", [turn.data.turn_id])
        if dies == "stores":
            os.kill(os.getpid(), signal.SIGKILL)

    inbox = Inbox(os.environ["PALIADIN_CALLBACK_SECRET"].split(), on_turn=on_turn)

    class Callback:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def acknowledge(message: Message) -> None:
                if dies == "acknowledges" and message.get("status") == 204:
                    os.kill(os.getpid(), signal.SIGKILL)
                await send(message)

            await inbox(scope, receive, acknowledge)

    async def call(request: Request) -> JSONResponse:
        what, form = request.path_params["what"], await request.json()
        try:
            result = await ask(request.app.state.paliadin, what, form)
        except PaliadinError as exc:
            return JSONResponse({"error": str(exc), "detail": exc.detail}, 500)
        shown = {"text": result.text, "via": result.via, "host": result.host} if result else {}
        return JSONResponse({**shown, "pid": os.getpid()})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with paliadin_client.connect(inbox=inbox) as app.state.paliadin:
            yield

    routes = [Route("/callback", Callback()), Route("/{what}", call, methods=["POST"])]
    return Starlette(routes=routes, lifespan=lifespan)


def main(fd: int, folder: Path, dies: str = "") -> None:
    config = uvicorn.Config(make_app(folder, dies), lifespan="on", log_level="critical")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
