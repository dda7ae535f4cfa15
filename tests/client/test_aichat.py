"""What is aichat's own: names, tokens, ids of its own choosing, both shapes of an error."""

from __future__ import annotations

import asyncio
import gzip
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response, StreamingResponse
from support.client_hosts import ANSWER, HALF, JWT_SECRET, Fails, serving, until

import paliadin_client
from paliadin_client import (
    AuthFailed,
    BackendTimeout,
    BadRequest,
    BootstrapFailed,
    ConnectionLost,
    Exchange,
    PaliadinError,
    PersonaUnknown,
    ShimError,
    TurnRequest,
    TurnTimeout,
    Unreachable,
    User,
)
from paliadin_client import aichat as module
from paliadin_client.settings import AichatSettings, Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send
    from support.client_hosts import AichatHost, Seen, Sidecar

    from paliadin_client import Inbox, TurnCallback

pytestmark = pytest.mark.anyio

ANNA = User("0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a11", email="anna@example.org")
TEXT = ANSWER.partition("\n\n[paliadin-meta]")[0]


def ask(user: User = ANNA, **changed: Any) -> TurnRequest:  # noqa: ANN401 - TurnRequest's own
    return TurnRequest(user=user, message="?", **changed)


async def run(host: AichatHost, request: TurnRequest) -> paliadin_client.TurnResult:
    async with paliadin_client.connect(environ=host.environ) as paliadin:
        return await paliadin.run_turn(request)


async def test_request(aichat: AichatHost) -> None:
    """A turn's body holds the known names, and a token of that turn alone."""
    request = ask(conversation_id="c-1", primer=[Exchange("Q", "A")])
    await run(aichat, request)
    [seen] = aichat.turns
    token = seen.body.pop("jwt")
    assert seen.body == {
        "persona": "paliadin",
        "username": "anna",
        "user_id": ANNA.user_id,
        "turn_id": request.turn_id,
        "conversation_id": "c-1",
        "primer": "[primer last=1] U: Q A: A [/primer]",
        "message": "?",
    }
    claims = jwt.decode(token, JWT_SECRET, algorithms=["HS256"], audience="authenticated")
    assert (claims["sub"], claims["jti"]) == (ANNA.user_id, request.turn_id)
    assert claims["exp"] > datetime.now(UTC).timestamp()


async def test_bare_request(aichat: AichatHost, caplog: pytest.LogCaptureFixture) -> None:
    """What there is not is not sent; that there is no token is logged once, not per turn."""
    del aichat.environ["SUPABASE_JWT_SECRET"]
    async with paliadin_client.connect(environ=aichat.environ) as paliadin:
        for _ in range(2):
            await paliadin.run_turn(ask())
    assert set(aichat.turns[0].body) == {"persona", "username", "user_id", "turn_id", "message"}
    assert caplog.text.count("token.off") == 1


async def test_short_secret(aichat: AichatHost, caplog: pytest.LogCaptureFixture) -> None:
    """A secret too short for its algorithm is one warning of ours, and signs all the same."""
    aichat.environ["SUPABASE_JWT_SECRET"] = "s" * 31
    async with paliadin_client.connect(environ=aichat.environ) as paliadin:
        for _ in range(2):
            await paliadin.run_turn(ask())
    assert "jwt" in aichat.turns[1].body
    (record,) = caplog.records
    assert "SUPABASE_JWT_SECRET has 31 bytes, and HS256 wants 32 or more" in record.getMessage()


@pytest.mark.parametrize(
    ("email", "username"),
    [
        ("anna@example.org", "anna"),
        ("anna", "anna"),
        (None, "user-0f5c2a44"),
        ("", "user-0f5c2a44"),
        ("@example.org", "user-0f5c2a44"),
        ("\x1b\n@example.org", "user-0f5c2a44"),
    ],
)
async def test_username(aichat: AichatHost, email: str | None, username: str) -> None:
    """The window is named by the e-mail address's local part, else by the user id."""
    user = User(ANNA.user_id, email=email)
    async with paliadin_client.connect(environ=aichat.environ) as paliadin:
        await paliadin.run_turn(ask(user=user))
        await paliadin.reset_session(user)
    assert ([seen.pane for seen in aichat.turns], aichat.resets) == ([username], [username])


