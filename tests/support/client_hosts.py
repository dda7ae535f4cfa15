"""Both backends as small real servers: what a test asks them to do, and what they saw."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import anyio
import asyncssh
import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from paliadin_contract.callback import Answer, Failure, TurnCompleted, TurnFailed, encode
from paliadin_contract.ids import webhook_id
from paliadin_contract.signature import Keys
from support.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from paliadin_contract.callback import Reason

Process: TypeAlias = "asyncssh.SSHServerProcess[bytes]"

TOKEN = "aichat-token-marker"
JWT_SECRET = "jwt-secret-marker-of-more-than-32-bytes"
TRAILER = '[paliadin-meta]\n{"used_tools": ["search"], "rows_seen": 3, "classifier_tag": "frist"}\n'
ANSWER = "Morgen läuft **eine** Frist ab.\n\n" + TRAILER
HALF = "Morgen läuft **ei"


@dataclass(frozen=True)
class Seen:
    """A turn as it reached the host."""

    turn_id: str
    pane: str
    primer: str
    message: str
    body: dict[str, Any] = field(default_factory=dict)


class Fails(Exception):
    """The host answers with this code."""

    def __init__(self, code: str) -> None:
        self.code = code


class Drops(Exception):
    """The host's connection goes away in the middle of its answer."""


async def _answers(_: Seen) -> str:
    return ANSWER


class Host(Protocol):
    """What the suite over both backends needs of one."""

    environ: dict[str, str]
    #: Called for each turn; returns the answer's file, or raises `Fails` or `Drops`.
    script: Callable[[Seen], Awaitable[str]]
    turns: list[Seen]
    #: Turns whose caller went away before they were answered.
    abandoned: list[str]
    #: Code that the next health checks fail with.
    unwell: str | None
    checks: int
    resets: list[str]

    async def next_turn(self) -> Seen:
        """The next turn that arrives."""
        ...


class _Base:
    def __init__(self) -> None:
        self.environ: dict[str, str] = {}
        self.script: Callable[[Seen], Awaitable[str]] = _answers
        self.turns: list[Seen] = []
        self.abandoned: list[str] = []
        self.unwell: str | None = None
        self.checks = 0
        self.resets: list[str] = []
        self._arrivals: asyncio.Queue[Seen] = asyncio.Queue()

    async def next_turn(self) -> Seen:
        with anyio.fail_after(PATIENCE_S):
            return await self._arrivals.get()

    def _saw(self, seen: Seen) -> None:
        self.turns.append(seen)
        self._arrivals.put_nowait(seen)


