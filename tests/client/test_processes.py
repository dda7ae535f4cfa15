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
from support.client_hosts import ANSWER, Drops, Fails, Sidecar, aichat_host, until
from support.waiting import PATIENCE_S

from paliadin_client.hosts import rendezvous

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.client_hosts import AichatHost, Seen

pytestmark = pytest.mark.anyio
TESTS = Path(__file__).parents[1]
USER_ID = "0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a11"
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
        return await self.call("ask", turn_id, user_id or str(uuid4()))

    async def call(
        self, what: str, turn_id: str = "t-0", user_id: str = USER_ID, **more: object
    ) -> dict[str, Any]:
        """Call the client: `ask` is `run_turn`, and the others are named as there."""
        form = {"turn_id": turn_id, "user_id": user_id, **more}
        found: dict[str, Any] = (await self.http.post(f"{self.url}/{what}", json=form)).json()
        return found

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self.running.kill()
        self.running.wait(PATIENCE_S)

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


async def test_result_after_a_restart(apps: Apps, aichat: AichatHost) -> None:
    """A turn whose process was killed is answered in the next one, to each page that asks."""
    first, turn_id = apps.start(), str(uuid4())
    submitting = asyncio.ensure_future(first.call("submit", turn_id))
    await aichat.next_turn()
    first.kill()
    with pytest.raises(httpx2.TransportError):
        await submitting
    second, third = apps.start(), apps.start()
    pages = [asyncio.ensure_future(each.call("result", turn_id)) for each in (second, third)]
    assert "no answer" in (await third.call("result", turn_id, timeout=0))["error"]
    assert await second.sidecar.push(turn_id) == 204
    for page in pages:
        answer = await page
        assert (answer["text"], answer["via"], answer["host"]) == (TEXT, "push", "mriver")
    second.kill()
    assert (await third.call("result", turn_id, timeout=0))["text"] == TEXT
    assert len(aichat.turns) == 1


@pytest.mark.slow
async def test_response_and_failure_for_another_process(apps: Apps, aichat: AichatHost) -> None:
    """What a backend answers one process, another one has as well; of a failure not its words."""
    first, second = apps.start(), apps.start()
    for script in (answers, fails):
        aichat.script = script
        turn_id = str(uuid4())
        page = asyncio.ensure_future(second.call("result", turn_id))
        returned = await first.call("submit", turn_id)
        shown = await page
        if script is answers:
            assert (shown["text"], shown["via"]) == (TEXT, "response")
            assert shown["host"] == aichat.environ["AICHAT_URL"]
        else:
            assert returned == {"error": shown["error"], "detail": "words of the backend"}
            assert shown["detail"] == ""
        first.kill()
        assert await second.call("result", turn_id, timeout=0) == shown
        first = apps.start()


async def test_second_question_waits(apps: Apps, aichat: AichatHost) -> None:
    """A second question of the same user waits in another process for the first one's answer."""
    first, second = apps.start(), apps.start()
    turns = [str(uuid4()) for _ in range(2)]
    asked = [asyncio.ensure_future(first.call("ask", turns[0]))]
    await aichat.next_turn()
    asked.append(asyncio.ensure_future(second.call("ask", turns[1])))
    other = asyncio.ensure_future(second.ask("t-other"))
    assert (await aichat.next_turn()).turn_id == "t-other"
    assert len(aichat.turns) == 2
    assert await second.sidecar.push(turns[0]) == 204
    assert (await asked[0])["text"] == TEXT
    assert (await aichat.next_turn()).turn_id == turns[1]
    for each in (turns[1], "t-other"):
        assert await first.sidecar.push(each) == 204
    assert (await asked[1])["text"] == (await other)["text"] == TEXT