async def test_facts(aichat: AichatHost) -> None:
    """What the backend names beside the answer is in the result; without it, the request's."""
    aichat.extra = {"conversation_id": "c-2", "duration_ms": 1234, "turn_id": str(uuid4())}
    request = ask(conversation_id="c-1")
    result = await run(aichat, request)
    assert (result.conversation_id, result.timings.backend_ms) == ("c-2", 1234)
    assert result.turn_id == request.turn_id
    aichat.extra = {"conversation_id": 7, "duration_ms": "soon", "turn_id": "../x"}
    result = await run(aichat, request)
    assert (result.conversation_id, result.timings.backend_ms) == ("c-1", None)


async def test_trailer_cut_off(aichat: AichatHost, inbox: Inbox) -> None:
    """A backend that cut the trailer off and names what it said has sent a whole answer."""
    aichat.script = lambda _: _text(TEXT)
    aichat.extra = {"used_tools": ["search"], "rows_seen": 3, "classifier_tag": "frist"}
    async with paliadin_client.connect(inbox=inbox, environ=aichat.environ) as paliadin:
        result = await paliadin.run_turn(ask())
    assert result.text == TEXT
    assert result.trailer is not None
    assert (result.trailer.used_tools, result.trailer.rows_seen) == (("search",), 3)


async def _text(text: str) -> str:
    return text


async def test_trailer_of_nothing(aichat: AichatHost) -> None:
    """A trailer that a backend's empty fields would make is none."""
    aichat.script = lambda _: _text(HALF)
    aichat.extra = {"used_tools": None, "rows_seen": 0, "classifier_tag": ""}
    assert (await run(aichat, ask())).trailer is None


async def test_pane_spawned(aichat: AichatHost) -> None:
    """A pane that turns out to have been fresh gets its primer with the next turn."""
    request = ask(primer=[Exchange("Q", "A")])
    spawned = [True, False, True, False, False]
    async with paliadin_client.connect(environ=aichat.environ) as paliadin:
        for each in spawned:
            aichat.extra = {"pane_spawned": each}
            await paliadin.run_turn(TurnRequest(user=ANNA, message="?", primer=request.primer))
    # The first carried one; the third found a fresh pane without; the fourth makes up for it.
    assert [bool(seen.primer) for seen in aichat.turns] == [True, False, False, True, False]


async def test_facts_on_the_heels_of_a_push(
    aichat: AichatHost, inbox: Inbox, sidecar: Sidecar
) -> None:
    """A push that is a moment faster than the response costs neither conversation nor primer."""
    aichat.extra = {"conversation_id": "c-2", "pane_spawned": True}
    pushed = anyio.Event()

    async def push_then_respond(seen: Seen) -> str:
        await sidecar.push(seen.turn_id)
        pushed.set()
        return HALF

    async with paliadin_client.connect(inbox=inbox, environ=aichat.environ) as paliadin:
        await paliadin.run_turn(ask())
        aichat.script = push_then_respond
        result = await paliadin.run_turn(ask())
        await paliadin.run_turn(ask(primer=[Exchange("Q", "A")]))
    assert pushed.is_set()
    assert (result.text, result.via, result.conversation_id) == (TEXT, "push", "c-2")
    assert [bool(seen.primer) for seen in aichat.turns] == [False, False, True]


async def test_error_on_the_heels_of_a_push(
    aichat: AichatHost, inbox: Inbox, sidecar: Sidecar
) -> None:
    """A backend that fails after the answer was pushed does not take it back."""

    async def push_then_fail(seen: Seen) -> str:
        await sidecar.push(seen.turn_id)
        raise Fails("shim_error")

    aichat.script = push_then_fail
    async with paliadin_client.connect(inbox=inbox, environ=aichat.environ) as paliadin:
        assert (await paliadin.run_turn(ask())).via == "push"


