"""What the inbox answers, and what reaches the app and whoever waits."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Route
from support.client_hosts import Sidecar, serving, until
from support.ranks import RANKS, RankCase

from paliadin_client import ConfigError, Inbox
from paliadin_client import inbox as module
from paliadin_client.errors import StoreFailed
from paliadin_client.host_secrets import HostSecrets
from paliadin_client.store.memory import MemoryStore
from paliadin_client.store.protocol import Push, Receipt
from paliadin_contract.callback import Host, Ping, TurnCompleted, TurnFailed, encode
from paliadin_contract.errors import BadSecret
from paliadin_contract.signature import Keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator
    from pathlib import Path

    from paliadin_client import TurnCallback

pytestmark = pytest.mark.anyio

TURN = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11"
SECRET = "whsec_c2VjcmV0LW1hcmtlci1vZi0yNC1ieXRlcy0tLS0tLS0t"


def ids(stored: list[TurnCallback]) -> list[tuple[str, int]]:
    return [(turn.data.turn_id, turn.data.revision) for turn in stored]


async def test_stored(sidecar: Sidecar, stored: list[TurnCallback]) -> None:
    """Every turn reaches the app, waited for or not, failures too, and is acknowledged."""
    other = str(uuid4())
    assert await sidecar.push(TURN) == 204
    assert await sidecar.fail(other) == 204
    assert ids(stored) == [(TURN, 1), (other, 1)]
    assert isinstance(stored[1], TurnFailed)


async def test_duplicate(inbox: Inbox, sidecar: Sidecar, stored: list[TurnCallback]) -> None:
    """A push that was stored is acknowledged again, wakes its waiter, and is not stored twice."""
    assert await sidecar.push(TURN) == 204
    with inbox.expect("another"):
        assert await sidecar.push(TURN) == 204
    with inbox.expect(TURN) as waiter:
        assert waiter.push is not None
    with inbox.expect(TURN) as waiter:
        assert waiter.push is None
        assert await sidecar.push(TURN) == 204
        assert waiter.push is not None
    assert ids(stored) == [(TURN, 1)]


async def test_none_of_its_business(sidecar: Sidecar, stored: list[TurnCallback]) -> None:
    """A ping, and a type that is not known yet, are acknowledged."""
    ping = encode(Ping(timestamp=datetime.now(UTC), data=Host("mriver")))
    assert await sidecar.send("ping_1", ping) == 204
    assert await sidecar.send("later_1", b'{"type": "turn.started", "data": 7}') == 204
    assert stored == []


async def test_ping_while_the_store_is_away(
    inbox: Inbox,
    sidecar: Sidecar,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A ping asks whether a turn could be stored, and gets an error where it could not."""

    async def find(_: object) -> None:
        raise StoreFailed("the store example is away")

    ping = encode(Ping(timestamp=datetime.now(UTC), data=Host("mriver")))
    with monkeypatch.context() as patch:
        patch.setattr(inbox.store, "find", find)
        assert await sidecar.send("ping_1", ping) == 503
    assert await sidecar.send("ping_1", ping) == 204
    (record,) = caplog.records
    assert record.getMessage() == "ping.refused error=store_failed: the store example is away"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"type": "turn.completed"}',
        b'{"type": "ping", "timestamp": "now", "data": {"host": "x"}}',
        b"[" * 100_000,
    ],
)
async def test_malformed(sidecar: Sidecar, body: bytes) -> None:
    """A proven body that is no callback is 400."""
    assert await sidecar.send("odd_1", body) == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"webhook_signature": "v1,bm9uZQ=="},
        {"webhook_signature": "nonsense"},
        {"webhook_timestamp": "1"},
        {"webhook_timestamp": "soon"},
        {"webhook_id": "of another"},
    ],
)
async def test_not_proven(
    sidecar: Sidecar, stored: list[TurnCallback], headers: dict[str, str]
) -> None:
    """A signature that is wrong, of another id or stale is 401, and the body is not looked at."""
    assert await sidecar.send("ping_1", b"{", **headers) == 401
    assert stored == []