@pytest.mark.parametrize(
    "end",
    ["push", pytest.param("lease", marks=pytest.mark.slow)],  # a lease is 30 s
)
async def test_killed_with_the_window(apps: Apps, aichat: AichatHost, end: str) -> None:
    """The window of a killed process is free with its turn's push, and without one by itself."""
    apps.environ["PALIADIN_DEADLINE_S"], apps.http.timeout = "120", httpx2.Timeout(60)
    first, second = apps.start(), apps.start()
    turns = [str(uuid4()) for _ in range(2)]
    asked = asyncio.ensure_future(first.call("ask", turns[0]))
    await aichat.next_turn()
    first.kill()
    with pytest.raises(httpx2.TransportError):
        await asked
    aichat.script = answers
    queued = asyncio.ensure_future(second.call("ask", turns[1]))
    if end == "push":
        assert await second.sidecar.push(turns[0]) == 204
    assert (await queued)["text"] == TEXT
    assert [seen.turn_id for seen in aichat.turns] == turns


@pytest.mark.slow
async def test_queued_elsewhere_until_the_deadline(apps: Apps, aichat: AichatHost) -> None:
    """A question that waits for another process's turn in vain says so, to other pages, too."""
    first = apps.start()
    apps.environ["PALIADIN_DEADLINE_S"] = "1"
    second, turn_id = apps.start(), str(uuid4())
    asked = asyncio.ensure_future(first.call("ask"))
    await aichat.next_turn()
    returned = (await second.call("ask", turn_id))["error"]
    assert "never sent, since it was queued behind another turn" in returned
    assert (await first.call("result", turn_id))["error"] == returned
    asked.cancel()
    assert len(aichat.turns) == 1


@pytest.mark.slow
async def test_reset_elsewhere(apps: Apps, aichat: AichatHost) -> None:
    """A turn that hangs in one process holds up nobody after a reset by another one."""
    first, second = apps.start(), apps.start()
    asked = asyncio.ensure_future(first.call("ask"))
    await aichat.next_turn()
    assert "error" not in await second.call("reset")
    assert "its session was reset" in (await second.call("result"))["error"]
    aichat.script = answers
    assert (await second.call("ask", str(uuid4())))["text"] == TEXT
    asked.cancel()


async def test_one_host_of_two(apps: Apps, aichat: AichatHost) -> None:
    """A user who had to leave a host is at the other one in each process, and is not sent twice."""
    async with aichat_host() as other:
        hosts = {each.environ["AICHAT_URL"]: each for each in (aichat, other)}
        near, far = (hosts[url] for url in rendezvous(USER_ID, tuple(hosts)))
        near.script = far.script = answers
        apps.environ["AICHAT_URL"] = " ".join(hosts)
        first, second = apps.start(), apps.start()
        near.unwell = "mriver_unreachable"  # what a proxy before it answers
        assert (await first.call("ask", "t-1"))["host"] == far.environ["AICHAT_URL"]
        near.unwell = None
        assert (await second.call("ask", "t-2"))["host"] == far.environ["AICHAT_URL"]
        assert "error" not in await second.call("reset")
        far.script = drops
        asked = asyncio.ensure_future(first.call("ask", "t-3"))
        waiting = asyncio.ensure_future(second.call("result", "t-3"))
        await until(lambda: len(far.turns) == 3)
        assert await second.sidecar.push("t-3") == 204
        assert (await asked)["via"] == (await waiting)["via"] == "push"
    assert (near.turns, near.resets, len(far.resets)) == ([], [], 1)
    assert [bool(seen.primer) for seen in far.turns] == [True, True, False]


@pytest.mark.slow
async def test_many_questions_of_one_user(apps: Apps, aichat: AichatHost) -> None:
    """In whatever processes one user asks, the agent has one question at a time."""
    at_work, most = 0, 0

    async def counts(seen: Seen) -> str:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        try:
            await anyio.sleep(0.01)
        finally:
            at_work -= 1
        return ANSWER.replace("eine", seen.turn_id)

    aichat.script = counts
    processes = [apps.start() for _ in range(2)]
    turns = [str(uuid4()) for _ in range(20)]
    asked = {
        each: asyncio.ensure_future(processes[n % 2].call("ask", each))
        for n, each in enumerate(turns)
    }
    for each, answer in asked.items():
        assert (await answer)["text"] == TEXT.replace("eine", each)
    assert (most, len(aichat.turns)) == (1, 20)


async def answers(_: Seen) -> str:
    return ANSWER


async def fails(_: Seen) -> str:
    raise Fails("bootstrap_failed")


async def drops(_: Seen) -> str:
    raise Drops