async def test_id_of_its_own(aichat: AichatHost, inbox: Inbox, sidecar: Sidecar) -> None:
    """A backend's own turn id is matched by the token's, which came back with the push."""

    async def push_own(seen: Seen) -> str:
        jti = jwt.decode(seen.body["jwt"], options={"verify_signature": False})["jti"]
        await sidecar.push(str(uuid4()), submitted=jti)
        raise Fails("timeout")

    aichat.script = push_own
    request = ask()
    async with paliadin_client.connect(inbox=inbox, environ=aichat.environ) as paliadin:
        result = await paliadin.run_turn(request)
    assert (result.via, result.turn_id) == ("push", request.turn_id)


@pytest.mark.parametrize("first", ["push", "response"])
async def test_id_of_its_own_without_token(
    aichat: AichatHost, inbox: Inbox, sidecar: Sidecar, first: str
) -> None:
    """Without a token the response may name the id under which the push comes, or came."""
    del aichat.environ["SUPABASE_JWT_SECRET"]
    own = str(uuid4())
    aichat.extra = {"turn_id": own}
    responded = anyio.Event()

    async def respond(_: Seen) -> str:
        if first == "push":
            await sidecar.push(own)
        responded.set()
        return HALF

    async def push_later() -> None:
        await responded.wait()
        await sidecar.push(own)

    aichat.script = respond
    async with (
        paliadin_client.connect(inbox=inbox, environ=aichat.environ) as paliadin,
        anyio.create_task_group() as tasks,
    ):
        if first == "response":
            tasks.start_soon(push_later)
        result = await paliadin.run_turn(ask())
    assert (result.text, result.via) == (TEXT, "push")


async def test_nothing_names_the_turn(
    aichat: AichatHost, inbox: Inbox, sidecar: Sidecar, stored: list[TurnCallback]
) -> None:
    """Its own id, no token, no response: the wait times out, and the app gets the answer."""
    del aichat.environ["SUPABASE_JWT_SECRET"]
    aichat.environ["PALIADIN_DEADLINE_S"] = "1"
    own = str(uuid4())

    async def push_own(_: Seen) -> str:
        await sidecar.push(own)
        raise Fails("timeout")

    aichat.script = push_own
    async with paliadin_client.connect(inbox=inbox, environ=aichat.environ) as paliadin:
        with pytest.raises(TurnTimeout) as caught:
            await paliadin.run_turn(ask())
    assert isinstance(caught.value.__cause__, BackendTimeout)
    assert [turn.data.turn_id for turn in stored] == [own]


NAMES = (
    *("response", "used_tools", "rows_seen", "classifier_tag", "duration_ms", "conversation_id"),
    *("turn_id", "pane_spawned", "error", "code", "message", "retryable"),
)
CODES = {
    "auth_failed": AuthFailed,
    "persona_unknown": PersonaUnknown,
    "mriver_unreachable": Unreachable,
    "bootstrap_failed": BootstrapFailed,
    "timeout": BackendTimeout,
    "shim_error": ShimError,
    "bad_request": BadRequest,
}


@pytest.mark.parametrize("nested", [True, False], ids=["under error", "at the top"])
@pytest.mark.parametrize("code", CODES)
async def test_error_codes(aichat: AichatHost, code: str, *, nested: bool) -> None:
    """Each code is its own type, in either shape, with the backend's word on whether to retry."""
    aichat.nested_errors = nested
    aichat.unwell = code
    async with paliadin_client.connect(environ=aichat.environ) as paliadin:
        with pytest.raises(PaliadinError) as caught:
            await paliadin.health()
    assert type(caught.value) is CODES[code]
    assert (caught.value.code, caught.value.retryable) == (code, True)
    assert caught.value.detail == "words of the backend"


