"""Which host a user's turns go to, and what happens where one cannot be reached."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import anyio
import pytest
from support.client_hosts import ANSWER, Drops, Fails, aichat_host, until
from support.pushes import push

import paliadin_client
from paliadin_client import (
    ConnectionLost,
    Exchange,
    Paliadin,
    PaliadinError,
    ShimError,
    TurnRequest,
    TurnTimeout,
    Unreachable,
    User,
    aichat,
)
from paliadin_client.connection import open_hosts
from paliadin_client.hosts import rendezvous
from paliadin_client.settings import AichatSettings, Settings
from paliadin_client.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.client_hosts import AichatHost, Seen, Sidecar

    from paliadin_client import Inbox
    from paliadin_client.store.protocol import Window

USERS = [User(str(UUID(int=n << 100, version=4))) for n in range(1, 200)]
#: Nothing listens there.
NOBODY = "http://127.0.0.1:1"


def test_rendezvous_spreads_evenly() -> None:
    """Users are spread over the hosts, and each has an order of hosts of his own."""
    hosts = tuple(f"https://h{n}.example.org" for n in range(4))
    first = Counter(rendezvous(user.user_id, hosts)[0] for user in USERS)
    assert set(first) == set(hosts)
    assert max(first.values()) < 2 * min(first.values())
    assert len({tuple(rendezvous(user.user_id, hosts)) for user in USERS}) > 20


def test_rendezvous_moves_few() -> None:
    """A host that goes moves its own users alone, and its place in the settings counts nothing."""
    hosts = tuple(f"https://h{n}.example.org" for n in range(4))
    for user in USERS:
        chosen, *_ = order = rendezvous(user.user_id, hosts)
        assert rendezvous(user.user_id.upper(), hosts[::-1]) == order
        for gone in hosts:
            left = rendezvous(user.user_id, tuple(host for host in hosts if host != gone))
            assert (left[0] == chosen) == (gone != chosen)


class Two:
    """Two hosts, of which `near` is the user's own choice."""

    def __init__(self, near: AichatHost, far: AichatHost, user: User) -> None:
        self.near, self.far, self.user = near, far, user
        self.urls = [near.environ["AICHAT_URL"], far.environ["AICHAT_URL"]]
        self.environ = {**near.environ, "AICHAT_URL": " ".join(sorted(self.urls))}

    def ask(self, message: str = "?") -> TurnRequest:
        primer = [Exchange("Frage", "Antwort")]
        return TurnRequest(user=self.user, message=message, primer=primer)

    @asynccontextmanager
    async def near_is_down(self) -> AsyncIterator[dict[str, str]]:
        """The settings with an address in the near one's place where nothing listens."""
        user = next(u for u in USERS if rendezvous(u.user_id, (NOBODY, self.urls[1]))[0] == NOBODY)
        self.user = user
        yield {**self.environ, "AICHAT_URL": f"{NOBODY}\t {self.urls[1]}"}


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(aichat_host()) for _ in range(2)]
        urls = {host.environ["AICHAT_URL"]: host for host in hosts}
        near, far = (urls[url] for url in rendezvous(USERS[0].user_id, tuple(urls)))
        yield Two(near, far, USERS[0])


