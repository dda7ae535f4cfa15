"""A stand-in for the aichat backend: HTTP in, one tmux window per user, the answer out.

The bearer token is AICHAT_TOKEN. Each table of PERSONAS.toml is a persona:

    [paliadin]
    answers = "/tmp/aichat/paliadin"    # where its agent writes
    # All others have defaults: the demo agent, in the current directory.
    agent = ["claude", "--permission-mode", "acceptEdits"]
    process = "claude"                  # what tmux calls it while it is in the foreground
    prompt = '^> *$'                     # its screen, while its prompt is there and empty
    cwd = "/home/agent"
"""

from __future__ import annotations

import argparse
import hmac
import os
import re
import signal
import socket
import sys
import tempfile
import time
import tomllib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import anyio
import msgspec
import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from demo.panes import AgentNotReady, Busy, PaneError, Panes, agent, envelope
from paliadin_contract.ids import is_label, is_turn_id
from paliadin_contract.trailer import Trailer, split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request


#: HTTP status, and whether the same request may succeed later.
_ERRORS = {
    "auth_failed": (401, False),
    "bad_request": (400, False),
    "bootstrap_failed": (503, True),
    "mriver_unreachable": (503, True),
    "persona_unknown": (404, False),
    "shim_error": (502, True),
    "timeout": (504, True),
}
#: The local part of an address, as far as a window's name may hold it: tmux expands `#`.
_USERNAME = re.compile(r"[\w.+'-]{1,64}")


class Persona(Struct, forbid_unknown_fields=True):
    """A table of PERSONAS.toml."""

    answers: str
    agent: list[str] = []
    process: str = ""
    prompt: str = ""
    cwd: str = "."


class _Whose(Struct):
    username: str
    persona: str = "paliadin"


class _Turn(_Whose, kw_only=True):
    message: str
    primer: str | None = None
    turn_id: str | None = None
    conversation_id: str | None = None
    jwt: str | None = None


_Body = TypeVar("_Body", bound=_Whose)


