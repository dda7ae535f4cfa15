"""What an app's tests are promised: a host that does as asked, and the real client before it."""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio
import pytest
from support.client_hosts import ANSWER, Sidecar, serving

from paliadin_client import (
    AnswerUnusable,
    BackendTimeout,
    BootstrapFailed,
    Inbox,
    TurnRequest,
    TurnTimeout,
    Unreachable,
    User,
    connect,
    split,
)
from paliadin_client.testing import FakeHost

if TYPE_CHECKING:
    from pathlib import Path

    from paliadin_client import TurnCallback

pytestmark = pytest.mark.anyio

ANNA = User("0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a11", email="anna@example.org")


@pytest.fixture
def fake() -> FakeHost:
    return FakeHost()


@pytest.fixture
def inbox(fake: FakeHost, stored: list[TurnCallback]) -> Inbox:
    async def on_turn(turn: TurnCallback) -> None:
        # As long as a database takes, and longer than a response is waited for after its push.
        await anyio.sleep(0.3)
        stored.append(turn)

    return Inbox([fake.secret], on_turn=on_turn)


def ask(message: str = "Welche Fristen laufen ab?") -> TurnRequest:
    return TurnRequest(user=ANNA, message=message)


async def test_answers(fake: FakeHost, inbox: Inbox, stored: list[TurnCallback]) -> None:
    """The answer is pushed to the inbox, and stored by the app when `run_turn` returns."""
    fake.answers(ANSWER)
    request = ask()
    async with fake.connect(inbox=inbox) as paliadin:
        result = await paliadin.run_turn(request)
    assert (result.text, result.via, result.revision) == (split(ANSWER)[0], "push", 1)
    assert result.trailer == split(ANSWER)[1]
    assert [turn.data.turn_id for turn in stored] == [request.turn_id]
    assert fake.turns == [request]


async def test_before_it_is_told(fake: FakeHost) -> None:
    """A host that was asked for nothing answers each question with its own words."""
    async with fake.connect() as paliadin:
        results = [await paliadin.run_turn(ask(each)) for each in ("Eins?", "Zwei?")]
    assert [result.text for result in results] == ["The answer to: Eins?", "The answer to: Zwei?"]
    assert {result.via for result in results} == {"response"}


async def test_responds_alone(fake: FakeHost, inbox: Inbox, stored: list[TurnCallback]) -> None:
    """A response without a push does not reach the app's `on_turn`."""
    fake.answers(lambda request: request.message.upper(), pushed=False)
    async with fake.connect(inbox=inbox) as paliadin:
        result = await paliadin.run_turn(ask("ja?"))
    assert (result.text, result.via, stored) == ("JA?", "response", [])


async def test_fails(fake: FakeHost, inbox: Inbox) -> None:
    """The backend's failure is raised as it was given, and the next turn is answered again."""
    error = BootstrapFailed("no tmux")
    fake.fails(error)
    async with fake.connect(inbox=inbox) as paliadin:
        with pytest.raises(BootstrapFailed) as raised:
            await paliadin.run_turn(ask())
        fake.answers("ja")
        assert (await paliadin.run_turn(ask())).text == "ja"
    assert raised.value is error


async def test_fails_by_push(fake: FakeHost, inbox: Inbox, stored: list[TurnCallback]) -> None:
    """A file that cannot become an answer is stored by the app, and ends the wait."""
    fake.fails_by_push("empty")
    async with fake.connect(inbox=inbox) as paliadin:
        with pytest.raises(AnswerUnusable) as raised:
            await paliadin.run_turn(ask())
    assert raised.value.reason == "empty"
    assert [getattr(turn.data, "reason", None) for turn in stored] == ["empty"]


async def test_times_out(fake: FakeHost, inbox: Inbox, stored: list[TurnCallback]) -> None:
    """That the deadline passed costs a test no time, and a late answer reaches the app."""
    fake.times_out()
    request = ask()
    async with fake.connect(inbox=inbox) as paliadin:
        with pytest.raises(TurnTimeout):
            await paliadin.run_turn(request)
        assert await fake.push(fake.completed(request.turn_id, "spät")) == 204
    assert [turn.data.turn_id for turn in stored] == [request.turn_id]


async def test_the_deadline(inbox: Inbox) -> None:
    """A turn that stays open is waited for until the real deadline."""
    fake = FakeHost(deadline_s=0.01)
    fake.gives_up()
    async with fake.connect(inbox=inbox) as paliadin:
        with pytest.raises(TurnTimeout):
            await paliadin.run_turn(ask())


async def test_gives_up_without_an_inbox(fake: FakeHost) -> None:
    """Where nothing can be pushed, that the backend gave up is the end."""
    fake.gives_up()
    async with fake.connect() as paliadin:
        with pytest.raises(BackendTimeout):
            await paliadin.run_turn(ask())


async def test_pushes_later(fake: FakeHost, inbox: Inbox, stored: list[TurnCallback]) -> None:
    """What the test pushes answers a turn that is open, corrects it, and may be of another app."""
    fake.gives_up()
    request = ask()
    async with fake.connect(inbox=inbox) as paliadin, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(paliadin.run_turn(request))
        named = fake.completed("f1", "eins", submitted_turn_id=request.turn_id)
        assert await fake.push(named) == 204
        assert (await waiting).text == "eins"
        later = fake.completed("f1", "zwei", revision=2, submitted_turn_id=request.turn_id)
        assert await fake.push(later) == 204
        assert await fake.push(later) == 204
        assert await fake.push(fake.failed("of-another-app", "untrusted")) == 204
    assert [(turn.data.turn_id, turn.data.revision) for turn in stored] == [
        *(("f1", 1), ("f1", 2), ("of-another-app", 1))
    ]


