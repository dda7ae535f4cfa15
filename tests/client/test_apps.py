"""The apps of docs/client.md, each as its reader starts it, and the tests that it shows."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import httpx2
import pytest
from fastapi import FastAPI
from quart import Quart
from quart.sessions import SecureCookieSessionInterface
from support.client_hosts import ANSWER, Fails, Sidecar, serving
from support.served_app import ANNA, BEN, ROOT, SESSION_SECRET, cookie, served, snippets

from paliadin_client import Inbox
from paliadin_client.testing import FakeHost
from paliadin_contract.trailer import split

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from support.client_hosts import AichatHost, Seen
    from support.postgresql import PostgreSQL

pytestmark = pytest.mark.anyio

DOCUMENT = "docs/client.md"
SNIPPETS = snippets(DOCUMENT)
TEXT = split(ANSWER)[0]
slow = pytest.mark.slow


@pytest.fixture
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Where an app keeps its turns by the `turns.py` that is there: SQLite unless it is said."""
    environ = {}
    turns = getattr(request, "param", "turns")
    (tmp_path / "turns.py").write_text(SNIPPETS[turns], encoding="utf-8")
    if turns == "postgresql-turns":
        server: PostgreSQL = request.getfixturevalue("database_server")
        database = server.new_database("made")
        text = (ROOT / DOCUMENT).read_text(encoding="utf-8")
        (table,) = re.findall("<!-- postgresql-table -->\n```sql\n(.*?)```", text, re.DOTALL)
        server.sql(table, database)
        environ["DATABASE_URL"] = server.url(database)
    return environ


@pytest.fixture
def environ(stored: dict[str, str], aichat: AichatHost, secret: str) -> dict[str, str]:
    """The variables of an app."""
    return {**stored, **aichat.environ, "PALIADIN_CALLBACK_SECRET": secret}


class Client:
    """A browser of somebody who is signed in, and the sidecar, before one process of an app."""

    def __init__(self, url: str, secret: str, headers: Mapping[str, str]) -> None:
        self.url = url
        self.http = httpx2.AsyncClient(
            base_url=url, headers=headers, timeout=30, trust_env=False, follow_redirects=False
        )
        self.sidecar = Sidecar(f"{url}/paliadin/callback", secret)

    async def ask(self) -> httpx2.Response:
        """Ask, in the name of who is signed in, whoever the body says."""
        question = {"message": "Welche Fristen?", **BEN}
        return await self.http.post("/turns", json=question)

    async def show(self, turn_id: str) -> tuple[str | None, str | None]:
        """What the page of a turn has: the answer, and why there is none."""
        found = (await self.http.get(f"/turns/{turn_id}")).json()
        return found["answer"], found["error"]


async def start(
    stack: AsyncExitStack, folder: Path, environ: Mapping[str, str], headers: Mapping[str, str]
) -> Client:
    url = await stack.enter_async_context(served(folder, environ))
    client = Client(url, environ["PALIADIN_CALLBACK_SECRET"], headers)
    await stack.enter_async_context(client.http)
    await stack.enter_async_context(client.sidecar.http)
    return client


def quart_cookie() -> dict[str, str]:
    """As `cookie`, by the sessions of Quart."""
    app = Quart("app")
    app.secret_key = SESSION_SECRET
    signer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert signer is not None
    return {"cookie": f"session={signer.dumps(ANNA)}"}


async def never(_: Seen) -> str:
    await anyio.sleep_forever()
    raise AssertionError


async def answered_by_push(host: AichatHost, asked: Client, pushed: Client) -> str:
    """A turn that is asked at one process and answered by the push to another; its id."""
    host.script = never
    answer = asyncio.ensure_future(asked.ask())
    seen = await host.next_turn()
    assert seen.pane == "anna"
    assert await pushed.sidecar.push(seen.turn_id) == 204
    response = await answer
    assert response.json() == {"turn_id": seen.turn_id, "answer": TEXT}
    return seen.turn_id


async def reloaded(host: AichatHost, client: Client) -> None:
    """A page of a turn that is not answered yet waits for the answer."""
    host.script = never
    answer = asyncio.ensure_future(client.ask())
    seen = await host.next_turn()
    page = asyncio.ensure_future(client.show(seen.turn_id))
    assert await client.sidecar.push(seen.turn_id) == 204
    assert await page == (TEXT, None)
    await answer