async def test_without_headers(inbox: Inbox) -> None:
    """Any visitor without a signature is 401; with another method 405."""
    async with serving(inbox) as url, httpx2.AsyncClient(trust_env=False) as http:
        assert (await http.post(url, content=b"{}")).status_code == 401
        response = await http.get(url)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_truncated(sidecar: Sidecar, secret: str, stored: list[TurnCallback]) -> None:
    """A body whose sender went away in the middle is not taken for the whole."""
    url = httpx2.URL(sidecar.url)
    body = sidecar.body(TURN)
    headers = {"host": "x", "content-length": str(len(body))}
    headers |= Keys([secret]).sign("push_1", body, datetime.now(UTC))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST / HTTP/1.1\r\n{lines}\r\n".encode() + body[:-1])
    writer.write_eof()
    with anyio.fail_after(10):
        await reader.read()
    writer.close()
    await writer.wait_closed()
    assert stored == []
    assert await sidecar.push(TURN) == 204


async def test_too_long(inbox: Inbox, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the limit is 413, before anything is verified."""
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 1000)
    assert await sidecar.send("ping_1", b"x" * 1001) == 413
    assert await sidecar.send("ping_1", b"x" * 1000) == 400


async def test_rotation(secret: str) -> None:
    """While a secret is being rotated, each of the two is taken."""
    async with serving(Inbox([SECRET, secret])) as url:
        for each in (SECRET, secret):
            sender = Sidecar(url, each)
            async with sender.http:
                assert await sender.push(TURN) == 204


def test_bad_secrets() -> None:
    """A secret that cannot be one, or none at all, is refused where the inbox is made."""
    for secrets in ([], ["secret"], ["whsec_x"]):
        with pytest.raises(BadSecret):
            Inbox(secrets)


async def test_mounted_in_starlette(secret: str, stored: list[TurnCallback]) -> None:
    """Mounted in Starlette it is reached at its own path."""

    async def store(turn: TurnCallback) -> None:
        stored.append(turn)

    inbox = Inbox([secret], on_turn=store)
    app = Starlette(routes=[Route("/paliadin/callback", inbox)])
    async with serving(app) as url:
        sender = Sidecar(f"{url}/paliadin/callback", secret)
        async with sender.http:
            assert await sender.push(TURN) == 204
    assert ids(stored) == [(TURN, 1)]


class _Wrapped:
    async def __call__(self, turn: TurnCallback) -> None:
        del turn


def test_on_turn_is_async(secret: str) -> None:
    """An `on_turn` that could never store is refused where the inbox is made, with words."""

    async def store(turn: TurnCallback, table: str = "turns") -> None:
        del turn, table

    @functools.wraps(store)
    def wrapped(turn: TurnCallback) -> Awaitable[None]:
        return store(turn)

    by_attribute = functools.update_wrapper(
        _Wrapped(), print
    )  # as libraries for plain functions do
    for good in (
        by_attribute,
        functools.partial(_Wrapped()),
        store,
        functools.partial(store, table="x"),
        _Wrapped(),
        _Wrapped().__call__,
        wrapped,
    ):
        Inbox([secret], on_turn=good)
    plains: list[Any] = [lambda turn: turn, print, _Wrapped]
    for plain in plains:
        with pytest.raises(ConfigError, match="on_turn is no async function: write `async def`"):
            Inbox([secret], on_turn=plain)

    async def nothing() -> None:
        pass

    async def two(turn: TurnCallback, connection: object) -> None:
        del turn, connection

    for odd in (nothing, two):
        with pytest.raises(ConfigError, match="on_turn cannot be called with one turn"):
            Inbox([secret], on_turn=odd)  # type: ignore[arg-type]  # as an app without types has it


async def test_lifespan(inbox: Inbox) -> None:
    """A server's lifespan is acknowledged, so that a dispatcher's other apps live."""
    moments = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[object] = []

    async def receive() -> dict[str, object]:
        return dict(next(moments))

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await inbox({"type": "lifespan"}, receive, send)  # type: ignore[arg-type]  # narrower than ASGI's
    assert sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


async def _post(
    inbox: Inbox, headers: dict[str, str], messages: list[dict[str, object]]
) -> tuple[int, int]:
    """The status, and how many messages were read, where a server has only these."""
    left = iter(messages)
    read, statuses = 0, []

    async def receive() -> dict[str, object]:
        nonlocal read
        read += 1
        for message in left:
            return message
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    pairs = [(name.encode(), text.encode()) for name, text in headers.items()]
    scope = {"type": "http", "method": "POST", "headers": pairs}
    await inbox(scope, receive, send)  # type: ignore[arg-type]  # narrower than ASGI's
    (status,) = statuses
    assert isinstance(status, int)
    return status, read


GONE: dict[str, object] = {"type": "http.disconnect"}


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "no body came: something in the app has read it before"),
        ([GONE], "no body came: something in the app has read it before"),
        ([{"type": "http.request"}], "no body came: something in the app has read it before"),
        (
            [{"type": "http.request", "body": b"x" * 7, "more_body": True}],
            "stopped, after 7 bytes of 9",
        ),
        (
            [{"type": "http.request", "body": b"x" * 7, "more_body": True}, GONE],
            "after 7 bytes of 9",
        ),
        ([{"type": "http.request", "body": b"x" * 7}], "after 7 bytes of 9"),
    ],
)
async def test_no_whole_body(
    messages: list[dict[str, object]],
    why: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A body that a middleware has read, or whose sender went away, is named as that, and ends."""
    monkeypatch.setattr(module, "_IDLE_S", 0.05)
    headers = Keys([SECRET]).sign("push_1", b"x" * 9, datetime.now(UTC)) | {"content-length": "9"}
    with anyio.fail_after(10):
        status, _ = await _post(Inbox([SECRET]), headers, messages)
    assert status == 408
    (record,) = caplog.records
    assert record.getMessage().startswith("push.no_body error=")
    assert why in record.getMessage()


async def test_too_much_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being read is bounded in all and in time, since anybody can send it."""
    monkeypatch.setattr(module, "_MAX_BUFFERED_BYTES", 8)
    inbox = Inbox([SECRET])
    headers = Keys([SECRET]).sign("push_1", b"x" * 9, datetime.now(UTC))
    chunk: dict[str, object] = {"type": "http.request", "body": b"xxx", "more_body": True}
    assert (await _post(inbox, headers, [chunk, chunk, chunk]))[0] == 503
    chunks: list[dict[str, object]] = [chunk, {"type": "http.request", "body": b"xxx"}]
    assert (await _post(inbox, headers, chunks))[0] == 401  # nothing is left of the others
    monkeypatch.setattr(module, "_BODY_S", 0.05)
    assert (await _post(inbox, headers, [chunk]))[0] == 408


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature", None])
async def test_unread(inbox: Inbox, secret: str, missing: str | None) -> None:
    """A body that its headers cannot prove, or that is too long, is not read."""
    headers = Keys([secret]).sign("push_1", b"{}", datetime.now(UTC)) | {"content-length": "2"}
    if missing is None:
        headers["content-length"] = str(33 << 20)
        assert await _post(inbox, headers, []) == (413, 0)
        headers |= {"content-length": "2", "webhook-timestamp": "1"}
    else:
        del headers[missing]
    assert await _post(inbox, headers, []) == (401, 0)


async def test_a_clock_ten_minutes_off(
    secret: str, sidecar: Sidecar, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says by how much the sender's clock is off, so that nobody looks for a wrong key."""
    body = sidecar.body(TURN)
    headers = Keys([secret]).sign("push_1", body, datetime.now(UTC) + timedelta(minutes=10))
    async with httpx2.AsyncClient(trust_env=False) as http:
        response = await http.post(sidecar.url, content=body, headers=headers)
    assert response.status_code == 401
    assert re.search(r"push\.rejected .* [+][0-9]+ s from this clock", caplog.text)


async def test_a_long_body_that_is_stale(sidecar: Sidecar) -> None:
    """Whoever sends a long body that is not read has the status all the same."""
    assert await sidecar.send("ping_1", b"x" * (8 << 20), webhook_timestamp="1") == 401
    assert await sidecar.send("ping_1", b"x" * (33 << 20)) == 413


async def test_other_scopes(inbox: Inbox) -> None:
    """It is for HTTP alone, and says so."""

    async def nothing() -> dict[str, object]:
        raise AssertionError

    with pytest.raises(RuntimeError, match="not websocket"):
        await inbox({"type": "websocket"}, nothing, lambda _: nothing())  # type: ignore[arg-type, return-value]  # never called


class App:
    """An app that stores, slowly or not at all, and counts who is storing at once."""

    def __init__(self) -> None:
        self.fails = 0
        self.error: type[BaseException] = ValueError
        self.slow: anyio.Event | None = None
        self.began: list[str] = []
        self.answer: str | None = None
        self.at_once = 0
        self.most_at_once = 0

    async def store(self, turn: TurnCallback) -> None:
        self.began.append(turn.data.turn_id)
        self.answer = turn.data.response if isinstance(turn, TurnCompleted) else self.answer
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.slow:
                await self.slow.wait()
            if self.fails:
                self.fails -= 1
                raise self.error("answer-marker in a row of the database")
        finally:
            self.at_once -= 1


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture(params=["memory", "sqlite"])
def inboxes(
    request: pytest.FixtureRequest, secret: str, app: App, tmp_path: Path
) -> tuple[Inbox, Inbox]:
    """The inbox of one process; in SQLite also another process's."""
    if request.param == "memory":
        inbox = Inbox([secret], on_turn=app.store)
        return inbox, inbox
    first, second = (
        Inbox([secret], on_turn=app.store, dedupe=tmp_path / "inbox.sqlite3") for _ in range(2)
    )
    return first, second


@pytest.fixture
async def sidecars(
    inboxes: tuple[Inbox, Inbox], secret: str
) -> AsyncIterator[tuple[Sidecar, Sidecar]]:
    async with serving(inboxes[0]) as first_url, serving(inboxes[1]) as second_url:
        first, second = Sidecar(first_url, secret), Sidecar(second_url, secret)
        async with first.http, second.http:
            yield first, second


# A CancelledError is of something that the app waits for, where nobody cancels the inbox.
@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_not_stored(
    sidecars: tuple[Sidecar, Sidecar],
    inboxes: tuple[Inbox, Inbox],
    app: App,
    error: type[BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until the app has stored it a push is 503; who waits has it; the log has no word of it."""
    app.fails, app.error = 9, error
    caplog.set_level(logging.DEBUG)
    with inboxes[0].expect(TURN) as waiter:
        statuses = [await sidecars[0].push(TURN) for _ in range(11)]
    assert statuses == [503] * 9 + [204] * 2
    assert app.began == [TURN] * 10
    assert waiter.push is not None
    assert f"{error.__name__} < {__file__}:" in caplog.text
    assert " store < " in caplog.text
    assert "answer-marker" not in caplog.text


async def test_shared(sidecars: tuple[Sidecar, Sidecar], app: App) -> None:
    """What one process stored, no other stores again."""
    assert [await each.push(TURN) for each in sidecars] == [204, 204]
    assert app.began == [TURN]


async def test_never_at_once(sidecars: tuple[Sidecar, Sidecar], app: App) -> None:
    """One turn is stored by one at a time, whoever sends it how often; others do not wait."""
    app.slow = anyio.Event()
    other = str(uuid4())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sidecars[0].push, TURN)
        await until(lambda: app.began == [TURN])
        for sidecar in sidecars:
            for _ in range(3):
                tasks.start_soon(sidecar.push, TURN)
                tasks.start_soon(_revision, sidecar, 2)
        tasks.start_soon(sidecars[1].push, other)
        await until(lambda: other in app.began)
        assert app.began == [TURN, other]
        app.slow.set()
    assert app.most_at_once == 2
    assert app.began == [TURN, other]


async def _revision(sidecar: Sidecar, revision: int) -> int:
    return await sidecar.push(TURN, f"Fassung {revision}", revision=revision)


async def test_same_id_of_two_turns(inboxes: tuple[Inbox, Inbox], app: App, secret: str) -> None:
    """Two bodies under one id are never being stored at once in one process."""
    app.slow = anyio.Event()
    sender = Sidecar("", secret)
    async with serving(inboxes[0]) as url, sender.http, anyio.create_task_group() as tasks:
        sender.url = url
        for turn_id in (TURN, str(uuid4())):
            tasks.start_soon(sender.send, "same_id", sender.body(turn_id))
        await until(lambda: len(app.began) == 1 and len(inboxes[0]._early_pushes) == 2)
        app.slow.set()
    assert app.most_at_once == 1


async def test_busy(sidecars: tuple[Sidecar, Sidecar], app: App) -> None:
    """A turn that is being stored is 503, wherever: the sidecar comes again."""
    app.slow = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sidecars[0].push, TURN)
        await until(lambda: app.began == [TURN])
        assert [await each.push(TURN) for each in sidecars] == [503, 503]
        app.slow.set()
    assert [await each.push(TURN) for each in sidecars] == [204, 204]
    assert app.began == [TURN]


async def test_lower_revision(sidecars: tuple[Sidecar, Sidecar], app: App) -> None:
    """A lower revision that comes late never replaces a higher one."""
    first, second = sidecars
    assert [await _revision(*each) for each in ((first, 2), (second, 1), (first, 3))] == [204] * 3
    assert app.began == [TURN] * 2


@pytest.mark.parametrize("case", RANKS, ids=lambda case: case.name)
async def test_ranks(sidecars: tuple[Sidecar, Sidecar], app: App, case: RankCase) -> None:
    """What reaches the app ends as the table says, though the app itself compares nothing."""
    files = {name: str(uuid4()) for name in "AB"}
    for number, push in enumerate(case.pushes):
        sidecar, turn, revision = sidecars[number % 2], files[push.file], push.revision
        if push.response is None:
            status = await sidecar.fail(turn, submitted=TURN, revision=revision)
        else:
            status = await sidecar.push(turn, push.response, submitted=TURN, revision=revision)
        assert status == 204
    assert app.answer == case.end


@pytest.mark.parametrize("case", RANKS, ids=lambda case: case.name)
async def test_ranks_of_who_waits(inbox: Inbox, sidecar: Sidecar, case: RankCase) -> None:
    """Whoever waits has what the table says, and so has who comes after the pushes."""
    files = {name: str(uuid4()) for name in "AB"}

    async def push_all() -> None:
        for push in case.pushes:
            turn, revision = files[push.file], push.revision
            if push.response is None:
                await sidecar.fail(turn, submitted=TURN, revision=revision)
            else:
                await sidecar.push(turn, push.response, submitted=TURN, revision=revision)

    with inbox.expect(TURN) as waiter:
        await push_all()
    await push_all()
    with inbox.expect(TURN) as late:
        pass
    for each in (waiter.push, late.push):
        assert each is not None
        assert (each.data.response if isinstance(each, TurnCompleted) else None) == case.end


async def test_outranked_is_logged(
    inbox: Inbox, sidecar: Sidecar, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that would rewrite another's answer is named in the log."""
    await sidecar.push(str(uuid4()), submitted=TURN)
    other = str(uuid4())
    await sidecar.push(other, "fremd", submitted=TURN, revision=2)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"push.outranked id=aichat_paliadin_{other}_2_")


async def test_held(inbox: Inbox, sidecar: Sidecar) -> None:
    """A push that came before its waiter is kept for it: once, and in its highest revision."""
    for revision in (2, 3, 1):
        await sidecar.push(TURN, f"Fassung {revision}", revision=revision)
    with inbox.expect(TURN) as waiter:
        assert waiter.push is not None
        assert waiter.push.data.revision == 3
        assert waiter.arrived.is_set()
    with inbox.expect(TURN) as waiter:
        assert waiter.push is None


async def test_held_by_submitted_id(inbox: Inbox, sidecar: Sidecar) -> None:
    """A push is kept for the id under which its turn was submitted, too."""
    await sidecar.push(str(uuid4()), submitted=TURN)
    with inbox.expect(TURN) as waiter:
        assert waiter.push is not None


async def test_submitted_id_comes_first(inbox: Inbox, sidecar: Sidecar) -> None:
    """Where a push names two ids that are waited for, the submitted one has it."""
    other = str(uuid4())
    with inbox.expect(TURN) as submitted, inbox.expect(other) as own:
        await sidecar.push(other, submitted=TURN)
        assert submitted.push is not None
        assert own.push is None


async def test_held_is_bounded(secret: str) -> None:
    """What nobody waits for is forgotten: by count, and by age."""
    now = datetime.now(UTC)
    inbox = Inbox([secret], now=lambda: now)
    async with serving(inbox) as url:
        sender = Sidecar(url, secret)
        async with sender.http:
            turns = [str(uuid4()) for _ in range(70)]
            for turn_id in turns:
                await sender.push(turn_id)
    assert len(inbox._early_pushes) == 64
    with inbox.expect(turns[5]) as waiter:
        assert waiter.push is None
    with inbox.expect(turns[6]) as waiter:
        assert waiter.push is not None
    now += timedelta(seconds=61)
    with inbox.expect(turns[7]) as waiter:
        assert waiter.push is None
    assert inbox._early_pushes == {}


async def test_database_gone(secret: str, app: App, tmp_path: Path) -> None:
    """A database that does not answer is 503: what cannot be remembered is not acknowledged."""
    path = tmp_path / "inbox.sqlite3"
    inbox = Inbox([secret], on_turn=app.store, dedupe=path)
    path.write_bytes(b"no database at all, " * 100)
    async with serving(inbox) as url:
        sender = Sidecar(url, secret)
        async with sender.http:
            assert await sender.push(TURN) == 503
    assert app.began == []


def test_unusable_database(secret: str, tmp_path: Path) -> None:
    """A database that cannot be one is refused where the inbox is made."""
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"no database at all, " * 100)
    for path in (foreign, tmp_path / "missing" / "inbox.sqlite3"):
        with pytest.raises(ConfigError, match="the inbox's database"):
            Inbox([secret], store=path)
        with pytest.raises(ConfigError, match="the dedupe database"):
            Inbox([secret], dedupe=path)


async def test_named_by_the_environment(secret: str, tmp_path: Path) -> None:
    """PALIADIN_STORE names the store where the app does not."""
    named, own = tmp_path / "named.sqlite3", tmp_path / "own.sqlite3"
    environ = {"PALIADIN_STORE": str(named)}
    Inbox([secret], store=own, environ=environ)
    Inbox([secret], dedupe=own, environ=environ)
    assert (named.exists(), own.exists()) == (False, True)
    Inbox([secret], environ=environ)
    assert named.exists()


def test_two_stores(secret: str, tmp_path: Path) -> None:
    """The two names of one argument are not given at once."""
    with pytest.raises(ConfigError, match="give one of them"):
        Inbox([secret], store=tmp_path / "one", dedupe=tmp_path / "two")
    assert list(tmp_path.iterdir()) == []


class WithConnection(MemoryStore):
    """A store that has a connection, and what happened to it."""

    has_connection = True

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0

    @asynccontextmanager
    async def receive(self, push: Push) -> AsyncIterator[Receipt]:
        async with super().receive(push) as receipt:
            yield Receipt(receipt.verdict, "connection")

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture
def with_connection(monkeypatch: pytest.MonkeyPatch) -> WithConnection:
    store = WithConnection()
    monkeypatch.setattr(module, "open_store", lambda _: store)
    return store


async def test_connection(with_connection: WithConnection, secret: str) -> None:
    """A store's transaction reaches an `on_turn` that takes two arguments, and no other."""
    calls: list[tuple[object, ...]] = []

    async def both(turn: TurnCallback, connection: object) -> None:
        calls.append((turn.data.turn_id, connection))

    async def optional(turn: TurnCallback, connection: object = None) -> None:
        calls.append((turn.data.turn_id, connection))

    async def alone(turn: TurnCallback) -> None:
        calls.append((turn.data.turn_id,))

    functions: list[Any] = [both, optional, alone]
    for number, on_turn in enumerate(functions):
        async with serving(Inbox([secret], on_turn=on_turn)) as url:
            sender = Sidecar(url, secret)
            async with sender.http:
                assert await sender.push(f"turn-{number}") == 204
    assert calls == [("turn-0", "connection"), ("turn-1", "connection"), ("turn-2",)]

    async def three(turn: TurnCallback, connection: object, more: object) -> None:
        del turn, connection, more

    with pytest.raises(ConfigError, match=r"one turn: .*, nor with a turn and a connection"):
        Inbox([secret], on_turn=three)  # type: ignore[arg-type]  # as an app without types has it


async def test_lets_go(with_connection: WithConnection, inbox: Inbox) -> None:
    """At the end of its lifespan, or when it is closed, it lets go of its store."""
    await test_lifespan(inbox)
    await inbox.aclose()
    assert with_connection.closed == 2


async def test_pruned(
    inbox: Inbox,
    sidecar: Sidecar,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Now and then the store is pruned; where that fails the push is acknowledged all the same."""
    pruned: list[str] = []

    async def prune() -> None:
        pruned.append("now")
        raise StoreFailed("the store example is away")

    monkeypatch.setattr(inbox.store, "prune", prune)
    assert await sidecar.push(TURN) == 204
    assert pruned == []
    monkeypatch.setattr(inbox._pruner, "_due", 0)
    assert [await sidecar.push(TURN) for _ in range(3)] == [204] * 3
    await until(lambda: bool(pruned))
    assert (pruned, len(caplog.records)) == (["now"], 1)


async def test_hosts(secret: str, stored: list[TurnCallback], inbox: Inbox) -> None:
    """What another host has signed is refused, and nobody who waits gets it."""
    inbox._secrets = HostSecrets([f"mriver={SECRET}", secret])
    async with serving(inbox) as url:
        ours, theirs = Sidecar(url, SECRET), Sidecar(url, secret)
        async with ours.http, theirs.http:
            with inbox.expect(TURN) as waiter:
                assert await theirs.push(TURN) == 401
                assert (waiter.push, stored, inbox._early_pushes) == (None, [], {})
                assert await ours.push(TURN) == 204
                assert waiter.push is not None
            ping = encode(Ping(timestamp=datetime.now(UTC), data=Host("mriver")))
            assert await theirs.send("ping_1", ping) == 401
            assert await ours.send("ping_1", ping) == 204
            assert await theirs.send("later_1", b'{"type": "turn.started", "data": 7}') == 204
    assert ids(stored) == [(TURN, 1)]


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
async def test_store_goes_and_comes_back(
    request: pytest.FixtureRequest, secret: str, tmp_path: Path, kind: str
) -> None:
    """While the store is away a push and a ping are 503, and when it is back they are taken."""
    folder, away = tmp_path / "there", tmp_path / "away"
    folder.mkdir()

    @contextmanager
    def renamed() -> Iterator[None]:
        folder.rename(away)
        yield
        away.rename(folder)

    name, gone = str(folder / "inbox.sqlite3"), renamed
    if kind == "postgresql":
        name = request.getfixturevalue("database_url")
        gone = request.getfixturevalue("database_server").down
    ping = encode(Ping(timestamp=datetime.now(UTC), data=Host("mriver")))
    inbox = Inbox([secret], store=name)
    async with serving(inbox) as url:
        sender = Sidecar(url, secret)
        async with sender.http:
            assert await sender.push("before") == 204
            with gone():
                assert [await sender.push(TURN), await sender.send("ping_1", ping)] == [503, 503]
            assert [await sender.push(TURN), await sender.send("ping_1", ping)] == [204, 204]
    found = await inbox.store.find([TURN, "before"])
    assert sorted(found) == [TURN, "before"]
    await inbox.aclose()


@given(body=st.binary(), headers=st.dictionaries(st.binary(max_size=20), st.binary(max_size=80)))
def test_hostile_requests(body: bytes, headers: dict[bytes, bytes]) -> None:
    """Whatever arrives unsigned is 401, and nothing is raised."""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    names = [b"webhook-id", b"webhook-timestamp", b"webhook-signature"]
    pairs = list(headers.items()) + list(zip(names, headers.values(), strict=False))
    scope = {"type": "http", "method": "POST", "headers": pairs}

    async def visit() -> None:
        await Inbox([SECRET])(scope, receive, send)  # type: ignore[arg-type]  # narrower than ASGI's

    anyio.run(visit)
    assert sent[0]["status"] == 401