class _Refusal(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The three endpoints."""

    token: str = field(repr=False)
    personas: dict[str, Persona]
    panes: Panes
    deadline_s: float
    """Until a turn is given up; its answer may come later."""
    queue: int
    """How many turns may wait for a window, beside the open one."""
    own_ids: bool
    """Whether turn ids of callers are passed over."""
    half: bool
    """Whether an answer is returned as soon as anything of it is there."""
    error: str | None
    """The code that every request gets."""
    flat: bool
    """Whether an error stands at the top level instead of under `error`."""

    def app(self) -> Starlette:
        """The endpoints as an ASGI application."""
        return Starlette(
            routes=[
                Route("/chat/turn", self._turn, methods=["POST"]),
                Route("/chat/reset", self._reset, methods=["POST"]),
                Route("/chat/health", self._health),
            ],
            exception_handlers={_Refusal: self._refuse},
        )

    async def _turn(self, request: Request) -> JSONResponse:
        turn, persona = await self._read(request, _Turn)
        turn_id = turn.turn_id
        if self.own_ids or turn_id is None:
            turn_id = str(uuid4())
        if not is_turn_id(turn_id):
            raise _Refusal("bad_request", "turn_id is no id")
        if not turn.message.strip():
            raise _Refusal("bad_request", "message is empty")
        answers, began = Path(persona.answers).absolute(), time.monotonic()
        try:
            answers.mkdir(mode=0o700, parents=True, exist_ok=True)
            with anyio.fail_after(self.deadline_s), self._lent(answers, turn_id, turn.jwt):
                content, spawned = await self.panes.run_turn(
                    _session(turn),
                    turn.username,
                    agent(persona.agent, persona.process, persona.prompt, answers, persona.cwd),
                    line=envelope(turn_id, turn.message, turn.primer or ""),
                    path=answers / f"{turn_id}.txt",
                    queue=self.queue,
                    half=self.half,
                )
        except TimeoutError:
            raise _Refusal("timeout", f"no answer after {self.deadline_s:g} s") from None
        except AgentNotReady as exc:
            raise _Refusal("bootstrap_failed", str(exc)) from exc
        except (Busy, PaneError, OSError) as exc:
            raise _Refusal("shim_error", str(exc)) from exc
        text = content.decode(errors="replace")
        meta = split(text)[1] or Trailer()
        return JSONResponse(
            {
                "turn_id": turn_id,
                "conversation_id": turn.conversation_id or str(uuid4()),
                "response": text,
                "used_tools": meta.used_tools,
                "rows_seen": meta.rows_seen,
                "classifier_tag": meta.classifier_tag,
                "duration_ms": round((time.monotonic() - began) * 1000),
                "pane_spawned": spawned,
                "resumed": not spawned,
            }
        )

    async def _reset(self, request: Request) -> JSONResponse:
        whose, _ = await self._read(request, _Whose)
        await self.panes.close(_session(whose), whose.username)
        return JSONResponse({"status": "ok"})

    async def _health(self, request: Request) -> JSONResponse:
        self._admit(request)
        return JSONResponse({"status": "ok"})

    def _admit(self, request: Request) -> None:
        offered = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(offered, f"Bearer {self.token}".encode()):
            raise _Refusal("auth_failed", "the bearer token is missing or wrong")
        if self.error:
            raise _Refusal(self.error, "as it was asked to")

    async def _read(self, request: Request, shape: type[_Body]) -> tuple[_Body, Persona]:
        self._admit(request)
        try:
            body = msgspec.json.decode(await request.body(), type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise _Refusal("bad_request", f"the body is not as it should be: {exc}") from None
        if not _USERNAME.fullmatch(body.username):
            raise _Refusal("bad_request", "username is no local part of an address")
        if body.persona not in self.personas:
            raise _Refusal("persona_unknown", f"the personas are {', '.join(self.personas)}")
        return body, self.personas[body.persona]

    async def _refuse(self, _request: Request, exc: Exception) -> JSONResponse:
        assert isinstance(exc, _Refusal)
        status, retryable = _ERRORS[exc.code]
        error = {"code": exc.code, "message": str(exc), "retryable": retryable}
        return JSONResponse(error if self.flat else {"error": error}, status)

    @contextmanager
    def _lent(self, answers: Path, turn_id: str, token: str | None) -> Iterator[None]:
        """The caller's token beside the answer, for as long as its turn is open."""
        for left in answers.glob("*.jwt"):  # by a stand-in that was killed
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > self.deadline_s:
                    left.unlink()
        path = answers / f"{turn_id}.jwt"
        try:
            if token is not None:
                descriptor, name = tempfile.mkstemp(".jwt", ".", answers)  # 0600
                with os.fdopen(descriptor, "w") as file:
                    file.write(token)
                Path(name).replace(path)
            yield
        finally:
            path.unlink(missing_ok=True)


def main() -> None:
    """Serve until asked to stop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("personas", type=Path, metavar="PERSONAS.toml")
    parser.add_argument("--tmux", type=Path, required=True, help="socket of the tmux server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: any; it is printed")
    parser.add_argument("--deadline", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument("--queue", type=int, default=4, help="turns that may wait for a window")
    worst = parser.add_argument_group("the live one at its worst")
    worst.add_argument("--own-ids", action="store_true", help="pass over turn ids of callers")
    worst.add_argument("--half", action="store_true", help="answer before the file is whole")
    worst.add_argument("--error", choices=_ERRORS, help="answer every request with it")
    worst.add_argument("--flat-errors", action="store_true", help="errors at the top level")
    options = parser.parse_args()
    token = os.environ.get("AICHAT_TOKEN")
    if not token:
        parser.error("AICHAT_TOKEN is not set")
    os.umask(0o077)
    backend = Backend(
        token=token,
        personas=_personas(options.personas),
        panes=Panes(options.tmux),
        deadline_s=options.deadline,
        queue=options.queue,
        own_ids=options.own_ids,
        half=options.half,
        error=options.error,
        flat=options.flat_errors,
    )
    config = uvicorn.Config(backend.app(), log_level="warning", timeout_graceful_shutdown=1)
    # After its shutdown uvicorn raises the signal again. This handler lets the loop end its tasks,
    # so that turns which are still open remove their tokens.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with socket.create_server((options.host, options.port)) as listening:
        # It listens already: who reads this line may connect.
        print(f"http://{options.host}:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def _personas(path: Path) -> dict[str, Persona]:
    personas = msgspec.convert(tomllib.loads(path.read_text()), dict[str, Persona])
    for name in personas:
        if not is_label(name):
            raise SystemExit(f"{name!r} is no name for a persona")
    return personas


def _session(whose: _Whose) -> str:
    return f"aichat-{whose.persona}"


if __name__ == "__main__":
    main()
