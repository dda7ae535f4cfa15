"""A web app that asks, and is pushed to. Run it with `uvicorn app:app`; docs/client.md has more.

Its sign-in is missing: whatever does that puts `user_id` and `email` into the session.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import paliadin_client
from paliadin_client import Inbox, TurnCallback, TurnRequest, User

answers: dict[str, TurnCallback] = {}  # stands in for the app's database


async def store(turn: TurnCallback) -> None:
    """A turn may come again, and in a higher revision; what counts less does not come here."""
    answers[turn.data.submitted_turn_id or turn.data.turn_id] = turn


inbox = Inbox(os.environ["PALIADIN_CALLBACK_SECRET"].split(), on_turn=store, store="inbox.sqlite3")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """PALIADIN_BACKEND and its variables decide what is connected to."""
    async with paliadin_client.connect(inbox=inbox) as app.state.paliadin:
        yield


async def ask(request: Request) -> JSONResponse:
    """Answer one question."""
    # Whoever is signed in asks. Never take the user from what the browser sends.
    user = User(request.session["user_id"], email=request.session["email"])
    turn = TurnRequest(user=user, message=(await request.json())["message"])
    result = await request.app.state.paliadin.run_turn(turn)
    return JSONResponse({"turn_id": result.turn_id, "via": result.via, "text": result.text})


routes = [Route("/paliadin/callback", inbox), Route("/ask", ask, methods=["POST"])]
sessions = Middleware(SessionMiddleware, secret_key=os.environ["SESSION_SECRET"])
app = Starlette(routes=routes, lifespan=lifespan, middleware=[sessions])