class AichatHost(_Base):
    """aichat's HTTP API. `extra` goes into its answers; its errors come in either shape."""

    def __init__(self) -> None:
        super().__init__()
        self.extra: dict[str, object] = {}
        self.nested_errors = True

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/chat/turn", self._turn, methods=["POST"]),
                Route("/chat/reset", self._reset, methods=["POST"]),
                Route("/chat/health", self._health, methods=["GET"]),
            ]
        )

    async def _health(self, request: Request) -> Response:
        self.checks += 1
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._error("auth_failed")
        return self._error(self.unwell) if self.unwell else JSONResponse({"ok": True})

    async def _reset(self, request: Request) -> Response:
        body = await request.json()
        self.resets.append(body["username"])
        return JSONResponse({"ok": True})

    async def _turn(self, request: Request) -> Response:
        body = await request.json()
        seen = Seen(
            turn_id=body["turn_id"],
            pane=body["username"],
            primer=body.get("primer", ""),
            message=body["message"],
            body=body,
        )
        self._saw(seen)
        answer = asyncio.ensure_future(self.script(seen))
        gone = asyncio.ensure_future(_gone(request))
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            self.abandoned.append(seen.turn_id)
            return Response()
        gone.cancel()
        try:
            return JSONResponse({"response": answer.result(), **self.extra})
        except Fails as exc:
            return self._error(exc.code)
        except Drops:
            return _Dropped()

    def _error(self, code: str) -> Response:
        error = {"code": code, "message": "words of the backend", "retryable": True}
        return JSONResponse({"error": error} if self.nested_errors else error, status_code=500)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Dropped(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # Less than was promised: the server closes the connection.
        await send({"type": "http.response.body", "body": b'{"response": "Mor'})


class LegacyHost(_Base):
    """A real SSH server whose only command is the shim."""

    EXITS: ClassVar = {"bad_request": 2, "bootstrap_failed": 3, "timeout": 124, "shim_error": 1}

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[str] = []
        #: What is shown before anybody is let in.
        self.banner = ""
        #: Called with each connection before anybody is let in.
        self.before_auth: Callable[[asyncssh.SSHServerConnection], None] = lambda _: None
        #: Connections in their handshake now, and most at once.
        self.handshakes = self.most_handshakes = 0
        #: What sshd runs for every command.
        self.shim: Callable[[Process], Awaitable[None]] = self._shim

    async def serve(self, process: Process) -> None:
        await self.shim(process)

    async def _shim(self, process: Process) -> None:
        assert process.command is not None
        self.commands.append(process.command)
        verb, session, *rest = process.command.split(" ")
        if verb == "health":
            self.checks += 1
            process.stdout.write(b"" if self.unwell else b"ok\n")
            process.exit(self.EXITS[self.unwell] if self.unwell else 0)
        elif verb == "reset":
            self.resets.append(session)
            process.exit(0)
        else:
            await self._turn(process, session, *rest)

    async def _turn(self, process: Process, session: str, turn_id: str, message: str) -> None:
        line = base64.b64decode(message, validate=True).decode()
        primer, mark, question = line.rpartition("[/primer] ")
        seen = Seen(turn_id=turn_id, pane=session, primer=(primer + mark).strip(), message=question)
        self._saw(seen)
        answer = asyncio.ensure_future(self.script(seen))
        # Our stdin is closed from the beginning, so its end says nothing; the channel's does.
        gone = asyncio.ensure_future(process.channel.wait_closed())
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            self.abandoned.append(seen.turn_id)
            return
        gone.cancel()
        try:
            process.stdout.write(answer.result().encode())
            process.exit(0)
        except Fails as exc:
            process.stderr.write(b"words of the shim\n")
            process.exit(self.EXITS[exc.code])
        except Drops:
            process.channel.get_connection().abort()


class _Connection(asyncssh.SSHServer):
    def __init__(self, host: LegacyHost) -> None:
        self._host = host
        self._shaken = False

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._conn = conn
        self._host.handshakes += 1
        self._host.most_handshakes = max(self._host.most_handshakes, self._host.handshakes)

    def begin_auth(self, username: str) -> bool:
        if self._host.banner:
            self._conn.send_auth_banner(self._host.banner)
        self._host.before_auth(self._conn)
        return True

    def auth_completed(self) -> None:
        self._over()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over()

    def _over(self) -> None:
        self._host.handshakes -= not self._shaken
        self._shaken = True


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """`app` under uvicorn on loopback; yields its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # From here on a connection waits in the backlog: nobody has to wait for the start.
        listener.listen(1024)
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level="critical",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        running = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            await running


@asynccontextmanager
async def aichat_host() -> AsyncIterator[AichatHost]:
    """HTTP on loopback."""
    host = AichatHost()
    async with serving(host.app()) as url:
        host.environ = {
            "PALIADIN_BACKEND": "aichat",
            "AICHAT_URL": url,
            "AICHAT_TOKEN": TOKEN,
            "SUPABASE_JWT_SECRET": JWT_SECRET,
            "PALIADIN_DEADLINE_S": "20",
        }
        yield host


@asynccontextmanager
async def legacy_host() -> AsyncIterator[LegacyHost]:
    """A host with the shim on loopback, that takes one key."""
    host = LegacyHost()
    ours, theirs = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=partial(_Connection, host),
        server_host_keys=[theirs],
        authorized_client_keys=asyncssh.import_authorized_keys(ours.export_public_key().decode()),
        process_factory=host.serve,
        encoding=None,
    )
    port = server.get_port()
    host.environ = {
        "PALIADIN_REMOTE_HOST": "127.0.0.1",
        "PALIADIN_REMOTE_PORT": str(port),
        "PALIADIN_REMOTE_USER": "river",
        "PALIADIN_SSH_PRIVATE_KEY": ours.export_private_key().decode(),
        "PALIADIN_KNOWN_HOSTS": f"[127.0.0.1]:{port} {theirs.export_public_key().decode()}",
        "PALIADIN_DEADLINE_S": "20",
    }
    try:
        yield host
    finally:
        server.close()
        await server.wait_closed()


class Sidecar:
    """Pushes as the sidecar does, to an inbox that is served at `url`."""

    def __init__(self, url: str, secret: str, http: httpx2.AsyncClient | None = None) -> None:
        self.url = url
        self._keys = Keys([secret])
        self.http = http or httpx2.AsyncClient(trust_env=False, timeout=30)

    async def push(
        self,
        turn_id: str,
        text: str = ANSWER,
        *,
        submitted: str | None = None,
        revision: int = 1,
    ) -> int:
        """Push an answer; returns the status it was received with."""
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        name = webhook_id("aichat", "paliadin", turn_id, revision, sha256)
        return await self.send(name, self.body(turn_id, text, submitted, revision))

    def body(
        self, turn_id: str, text: str = ANSWER, submitted: str | None = None, revision: int = 1
    ) -> bytes:
        """The body of a push."""
        file = text.encode()
        now = datetime.now(UTC)
        data = Answer(
            **self._turn(turn_id, submitted, revision),
            response=text,
            bytes=len(file),
            sha256=hashlib.sha256(file).hexdigest(),
            lossy=False,
            completed_at=now,
        )
        return encode(TurnCompleted(timestamp=now, data=data))

    async def fail(
        self,
        turn_id: str,
        reason: Reason = "too_large",
        *,
        submitted: str | None = None,
        revision: int = 1,
    ) -> int:
        """Push that the turn's file cannot become an answer."""
        now = datetime.now(UTC)
        turn = self._turn(turn_id, submitted, revision)
        data = Failure(**turn, reason=reason, bytes=0, completed_at=now)
        body = encode(TurnFailed(timestamp=now, data=data))
        return await self.send(webhook_id("aichat", "paliadin", turn_id, revision, reason), body)

    async def send(self, name: str, body: bytes, **changed: str) -> int:
        """Send any body under any id, signed now; `changed` overrides headers."""
        headers = self._keys.sign(name, body, datetime.now(UTC))
        headers |= {key.replace("_", "-"): value for key, value in changed.items()}
        return (await self.http.post(self.url, content=body, headers=headers)).status_code

    def _turn(self, turn_id: str, submitted: str | None, revision: int) -> dict[str, Any]:
        return {
            "turn_id": turn_id,
            "submitted_turn_id": submitted,
            "revision": revision,
            "backend": "aichat",
            "persona": "paliadin",
            "host": "mriver",
            "user_id": None,
        }


def children() -> set[int]:
    """Processes that this one has started and that are not reaped."""
    mine = str(os.getpid())
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == mine:
                found.add(int(stat.parent.name))
    return found


def sockets() -> int:
    """How many sockets this process has open."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(str(link.readlink()))
    return sum(link.startswith("socket:") for link in links)


async def until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Return when `condition` holds, for what gives no event; fail if it never does."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for gives no event
            await anyio.sleep(0.01)
