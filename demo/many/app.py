"""The app, in one of its processes. Users ask at any of them, and look for answers at any other.

    python -m demo.many.app NAME PORT

The environment is that of `connect`, with PALIADIN_STORE and PALIADIN_CALLBACK_SECRET. Each push
goes into the table `answers`, in the transaction that also records it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from paliadin_client import Inbox, PaliadinError, TurnCompleted, TurnRequest, User, connect, split

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import psycopg
    from starlette.requests import Request

    from paliadin_client import TurnCallback

#: Without a key: a turn that is stored twice is there twice.
TABLE = "CREATE TABLE answers (turn text, text text, host text)"


async def on_turn(turn: TurnCallback, connection: psycopg.AsyncConnection[Any]) -> None:
    """Store it."""
    data = turn.data
    text = split(turn.data.response)[0] if isinstance(turn, TurnCompleted) else None
    await connection.execute(
        "INSERT INTO answers VALUES (%s, %s, %s)",
        [data.submitted_turn_id or data.turn_id, text, data.host],
    )


def make_app(name: str, page_s: float = 25.0) -> Starlette:
    """The app.

    Args:
        name: of this process, which its answers say.
        page_s: how long a page is kept waiting, in seconds.
    """
    inbox = Inbox(os.environ["PALIADIN_CALLBACK_SECRET"].split(), on_turn=on_turn)
    asking: set[asyncio.Task[None]] = set()

    async def submit(request: Request, turn: TurnRequest) -> None:
        with suppress(PaliadinError):  # `result` raises it
            await request.app.state.paliadin.submit(turn)

    async def ask(request: Request) -> JSONResponse:
        form = await request.json()
        user = User(form["user_id"], email=form["email"])
        turn = TurnRequest(user=user, message=form["message"], turn_id=form["turn_id"])
        task = asyncio.create_task(submit(request, turn))
        asking.add(task)
        task.add_done_callback(asking.discard)
        return JSONResponse({"process": name})

    async def look(request: Request) -> JSONResponse:
        turn_id = request.path_params["turn_id"]
        try:
            result = await request.app.state.paliadin.result(turn_id, timeout=page_s)
        except PaliadinError as exc:
            error = {"error": exc.code, "reason": str(exc)}
            return JSONResponse(error, 503 if exc.retryable else 502)
        found = {"text": result.text, "via": result.via, "host": result.host, "process": name}
        return JSONResponse(found)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with connect(inbox=inbox) as app.state.paliadin:
            yield

    routes = [
        Route("/callback", inbox),
        Route("/turns", ask, methods=["POST"]),
        Route("/turns/{turn_id}", look),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def main() -> None:
    """Serve until asked to stop."""
    name, port = sys.argv[1:]
    config = uvicorn.Config(
        make_app(name), log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    with socket.create_server(("127.0.0.1", int(port)), backlog=1024) as listening:
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
