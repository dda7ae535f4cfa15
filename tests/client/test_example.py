"""The example app and every snippet of README and docs, run as a newcomer runs them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import secrets
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import anyio
import httpx2
import pytest
from httpx2 import AsyncHTTPTransport
from itsdangerous import TimestampSigner
from support.client_hosts import ANSWER, Fails, Sidecar, serving, until

from paliadin_client import Inbox, ShimError, User, connect
from paliadin_contract.trailer import split

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.client_hosts import Host, Seen

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
TEXT = split(ANSWER)[0]
USER_ID = "0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a11"


class App(NamedTuple):
    url: str
    signed_in: dict[str, str]


def snippets(document: str) -> dict[str, str]:
    """The blocks of Python of a document, by the comment before each."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall("(?:<!-- ([a-z-]+) -->\n)?```python\n(.*?)```", text, re.DOTALL)
    return {name: str(code) for name, code in found}


APPS = {
    "example": (ROOT / "examples/app.py").read_text(encoding="utf-8"),
    "readme": snippets("README.md")[""],
    "client.md": snippets("docs/client.md")["app"],
}


def test_every_snippet_is_run() -> None:
    """No document has a block of Python that no test here runs."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    found = {page.name: set(snippets(str(page.relative_to(ROOT)))) for page in pages}
    wanted = {"README.md": {""}, "client.md": {"app", "calls", "fastapi", "submit"}}
    assert {name: blocks for name, blocks in found.items() if blocks} == wanted


@pytest.fixture(params=APPS)
async def app(
    request: pytest.FixtureRequest, host: Host, secret: str, tmp_path: Path
) -> AsyncIterator[App]:
    """An app under uvicorn's own command, in a directory of its own, and who is signed in there."""
    (tmp_path / "app.py").write_text(APPS[request.param], encoding="utf-8")
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    sessions = secrets.token_hex()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "--app-dir", str(tmp_path), "--port", str(port)),
        "app:app",
        cwd=tmp_path,
        env={
            **os.environ,
            **host.environ,
            "PALIADIN_CALLBACK_SECRET": secret,
            "SESSION_SECRET": sessions,
        },
        stdout=DEVNULL,
        stderr=DEVNULL,
    )
    session = json.dumps({"user_id": USER_ID, "email": "anna@example.org"}).encode()
    cookie = TimestampSigner(sessions).sign(base64.b64encode(session)).decode()
    yield App(f"http://127.0.0.1:{port}", {"cookie": f"session={cookie}"})
    process.terminate()
    assert await process.wait() in (0, -15)


async def never(_: Seen) -> str:
    await anyio.sleep_forever()
    raise AssertionError


async def test_app(host: Host, app: App, secret: str, tmp_path: Path) -> None:
    """A question of who is signed in is answered by the push to the app's inbox."""
    host.script = never
    forged = {"user_id": "7be1d0aa-5f0e-4c59-8a52-2d0a8a5a2a12", "message": "Frage?"}
    # Until uvicorn listens its port refuses: the transport tries again.
    transport = AsyncHTTPTransport(retries=8, trust_env=False)
    async with httpx2.AsyncClient(transport=transport, headers=app.signed_in, timeout=30) as http:
        answer = asyncio.ensure_future(http.post(f"{app.url}/ask", json=forged))
        seen = await host.next_turn()
        assert seen.pane in ("anna", "user-0f5c2a44", "paliad-paliadin-0f5c2a44")
        sidecar = Sidecar(f"{app.url}/paliadin/callback", secret)
        async with sidecar.http:
            assert await sidecar.push(seen.turn_id) == 204
            # The host never answers: this came with the push.
            assert TEXT in (await answer).text
            if (database := tmp_path / "app.sqlite3").exists():
                await _stored(sidecar, database, seen.turn_id)
    assert (tmp_path / "inbox.sqlite3").exists()


async def _stored(sidecar: Sidecar, database: Path, turn_id: str) -> None:
    # What `on_turn` of docs/client.md keeps: corrections of the file, and nothing else.
    def answer() -> tuple[str, str | None]:
        with closing(sqlite3.connect(database)) as db:
            ((text, error),) = db.execute("SELECT answer, error FROM turns WHERE id = ?", [turn_id])
            return text, error

    assert answer() == (TEXT, None)
    assert await sidecar.fail(turn_id, revision=2) == 204
    assert await sidecar.push(turn_id, "Korrigiert.", revision=3) == 204
    assert await sidecar.push(str(uuid4()), "Fremd.", submitted=turn_id, revision=4) == 204
    assert await sidecar.push(str(uuid4()), "Einer anderen App.") == 204
    assert answer() == ("Korrigiert.", None)


async def test_calls(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three calls of docs/client.md are made as they stand there."""
    for name, value in host.environ.items():
        monkeypatch.setenv(name, value)
    namespace: dict[str, Any] = {}
    exec(snippets("docs/client.md")["calls"], namespace)  # as a reader pastes it
    # The environment is the process's own, as in an app.
    assert await namespace["everything"](USER_ID, "anna@example.org") == TEXT
    assert len(host.resets) == 1


async def test_submit_and_look(host: Host) -> None:
    """What a page's first request asked is what its next one shows, and until then nothing."""
    namespace: dict[str, Any] = {}
    exec(snippets("docs/client.md")["submit"], namespace)
    ask, look = namespace["ask"], namespace["look"]
    user = User(USER_ID, email="anna@example.org")
    async with connect(environ=host.environ) as paliadin:
        assert await look(paliadin, ask(paliadin, user, "Welche Fristen?")) == TEXT

        async def fails(_: Seen) -> str:
            raise Fails("shim_error")

        host.script = fails
        with pytest.raises(ShimError):
            await look(paliadin, ask(paliadin, user, "Welche Fristen?"))
        await until(lambda: not namespace["asking"])


async def test_fastapi(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In FastAPI the inbox is reached at its path; mounted, it would be behind a redirect."""
    monkeypatch.setenv("PALIADIN_CALLBACK_SECRET", secret)
    namespace: dict[str, Any] = {}
    exec(snippets("docs/client.md")["fastapi"], namespace)
    app = namespace["app"]
    app.mount("/mounted", Inbox([secret]))
    async with serving(app) as url:
        statuses = []
        for path in ("/paliadin/callback", "/mounted"):
            sidecar = Sidecar(f"{url}{path}", secret)
            async with sidecar.http:
                statuses.append(await sidecar.push(str(uuid4())))
    assert statuses == [204, 307]
