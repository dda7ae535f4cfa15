"""A host's aichat whose agents answer at once: it writes each turn's file, and answers or not.

    python -m chaos.agents PORT ROOT WRITTEN SEED

WRITTEN is the writers' log. After the file is there the caller gets the answer, a connection that
is cut, or nothing for as long as it waits: in two of three cases only the push brings the answer.
"""

from __future__ import annotations

import hashlib
import random
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from chaos.verdict import Written, append

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

_TRAILER = "\n[paliadin-meta]\nused_tools: search\nrows_seen: 3\n[/paliadin-meta]\n"
_MOST_S = 0.3


def answer_of(name: str, question: str) -> str:
    """What an agent answers the user of this name; no other question has this answer."""
    return f"{name} asked:\n\n> {question}"


class _Cut(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        headers = [(b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # Less than was promised: the server closes the connection.
        await send({"type": "http.response.body", "body": b'{"response": "'})


def make_app(root: Path, written: Path, rng: random.Random) -> Starlette:
    """The endpoints that the client asks."""

    async def turn(request: Request) -> Response:
        body = await request.json()
        turn_id, text = body["turn_id"], answer_of(body["username"], body["message"]) + _TRAILER
        await anyio.sleep(rng.uniform(0, _MOST_S))
        _write(root / f"{turn_id}.txt", text.encode(), written)
        match rng.choice(["answer", "cut", "nothing"]):
            case "answer":
                return JSONResponse({"turn_id": turn_id, "response": text})
            case "cut":
                return _Cut()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response()

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[Route("/chat/turn", turn, methods=["POST"]), Route("/chat/health", health)]
    )


def _write(path: Path, content: bytes, written: Path) -> None:
    # Of a question that came twice the answer is the same, and written once.
    if path.exists():
        return
    temp = path.with_suffix(".tmp")
    temp.write_bytes(content)
    # Before the rename, since a push may be faster than the log.
    sha256 = hashlib.sha256(content).hexdigest()
    append(written, Written(time.monotonic(), f"aichat/{path.stem}", sha256))
    temp.rename(path)


def main() -> None:
    """Serve until killed."""
    port, root, written, seed = sys.argv[1:]
    app = make_app(Path(root), Path(written), random.Random(seed))
    config = uvicorn.Config(app, lifespan="off", log_level="critical", access_log=False)
    with socket.create_server(("127.0.0.1", int(port)), backlog=1024) as listening:
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