async def test_posted_to_the_route(fake: FakeHost, inbox: Inbox) -> None:
    """A test client posts the same push to the app's own route."""
    push = fake.completed("t1", "eins")
    async with serving(inbox) as url, Sidecar(url, fake.secret).http as http:
        sent = await http.post(url, content=push.content, headers=push.headers)
        tampered = await http.post(url, content=push.content + b" ", headers=push.headers)
    assert (sent.status_code, tampered.status_code) == (204, 401)
    assert "eins" not in repr(push)


async def test_down(fake: FakeHost) -> None:
    """A host that is down takes no turns, also where it was well just before."""
    async with fake.connect() as paliadin:
        await paliadin.run_turn(ask())
        fake.down = Unreachable("refused")
        with pytest.raises(Unreachable):
            await paliadin.run_turn(ask())
        fake.down = None
        await paliadin.run_turn(ask())
    assert len(fake.turns) == 2
    fake.down = Unreachable("refused")
    async with fake.connect() as paliadin:
        with pytest.raises(Unreachable):
            await paliadin.health()


async def test_reset(fake: FakeHost) -> None:
    """A session that is ended is seen."""
    async with fake.connect() as paliadin:
        await paliadin.reset_session(ANNA)
    assert fake.resets == [ANNA]


async def test_bound_to_its_host(fake: FakeHost) -> None:
    """An inbox with a secret for each host takes its pushes under its name."""
    async with fake.connect(inbox=Inbox([f"memory={fake.secret}"])) as paliadin:
        result = await paliadin.run_turn(ask())
    assert (result.via, result.host) == ("push", "memory")


async def test_an_inbox_of_another_secret(fake: FakeHost) -> None:
    """An inbox that refuses the push fails the test at once, and says what it lacks."""
    async with fake.connect(inbox=Inbox([FakeHost().secret])) as paliadin:
        with pytest.raises(AssertionError, match="401: its secrets lack that of the FakeHost"):
            await paliadin.run_turn(ask())


async def test_an_app_that_cannot_store(fake: FakeHost) -> None:
    """An `on_turn` that raises fails the test, and not some turns later."""

    async def on_turn(_: TurnCallback) -> None:
        raise ValueError

    async with fake.connect(inbox=Inbox([fake.secret], on_turn=on_turn)) as paliadin:
        with pytest.raises(AssertionError, match=r"503 \(not stored\): its log says why"):
            await paliadin.run_turn(ask())


async def test_pushed_to_another_process(
    fake: FakeHost, inbox: Inbox, stored: list[TurnCallback]
) -> None:
    """A push may come to another inbox than the one that waits."""
    other = Inbox([fake.secret])
    async with fake.connect(inbox=inbox), fake.connect(inbox=other):
        assert await fake.push(fake.completed("t1", "eins"), inbox=inbox) == 204
        assert await fake.push(fake.completed("t2", "zwei")) == 204
    assert [turn.data.turn_id for turn in stored] == ["t1"]


async def test_submit_and_result(fake: FakeHost, inbox: Inbox) -> None:
    """A turn that is open is answered for whoever asks for its result, and a late one too."""
    fake.gives_up()
    async with fake.connect(inbox=inbox) as paliadin:
        request = ask()
        await paliadin.submit(request)
        with pytest.raises(TurnTimeout):
            await paliadin.result(request.turn_id, timeout=0)
        assert await fake.push(fake.completed(request.turn_id, "eins")) == 204
        assert (await paliadin.result(request.turn_id)).text == "eins"
        fake.times_out()
        late = ask()
        with pytest.raises(TurnTimeout):
            await paliadin.submit(late)
        with pytest.raises(TurnTimeout):
            await paliadin.result(late.turn_id)
        assert await fake.push(fake.completed(late.turn_id, "spät")) == 204
        assert (await paliadin.result(late.turn_id)).text == "spät"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_two_processes(
    kind: str, fake: FakeHost, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two apps with one store are as two processes: what comes to one is had at the other."""
    store = str(tmp_path / "store.sqlite3")
    if kind == "postgresql":
        store = request.getfixturevalue("database_url")
    one, two = (Inbox([fake.secret], store=store) for _ in range(2))
    environ = {"PALIADIN_STORE": store}
    fake.gives_up()
    async with (
        fake.connect(inbox=one) as asking,
        fake.connect(inbox=two),
        fake.connect(environ=environ) as reloaded,
        asyncio.TaskGroup() as tasks,
    ):
        turn = ask()
        waiting = tasks.create_task(asking.run_turn(turn))
        assert await fake.push(fake.completed(turn.turn_id, "eins"), inbox=two) == 204
        assert (await waiting).text == "eins"
        assert (await reloaded.result(turn.turn_id)).text == "eins"


async def test_nothing_to_push_to(fake: FakeHost) -> None:
    """A push without an inbox is a mistake of the test."""
    with pytest.raises(RuntimeError, match="no inbox"):
        await fake.push(fake.completed("t1", "eins"))


async def test_stands_in_for_connect() -> None:
    """It takes what `connect` takes."""
    ours, theirs = (inspect.signature(each).parameters for each in (FakeHost().connect, connect))
    assert list(ours) == list(theirs)


async def test_each_has_its_own_secret() -> None:
    """No secret stands in the code, and a signature is good for five minutes."""
    hosts = [FakeHost() for _ in range(2)]
    assert hosts[0].secret != hosts[1].secret
    push = hosts[0].completed("t1", "eins")
    age = datetime.now(UTC).timestamp() - float(push.headers["webhook-timestamp"])
    assert 0 <= age < 300