@pytest.mark.parametrize(
    ("framework", "stored"),
    [
        ("starlette", "turns"),
        ("fastapi", "postgresql-turns"),
        pytest.param("fastapi", "turns", marks=slow),
        pytest.param("starlette", "postgresql-turns", marks=slow),
    ],
    indirect=["stored"],
)
async def test_app(
    framework: str, environ: dict[str, str], aichat: AichatHost, tmp_path: Path
) -> None:
    """It answers by the push, keeps what counts most, and shows it to nobody else."""
    (tmp_path / "app.py").write_text(SNIPPETS[framework], encoding="utf-8")
    async with AsyncExitStack() as stack:
        client = await start(stack, tmp_path, environ, cookie())
        turn_id = await answered_by_push(aichat, client, client)
        assert await client.show(turn_id) == (TEXT, None)
        await _corrected(client, turn_id)
        for headers, status in [({"cookie": ""}, 401), (cookie(BEN), 404)]:
            response = await client.http.get(f"/turns/{turn_id}", headers=headers)
            assert response.status_code == status
        response = await client.http.post("/turns", json={"message": "?"}, headers={"cookie": ""})
        assert response.status_code == 401
        await _failed(aichat, client)
        await reloaded(aichat, client)


async def _corrected(client: Client, turn_id: str) -> None:
    # What `on_turn` keeps: corrections of the file, and nothing else.
    push = client.sidecar.push
    assert await client.sidecar.fail(turn_id, revision=2) == 204
    assert await push(turn_id, "Korrigiert.\0", revision=3) == 204
    assert await push(str(uuid4()), "Fremd.", submitted=turn_id, revision=4) == 204
    assert await push(str(uuid4()), "Einer anderen App.") == 204
    answer, error = await client.show(turn_id)
    assert (answer, error) in {("Korrigiert.\0", None), ("Korrigiert.\ufffd", None)}


async def _failed(host: AichatHost, client: Client) -> None:
    # A failure is shown, and kept until an answer comes all the same.
    async def script(_: Seen) -> str:
        raise Fails("bootstrap_failed")

    host.script = script
    response = await client.ask()
    assert response.status_code == 503
    assert response.json() == {"error": "bootstrap_failed", "retryable": True}
    turn_id = (await host.next_turn()).turn_id
    assert await client.show(turn_id) == (None, "bootstrap_failed")
    assert await client.sidecar.fail(turn_id) == 204
    assert await client.show(turn_id) == (None, "too_large")
    assert await client.sidecar.push(turn_id, revision=2) == 204
    assert await client.show(turn_id) == (TEXT, None)


@pytest.mark.parametrize("stored", ["postgresql-turns"], indirect=True)
async def test_two_processes(environ: dict[str, str], aichat: AichatHost, tmp_path: Path) -> None:
    """With PostgreSQL, who waits at one process has the answer that was pushed to another."""
    (tmp_path / "app.py").write_text(SNIPPETS["starlette"], encoding="utf-8")
    async with AsyncExitStack() as stack:
        one, two = [await start(stack, tmp_path, environ, cookie()) for _ in range(2)]
        turn_id = await answered_by_push(aichat, one, two)
        assert await one.show(turn_id) == await two.show(turn_id) == (TEXT, None)
        page = asyncio.ensure_future(one.ask())
        turn_id = (await aichat.next_turn()).turn_id
        shown = asyncio.ensure_future(two.show(turn_id))
        assert await one.sidecar.push(turn_id) == 204
        assert await shown == (TEXT, None)
        assert (await page).json()["answer"] == TEXT


@slow
@pytest.mark.parametrize("stored", ["postgresql-turns"], indirect=True)
async def test_database_restarted(
    environ: dict[str, str], aichat: AichatHost, tmp_path: Path, database_server: PostgreSQL
) -> None:
    """An app whose PostgreSQL was away works when it is back, without a restart of its own."""
    (tmp_path / "app.py").write_text(SNIPPETS["starlette"], encoding="utf-8")
    async with AsyncExitStack() as stack:
        client = await start(stack, tmp_path, environ, cookie())
        first = await answered_by_push(aichat, client, client)
        with database_server.down():
            assert await client.sidecar.push(first, "Korrigiert.", revision=2) == 503
        assert await client.sidecar.push(first, "Korrigiert.", revision=2) == 204
        assert await client.show(first) == ("Korrigiert.", None)
        await answered_by_push(aichat, client, client)