@pytest.mark.parametrize(
    "error",
    [
        {"code": "bad_request", "message": "unsupported_streaming: paliadin", "retryable": False},
        {
            "type": "error",
            "code": "bad_request",
            "message": "unsupported_streaming",
            "retryable": False,
            "since": "later",
        },
    ],
)
@pytest.mark.parametrize("nested", [True, False], ids=["under error", "at the top"])
@pytest.mark.parametrize("status", [400, 500, 501])
async def test_unsupported_streaming(
    error: dict[str, object], status: int, *, nested: bool
) -> None:
    """An error of the streaming call keeps its code, whatever its message, status and shape."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = {"error": error, "elapsed": [1]} if nested else error
        await JSONResponse(body, status)(scope, receive, send)

    async with serving(app) as url:
        environ = {"PALIADIN_BACKEND": "aichat", "AICHAT_URL": url, "AICHAT_TOKEN": "t"}
        async with paliadin_client.connect(environ=environ) as paliadin:
            with pytest.raises(BadRequest) as caught:
                await paliadin.health()
    assert (caught.value.code, caught.value.retryable) == ("bad_request", False)
    assert caught.value.detail == error["message"]


async def test_newer_answer(aichat: AichatHost) -> None:
    """Fields that are new, and known ones of another form, cost the answer nothing."""
    aichat.extra = {
        "conversation_id": "c-3",
        "resumed": True,
        "used_tools": ["search", "read"],
        "rows_seen": [3, 0],
        "pane_spawned": "no",
        "duration_ms": None,
        "type": "done",
        "code": None,
        "error": None,
        "usage": {"tokens": [1, 2, {"of": "them"}]},
    }
    result = await run(aichat, ask())
    assert (result.text, result.via, result.conversation_id) == (TEXT, "response", "c-3")


async def test_wrong_token(aichat: AichatHost) -> None:
    """A token that the backend does not take is `auth_failed`, and stands in no error."""
    aichat.environ["AICHAT_TOKEN"] = "wrong-token-marker"
    async with paliadin_client.connect(environ=aichat.environ) as paliadin:
        with pytest.raises(AuthFailed) as caught:
            await paliadin.health()
    assert "marker" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (Response("<html>", 502), BackendTimeout),
        (Response("", 504), BackendTimeout),
        (Response("", 503), Unreachable),
        (Response("", 401), AuthFailed),
        (Response("", 413), BadRequest),
        (Response("", 500), ShimError),
        (Response("", 302, {"location": "http://127.0.0.1:1/"}), ShimError),
        (JSONResponse({"error": "bad"}, 500), ShimError),
        (JSONResponse({"code": "sic", "message": 3, "retryable": "no"}, 500), ShimError),
        (Response("[" * 100_000, 500), ShimError),
        (Response(b"\xff\xfe", 200), ShimError),
        (JSONResponse(["response"], 200), ShimError),
        (JSONResponse({"response": None}, 200), ShimError),
        (Response("", 200, {"content-length": "9"}), ConnectionLost),
        (Response("no gzip at all", 200, {"content-encoding": "gzip"}), ConnectionLost),
    ],
)
async def test_odd_responses(response: Response, error: type[PaliadinError]) -> None:
    """Whatever answers in the backend's place becomes an error of ours."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/chat/health":
            await Response()(scope, receive, send)
        else:
            await response(scope, receive, send)

    async with serving(app) as url:
        environ = {"PALIADIN_BACKEND": "aichat", "AICHAT_URL": url, "AICHAT_TOKEN": "t"}
        async with paliadin_client.connect(environ=environ) as paliadin:
            with pytest.raises(PaliadinError) as caught:
                await paliadin.run_turn(ask())
    assert type(caught.value) is error


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner),
)


@given(st.binary() | _JSON.map(lambda value: json.dumps(value).encode()))
def test_hostile_bodies(body: bytes) -> None:
    """Whatever a body holds, it is a reply or an error of ours."""
    error = module._error(500, body)
    assert isinstance(error, PaliadinError)
    assert isinstance(module._reply(body).text, str)


@pytest.mark.parametrize("body", [{}, {"antwort": "Ja.", "classifier_tag": "frist"}])
async def test_text_under_another_name(
    aichat: AichatHost, inbox: Inbox, sidecar: Sidecar, body: dict[str, object]
) -> None:
    """An answer whose text cannot be found is waited for: the push brings it."""
    pushed = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/chat/turn":
            await JSONResponse({"turn_id": "of-aichat", **body})(scope, receive, send)
            pushed.set()
        else:
            await Response()(scope, receive, send)

    async def push() -> None:
        await pushed.wait()
        await until(lambda: "of-aichat" in inbox._waiters)
        assert await sidecar.push("of-aichat") == 204

    async with serving(app) as url, anyio.create_task_group() as tasks:
        environ = {**aichat.environ, "AICHAT_URL": url}
        async with paliadin_client.connect(inbox=inbox, environ=environ) as paliadin:
            tasks.start_soon(push)
            result = await paliadin.run_turn(ask())
    assert (result.text, result.via) == (TEXT, "push")


