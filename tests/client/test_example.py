"""The example app and every snippet of README and docs, run as a newcomer runs them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
from support.client_hosts import ANSWER, Fails, Sidecar, until
from support.served_app import ANNA, cookie, served, snippets

from paliadin_client import ShimError, User, connect
from paliadin_contract.trailer import split

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.client_hosts import Host, Seen

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
TEXT = split(ANSWER)[0]


#: What tests/client/test_apps.py runs.
APP_SNIPPETS = {"turns", "starlette", "fastapi", "quart", "django-asgi", "django-views"} | {
    "postgresql-turns",
    "test",
}
APPS = {
    "example": (ROOT / "examples/app.py").read_text(encoding="utf-8"),
    "readme": snippets("README.md")[""],
}


def test_every_snippet_is_run() -> None:
    """No document has a block of Python that no test here runs."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    found = {page.name: set(snippets(str(page.relative_to(ROOT)))) for page in pages}
    wanted = {"README.md": {""}, "client.md": {"calls", "submit", *APP_SNIPPETS}}
    assert {name: blocks for name, blocks in found.items() if blocks} == wanted


@pytest.fixture(params=APPS)
async def app(
    request: pytest.FixtureRequest, host: Host, secret: str, tmp_path: Path
) -> AsyncIterator[str]:
    """The URL of an app under uvicorn's own command, in a directory of its own."""
    (tmp_path / "app.py").write_text(APPS[request.param], encoding="utf-8")
    environ = {**host.environ, "PALIADIN_CALLBACK_SECRET": secret}
    async with served(tmp_path, environ) as url:
        yield url


async def never(_: Seen) -> str:
    await anyio.sleep_forever()
    raise AssertionError


async def test_app(host: Host, app: str, secret: str, tmp_path: Path) -> None:
    """A question of who is signed in is answered by the push to the app's inbox."""
    host.script = never
    forged = {"user_id": "7be1d0aa-5f0e-4c59-8a52-2d0a8a5a2a12", "message": "Frage?"}
    async with httpx2.AsyncClient(headers=cookie(), timeout=30, trust_env=False) as http:
        answer = asyncio.ensure_future(http.post(f"{app}/ask", json=forged))
        seen = await host.next_turn()
        assert seen.pane in ("anna", "user-0f5c2a44", "paliad-paliadin-0f5c2a44")
        sidecar = Sidecar(f"{app}/paliadin/callback", secret)
        async with sidecar.http:
            assert await sidecar.push(seen.turn_id) == 204
            # The host never answers: this came with the push.
            assert TEXT in (await answer).text
    assert (tmp_path / "inbox.sqlite3").exists()


async def test_calls(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three calls of docs/client.md are made as they stand there."""
    for name, value in host.environ.items():
        monkeypatch.setenv(name, value)
    namespace: dict[str, Any] = {}
    exec(snippets("docs/client.md")["calls"], namespace)  # as a reader pastes it
    # The environment is the process's own, as in an app.
    assert await namespace["everything"](ANNA["user_id"], ANNA["email"]) == TEXT
    assert len(host.resets) == 1


async def test_submit_and_look(host: Host) -> None:
    """What a page's first request asked is what its next one shows, and until then nothing."""
    namespace: dict[str, Any] = {}
    exec(snippets("docs/client.md")["submit"], namespace)
    ask, look = namespace["ask"], namespace["look"]
    user = User(ANNA["user_id"], email=ANNA["email"])
    async with connect(environ=host.environ) as paliadin:
        assert await look(paliadin, ask(paliadin, user, "Welche Fristen?")) == TEXT

        async def fails(_: Seen) -> str:
            raise Fails("shim_error")

        host.script = fails
        with pytest.raises(ShimError):
            await look(paliadin, ask(paliadin, user, "Welche Fristen?"))
        await until(lambda: not namespace["asking"])