async def test_not_mounted() -> None:
    """Mounted, the inbox would be behind a redirect, which no sidecar follows."""
    app, secret = FastAPI(), FakeHost().secret
    app.mount("/paliadin/callback", Inbox([secret]))
    async with serving(app) as url:
        sidecar = Sidecar(f"{url}/paliadin/callback", secret)
        async with sidecar.http:
            assert await sidecar.push(str(uuid4())) == 307


@slow
async def test_quart(environ: dict[str, str], aichat: AichatHost, tmp_path: Path) -> None:
    """In Quart the inbox has its path, and the rest is the app's."""
    (tmp_path / "app.py").write_text(SNIPPETS["quart"], encoding="utf-8")
    async with AsyncExitStack() as stack:
        client = await start(stack, tmp_path, environ, quart_cookie())
        await answered_by_push(aichat, client, client)
        response = await client.http.post("/turns", json={"message": "?"}, headers={"cookie": ""})
        assert response.status_code == 401


#: What `django-admin startproject` makes, as far as it is needed here.
DJANGO_SETTINGS = f"""
SECRET_KEY = "{SESSION_SECRET}"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "views"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "django.sqlite3"}}}}
"""
DJANGO_SIGN_IN = """
import django

django.setup()
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client

call_command("migrate", verbosity=0)
client = Client()
client.force_login(get_user_model().objects.create_user("anna", "anna@example.org"))
print(client.cookies["sessionid"].value)
"""


def _sign_in_to_django(folder: Path, environ: Mapping[str, str]) -> str:
    return subprocess.run(
        [sys.executable, "-c", DJANGO_SIGN_IN],
        cwd=folder,
        env={**os.environ, **environ},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@slow
async def test_django(environ: dict[str, str], aichat: AichatHost, tmp_path: Path) -> None:
    """Before Django the inbox needs no CSRF token, and a view does."""
    environ |= {"DJANGO_SETTINGS_MODULE": "settings"}
    for name, text in {
        "settings.py": DJANGO_SETTINGS,
        "views.py": SNIPPETS["django-views"],
        "app.py": SNIPPETS["django-asgi"] + "\napp = application\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    session = _sign_in_to_django(tmp_path, environ)
    token = "t" * 32
    headers = {"cookie": f"sessionid={session}; csrftoken={token}", "x-csrftoken": token}
    async with AsyncExitStack() as stack:
        client = await start(stack, tmp_path, environ, headers)
        await answered_by_push(aichat, client, client)
        for changed in ({"x-csrftoken": ""}, {"cookie": f"csrftoken={token}"}):
            response = await client.http.post("/turns", json={"message": "?"}, headers=changed)
            assert response.status_code == 403


@pytest.mark.parametrize(
    ("framework", "stored"),
    [
        ("starlette", "turns"),
        pytest.param("fastapi", "turns", marks=slow),
        pytest.param("fastapi", "postgresql-turns", marks=slow),
    ],
    indirect=["stored"],
)
def test_the_tests_of_an_app(framework: str, stored: dict[str, str], tmp_path: Path) -> None:
    """The tests that the document shows pass."""
    (tmp_path / "app.py").write_text(SNIPPETS[framework], encoding="utf-8")
    (tmp_path / "test_app.py").write_text(SNIPPETS["test"], encoding="utf-8")
    assert _outcomes(tmp_path, stored) == {"passed": 3}


@slow
def test_the_tests_of_a_broken_app(stored: dict[str, str], tmp_path: Path) -> None:
    """They find an `on_turn` that stores nothing: a late answer then shows nowhere."""
    test_the_tests_of_an_app("starlette", stored, tmp_path)
    turns = tmp_path / "turns.py"
    broken = re.sub(r"( +)data = turn\.data.*\n", r"\1return\n", turns.read_text(), count=1)
    turns.write_text(broken)
    assert _outcomes(tmp_path, stored) == {"passed": 2, "failed": 1}


def _outcomes(folder: Path, stored: Mapping[str, str]) -> dict[str, int]:
    # No variable of a host: these tests need none.
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "."],
        cwd=folder,
        env={**os.environ, **stored, "PYTHONPATH": str(folder)},
        check=False,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = {
        what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|errors?)", run.stdout)
    }
    return found or {json.dumps(run.stdout + run.stderr): 0}