async def test_endless_answer(aichat: AichatHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is read up to a limit and no further."""
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 100_000)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            await anyio.lowlevel.checkpoint()
            yield b"x" * 10_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(endless())(scope, receive, send)

    async with serving(app) as url:
        aichat.environ["AICHAT_URL"] = url
        async with paliadin_client.connect(environ=aichat.environ) as paliadin:
            with pytest.raises(ShimError, match="more than 100000 bytes"):
                await paliadin.health()


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip, gzip", "deflate", "br", "zstd", "x"])
async def test_compressed(aichat: AichatHost, inbox: Inbox, sidecar: Sidecar, coding: str) -> None:
    """What was not asked for is not decoded: a few bytes stay a few, and the push is awaited."""
    bomb = b"0" * 10_000_000
    for _ in range(coding.count("gzip")):
        bomb = gzip.compress(bomb)
    seen: list[str] = []
    status = [200]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/chat/turn":
            await Response()(scope, receive, send)
            return
        seen.append(dict(scope["headers"])[b"accept-encoding"].decode())
        await Response(bomb, status[0], {"content-encoding": coding})(scope, receive, send)

    request = ask()
    async with serving(app) as url, anyio.create_task_group() as tasks:
        environ = {**aichat.environ, "AICHAT_URL": url}
        async with paliadin_client.connect(environ=environ) as paliadin:
            with pytest.raises(ConnectionLost, match="compressed, which was not asked for") as lost:
                await paliadin.run_turn(request)
        assert not lost.value.retryable
        assert lost.value.detail == f"Content-Encoding: {coding}"
        async with paliadin_client.connect(inbox=inbox, environ=environ) as paliadin:
            tasks.start_soon(sidecar.push, request.turn_id)
            assert (await paliadin.run_turn(request)).via == "push"
            status[0] = 401
            with pytest.raises(AuthFailed):
                await paliadin.run_turn(ask())
    assert set(seen) == {"identity"}


async def test_silent_backend(aichat: AichatHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A health check that is not answered ends by itself."""
    monkeypatch.setattr(module, "_HEALTH_S", 0.2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serving(app) as url:
        aichat.environ["AICHAT_URL"] = url
        async with paliadin_client.connect(environ=aichat.environ) as paliadin:
            with pytest.raises(Unreachable, match=r"within 0\.2 s"):
                await paliadin.health()


async def test_environment_proxy(aichat: AichatHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is not asked: it would see tokens and questions."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await run(aichat, ask())).text == TEXT


async def test_base_path(aichat: AichatHost) -> None:
    """The URL may have a path, with or without its last slash."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        await Response()(scope, receive, send)

    async with serving(app) as url:
        for base in (url, f"{url}/", f"{url}/api", f"{url}/api/"):
            environ = {**aichat.environ, "AICHAT_URL": base}
            async with paliadin_client.connect(environ=environ) as paliadin:
                await paliadin.health()
    assert seen == ["/chat/health"] * 2 + ["/api/chat/health"] * 2


async def test_dropped_reset(aichat: AichatHost) -> None:
    """A reset whose connection is lost says so."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("", 200, {"content-length": "9"})(scope, receive, send)

    async with serving(app) as url:
        aichat.environ["AICHAT_URL"] = url
        async with paliadin_client.connect(environ=aichat.environ) as paliadin:
            with pytest.raises(ConnectionLost):
                await paliadin.reset_session(ANNA)


async def test_cancelled_at_each_step(aichat: AichatHost) -> None:
    """Whatever step of the event loop a call is cancelled at, no connection of it is left."""
    settings = Settings.from_environ(aichat.environ).backend
    assert isinstance(settings, AichatSettings)
    async with module.open_aichats(settings) as backends:
        (backend,) = backends.values()
        pool = backend._http._transport._pool  # type: ignore[attr-defined]  # httpx2's own
        await backend.health(None)
        assert pool.connections == []
        for steps in range(200):
            call = asyncio.ensure_future(backend.health(None))
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert pool.connections == [], f"after {steps} steps"