@pytest.mark.anyio
async def test_a_user_stays(two: Two) -> None:
    """Each user's turns and resets go to one host, and the result says which."""
    asked: dict[str, list[User]] = {url: [] for url in two.urls}
    async with paliadin_client.connect(environ=two.environ) as paliadin:
        for user in USERS[:20] * 2:
            result = await paliadin.run_turn(TurnRequest(user=user, message="?"))
            assert result.host is not None
            asked[result.host].append(user)
        await paliadin.reset_session(two.user)
    assert all(asked.values())
    for users in asked.values():
        assert users[: len(users) // 2] == users[len(users) // 2 :]
    assert len(two.near.turns) == len(asked[two.urls[0]])
    assert (len(two.near.resets), two.far.resets) == (1, [])


@pytest.mark.anyio
async def test_the_other_host_is_asked(two: Two) -> None:
    """Where a host cannot be reached the next one is asked, with the primer, and is kept."""
    async with (
        two.near_is_down() as environ,
        paliadin_client.connect(environ=environ) as paliadin,
    ):
        for _ in range(2):
            assert (await paliadin.run_turn(two.ask())).host == two.urls[1]
        found = await paliadin.health()
    assert [bool(seen.primer) for seen in two.far.turns] == [True, False]
    assert isinstance(found[NOBODY], Unreachable)
    assert found[two.urls[1]] is None


@pytest.mark.anyio
async def test_pushed_while_the_window_moves(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that is answered before it is sent goes to nobody, so the next one has the primer."""
    async with (
        two.near_is_down() as environ,
        paliadin_client.connect(environ=environ) as paliadin,
    ):
        move = paliadin.store.move

        async def pushed(window: Window) -> None:
            await move(window)
            paliadin.waiters.offer(push(turn.turn_id).callback)

        turn = two.ask()
        with monkeypatch.context() as patch:
            patch.setattr(paliadin.store, "move", pushed)
            assert (await paliadin.run_turn(turn)).via == "push"
        await paliadin.run_turn(two.ask())
    assert [bool(seen.primer) for seen in two.far.turns] == [True]


@pytest.mark.anyio
async def test_back_again(two: Two) -> None:
    """A user who had to leave a host is not sent back when it can be reached again."""
    async with paliadin_client.connect(environ=two.environ) as paliadin:
        await paliadin.run_turn(two.ask())
        two.near.unwell = "mriver_unreachable"
        paliadin._submitter._healthy_until.clear()
        await paliadin.run_turn(two.ask())
        two.near.unwell = None
        await paliadin.run_turn(two.ask())
        await paliadin.reset_session(two.user)
    assert (len(two.near.turns), len(two.far.turns)) == (1, 2)
    assert [bool(seen.primer) for seen in (*two.near.turns, *two.far.turns)] == [True, True, False]
    assert (two.near.resets, len(two.far.resets)) == ([], 1)


@pytest.mark.anyio
async def test_a_host_that_hangs(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that takes connections and does not answer its health check is left, too."""
    monkeypatch.setattr(aichat, "_HEALTH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        urls = f"http://127.0.0.1:{silent.getsockname()[1]}", two.urls[1]
        user = next(user for user in USERS if rendezvous(user.user_id, urls)[0] == urls[0])
        environ = {**two.environ, "AICHAT_URL": " ".join(urls)}
        async with paliadin_client.connect(environ=environ) as paliadin:
            result = await paliadin.run_turn(TurnRequest(user=user, message="?"))
    assert result.host == two.urls[1]


@pytest.mark.anyio
async def test_a_host_that_is_not_named_any_more(two: Two) -> None:
    """A user whose host was taken out of the settings is at another one, and stays there."""
    store = MemoryStore()
    backend = Settings.from_environ(two.environ).backend
    assert isinstance(backend, AichatSettings)
    for urls in (two.environ["AICHAT_URL"], two.urls[1], two.environ["AICHAT_URL"]):
        async with open_hosts(replace(backend, url=urls)) as hosts:
            await Paliadin(hosts, store=store, deadline_s=20).run_turn(two.ask())
    assert (len(two.near.turns), len(two.far.turns)) == (1, 2)


@pytest.mark.anyio
async def test_unwell_is_not_unreachable(two: Two) -> None:
    """A host that says that it is unwell keeps its users: their windows are there."""
    two.near.unwell = "shim_error"
    async with paliadin_client.connect(environ=two.environ) as paliadin:
        with pytest.raises(ShimError):
            await paliadin.run_turn(two.ask())
    assert two.far.turns == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("end", "error"),
    [
        (Drops(), ConnectionLost),
        # A proxy says so too when it lost the host in the middle of the turn.
        (Fails("mriver_unreachable"), Unreachable),
        (Fails("bootstrap_failed"), PaliadinError),
    ],
    ids=["dropped", "answered for it", "failed"],
)
async def test_never_sent_twice(two: Two, end: Exception, error: type[PaliadinError]) -> None:
    """A turn that may have reached one host is not sent to another one."""

    async def fails(_: Seen) -> str:
        raise end

    two.near.script = fails
    async with paliadin_client.connect(environ=two.environ) as paliadin:
        with pytest.raises(error):
            await paliadin.run_turn(two.ask())
    assert (len(two.near.turns), two.far.turns) == (1, [])


@pytest.mark.anyio
async def test_down_after_sending(two: Two, inbox: Inbox, sidecar: Sidecar) -> None:
    """A host that goes away with a turn answers it by a push, if at all: nobody else is asked."""

    async def drops(_: Seen) -> str:
        raise Drops

    two.near.script = drops
    pushed, lost = two.ask(), two.ask()
    environ = {**two.environ, "PALIADIN_DEADLINE_S": "1"}
    async with paliadin_client.connect(inbox=inbox, environ=environ) as paliadin:
        async with anyio.create_task_group() as tasks:

            async def push() -> None:
                await sidecar.push((await two.near.next_turn()).turn_id)

            tasks.start_soon(push)
            result = await paliadin.run_turn(pushed)
        with pytest.raises(TurnTimeout) as caught:
            await paliadin.run_turn(lost)
    assert (result.via, result.host) == ("push", "mriver")
    assert isinstance(caught.value.__cause__, ConnectionLost)
    assert (len(two.near.turns), two.far.turns) == (2, [])


@pytest.mark.anyio
async def test_refused_after_the_health_check(two: Two) -> None:
    """A host that goes between its health check and the turn was sent nothing, and is left."""
    async with two.near_is_down() as environ, paliadin_client.connect(environ=environ) as paliadin:
        paliadin._submitter._healthy_until[NOBODY, ""] = float("inf")
        assert (await paliadin.run_turn(two.ask())).host == two.urls[1]
    assert [bool(seen.primer) for seen in two.far.turns] == [True]


@pytest.mark.anyio
async def test_no_host_at_all(two: Two) -> None:
    """Where no host can be reached the error says so of each, and nothing was sent."""
    urls = " ".join([NOBODY, *(f"http://127.0.0.1:{port}" for port in range(2, 6))])
    async with paliadin_client.connect(environ={**two.environ, "AICHAT_URL": urls}) as paliadin:
        with pytest.raises(Unreachable, match="none of 5 hosts") as caught:
            await paliadin.run_turn(two.ask())
        with pytest.raises(Unreachable):
            await paliadin.health()
    assert caught.value.retryable
    assert all(f"{url}: no connection" in caught.value.detail for url in urls.split())
    assert caught.value.detail.count("refused") == len(urls.split())


@pytest.mark.anyio
async def test_health_of_each(two: Two) -> None:
    """Each host's health is returned; that of all is good as long as one can take turns."""
    async with paliadin_client.connect(environ=two.environ) as paliadin:
        two.near.unwell = "shim_error"
        found = await paliadin.health()
        assert list(found) == sorted(two.urls)
        assert isinstance(found[two.urls[0]], ShimError)
        assert found[two.urls[1]] is None
        two.far.unwell = "shim_error"
        paliadin._submitter._healthy_until.clear()
        with pytest.raises(ShimError, match="none of 2 hosts"):
            await paliadin.health()
        assert all(await paliadin.health_of_hosts())


@pytest.mark.anyio
async def test_one_window_at_each_host(two: Two) -> None:
    """Users of two hosts do not wait for each other."""
    release = anyio.Event()

    async def waits(_: Seen) -> str:
        await release.wait()
        return ANSWER

    two.near.script = two.far.script = waits
    users = [
        USERS[0],
        next(u for u in USERS if rendezvous(u.user_id, tuple(two.urls))[0] == two.urls[1]),
    ]
    async with (
        paliadin_client.connect(environ=two.environ) as paliadin,
        anyio.create_task_group() as tasks,
    ):
        for user in users:
            tasks.start_soon(paliadin.run_turn, TurnRequest(user=user, message=str(uuid4())))
        await until(lambda: (len(two.near.turns), len(two.far.turns)) == (1, 1))
        release.set()


@pytest.mark.anyio
async def test_each_persona_has_windows(two: Two, tmp_path: Path) -> None:
    """A user's turns for two personas do not wait for each other, also with one store."""
    release = anyio.Event()

    async def waits(_: Seen) -> str:
        await release.wait()
        return ANSWER

    two.near.script = waits
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        for persona in ("paliadin", "other"):
            environ = {
                **two.near.environ,
                "AICHAT_PERSONA": persona,
                "PALIADIN_STORE": str(tmp_path / "store.sqlite3"),
            }
            paliadin = await stack.enter_async_context(paliadin_client.connect(environ=environ))
            tasks.start_soon(paliadin.run_turn, two.ask(persona))
        await until(lambda: len(two.near.turns) == 2)
        release.set()
