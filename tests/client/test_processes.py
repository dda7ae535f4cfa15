"""Several processes of an app with one store: who is asked, who is pushed to, and who is killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import httpx2
import psycopg
import pytest
from support.asking_app import TABLE, database
from support.client_hosts import ANSWER, Sidecar
from support.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.client_hosts import AichatHost, Seen

pytestmark = pytest.mark.anyio
TESTS = Path(__file__).parents[1]
TEXT = ANSWER.partition("\n\n[paliadin-meta]")[0]


@dataclass
class Process:
    """One process of the app."""

    url: str
    running: subprocess.Popen[bytes]
    sidecar: Sidecar
    http: httpx2.AsyncClient

    async def ask(self, turn_id: str, user_id: str = "") -> dict[str, Any]:
        """Ask, and return what the user sees."""
        form = {"turn_id": turn_id, "user_id": user_id or str(uuid4())}
        found: dict[str, Any] = (await self.http.post(f"{self.url}/ask", json=form)).json()
        return found

    async def killed(self) -> None:
        """Return when it has died by SIGKILL."""
        assert await asyncio.to_thread(self.running.wait, PATIENCE_S) == -signal.SIGKILL


@dataclass
class Apps:
    """The processes of one app."""

    folder: Path
    secret: str
    environ: dict[str, str]
    http: httpx2.AsyncClient
    stack: ExitStack = field(default_factory=ExitStack)

    def start(self, dies: str = "") -> Process:
        """Start one more; its port takes connections from now on."""
        listener = self.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        fd, port = listener.fileno(), listener.getsockname()[1]
        running = subprocess.Popen(
            [sys.executable, "-m", "support.asking_app", str(fd), str(self.folder), dies],
            cwd=TESTS,
            env={**os.environ, **self.environ, "PALIADIN_CALLBACK_SECRET": self.secret},
            pass_fds=[fd],
        )
        listener.close()  # where it is killed its port refuses
        self.stack.callback(running.wait, PATIENCE_S)
        self.stack.callback(running.kill)
        url = f"http://127.0.0.1:{port}"
        sidecar = Sidecar(f"{url}/callback", self.secret, self.http)
        return Process(url, running, sidecar, self.http)

    def stored(self) -> list[str]:
        """The turns that the app stored, as often as it did."""
        if self.exactly_once:
            with psycopg.connect(self.environ["PALIADIN_STORE"]) as connection:
                rows = connection.execute("SELECT id FROM stored").fetchall()
        else:
            with closing(database(self.folder)) as db:
                rows = db.execute("SELECT id FROM stored").fetchall()
        return sorted(turn for (turn,) in rows)

    @property
    def exactly_once(self) -> bool:
        """Whether the app stores in the transaction that also records the push."""
        return self.environ["PALIADIN_STORE"].startswith("postgresql:")


@pytest.fixture(params=["sqlite", "postgresql"])
def store_name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The store that the processes share."""
    if request.param == "sqlite":
        return str(tmp_path / "inbox.sqlite3")
    url: str = request.getfixturevalue("database_url")
    with psycopg.connect(url) as connection:
        connection.execute(TABLE)
        connection.execute("TRUNCATE stored")
    return url


@pytest.fixture
async def apps(
    tmp_path: Path, secret: str, aichat: AichatHost, store_name: str
) -> AsyncIterator[Apps]:
    async def never(_: Seen) -> str:
        await anyio.sleep_forever()
        raise AssertionError

    aichat.script = never  # every answer is a push
    environ = {**aichat.environ, "PALIADIN_STORE": store_name}
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        made = Apps(tmp_path, secret, environ, http)
        with made.stack:
            yield made


async def test_pushed_elsewhere(apps: Apps, aichat: AichatHost) -> None:
    """Who waits in one process gets what another one received, and it is stored once."""
    first, second = apps.start(), apps.start()
    turn_id = str(uuid4())
    asked = asyncio.ensure_future(first.ask(turn_id))
    await aichat.next_turn()
    assert await second.sidecar.push(turn_id) == 204
    answer = await asked
    assert (answer["text"], answer["via"], answer["pid"]) == (TEXT, "push", first.running.pid)
    assert [await each.sidecar.push(turn_id) for each in (first, second)] == [204, 204]
    assert apps.stored() == [turn_id]


@pytest.mark.parametrize("dies", ["stores", "acknowledges"])
async def test_killed(apps: Apps, aichat: AichatHost, dies: str) -> None:
    """Where the process that was pushed to is killed, who waits elsewhere has the answer.

    In the transaction that the store gives it is stored once, whatever dies when.
    """
    first, doomed = apps.start(), apps.start(dies)
    turn_id = str(uuid4())
    asked = asyncio.ensure_future(first.ask(turn_id))
    await aichat.next_turn()
    with pytest.raises(httpx2.TransportError):
        await doomed.sidecar.push(turn_id)
    await doomed.killed()
    if dies == "acknowledges":
        assert (await asked)["text"] == TEXT
    assert await first.sidecar.push(turn_id) == 204
    assert (await asked)["text"] == TEXT
    twice = dies == "stores" and not apps.exactly_once
    assert apps.stored() == [turn_id] * (1 + twice)


async def test_many(apps: Apps, aichat: AichatHost) -> None:
    """Whoever asks wherever gets the own answer, wherever it is pushed to, each stored once."""
    processes = [apps.start(), apps.start()]
    turns = [str(uuid4()) for _ in range(40)]
    chance = random.Random(1)
    asked = [asyncio.ensure_future(chance.choice(processes).ask(each)) for each in turns]
    for _ in turns:
        seen = await aichat.next_turn()
        for process in chance.choices(processes, k=2):
            assert await process.sidecar.push(seen.turn_id, f"to {seen.turn_id}") in (204, 503)
    answers = await asyncio.gather(*asked)
    assert [each["text"] for each in answers] == [f"to {turn_id}" for turn_id in turns]
    assert apps.stored() == sorted(turns)
