"""One suite over both backends: what `run_turn`, `health` and `reset_session` promise."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, ClassVar
from uuid import UUID, uuid4

import anyio
import httpx2
import pytest
from support.client_hosts import ANSWER, HALF, Drops, Fails, Sidecar, children, sockets, until

import paliadin_client
from paliadin_client import (
    AnswerUnusable,
    BackendTimeout,
    BadRequest,
    BootstrapFailed,
    ConnectionLost,
    Exchange,
    Inbox,
    Paliadin,
    PaliadinError,
    ShimError,
    TurnRequest,
    TurnTimeout,
    Unreachable,
    User,
    submission,
)
from paliadin_client.backend import Reply
from paliadin_client.connection import open_hosts
from paliadin_client.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.client_hosts import AichatHost, Host, Seen

    from paliadin_client import TurnCallback

pytestmark = pytest.mark.anyio

ANNA = User("0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a11", email="anna@example.org")
BEN = User("7be1d0aa-5f0e-4c59-8a52-2d0a8a5a2a12", email="ben@example.org")
TEXT = ANSWER.partition("\n\n[paliadin-meta]")[0]


def ask(message: str = "Welche Fristen laufen morgen ab?", user: User = ANNA) -> TurnRequest:
    return TurnRequest(user=user, message=message)


async def never(_: Seen) -> str:
    await anyio.sleep_forever()
    raise AssertionError


def says(text: str) -> Callable[[Seen], Awaitable[str]]:
    async def script(_: Seen) -> str:
        return text

    return script


def raises(exc: Exception) -> Callable[[Seen], Awaitable[str]]:
    async def script(_: Seen) -> str:
        raise exc

    return script


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def clocked(host: Host, clock: Clock) -> AsyncIterator[Paliadin]:
    settings = Settings.from_environ(host.environ)
    async with open_hosts(settings.backend) as hosts:
        yield Paliadin(hosts, deadline_s=settings.deadline_s, clock=clock)


async def test_response(host: Host) -> None:
    """The backend's own response is an answer: text, trailer, turn id, and how it came."""
    request = ask()
    async with paliadin_client.connect(environ=host.environ) as paliadin:
        result = await paliadin.run_turn(request)
    assert result.text == TEXT
    assert result.trailer is not None
    assert result.trailer.used_tools == ("search",)
    assert (result.trailer.rows_seen, result.trailer.classifier_tag) == (3, "frist")
    assert (result.turn_id, result.via, result.revision) == (request.turn_id, "response", None)
    assert UUID(result.turn_id).version == 4
    assert result.timings.health_ms > 0
    assert result.timings.answer_ms > 0
    assert result.timings.completed_at is None
    [seen] = host.turns
    assert (seen.turn_id, seen.message) == (request.turn_id, "Welche Fristen laufen morgen ab?")


async def test_push_first(host: Host, inbox: Inbox, sidecar: Sidecar) -> None:
    """A push that comes before the response is the answer, and ends the submit."""
    host.script = never
    request = ask()
    async with (
        paliadin_client.connect(inbox=inbox, environ=host.environ) as paliadin,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_push_when_asked, host, sidecar)
        result = await paliadin.run_turn(request)
        await until(lambda: host.abandoned == [request.turn_id])
    assert (result.text, result.via, result.revision) == (TEXT, "push", 1)
    assert result.trailer is not None
    assert result.timings.completed_at is not None


async def _push_when_asked(host: Host, sidecar: Sidecar) -> None:
    seen = await host.next_turn()
    assert await sidecar.push(seen.turn_id) == 204


@pytest.mark.parametrize("end", [Fails("timeout"), Drops()], ids=["timeout", "dropped"])
async def test_submit_is_lost(
    host: Host, inbox: Inbox, sidecar: Sidecar, end: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A submit that times out or loses its connection does not end the wait for the push."""
    caplog.set_level(logging.INFO, "paliadin_client")
    host.script = raises(end)
    async with (
        paliadin_client.connect(inbox=inbox, environ=host.environ) as paliadin,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_push_when_lost, host, sidecar, caplog)
        result = await paliadin.run_turn(ask())
    assert result.via == "push"


async def _push_when_lost(host: Host, sidecar: Sidecar, caplog: pytest.LogCaptureFixture) -> None:
    seen = await host.next_turn()
    await until(lambda: "turn.submit_lost" in caplog.text)
    await sidecar.push(seen.turn_id)


@pytest.mark.parametrize(
    ("end", "error"),
    [(Fails("timeout"), BackendTimeout), (Drops(), ConnectionLost)],
    ids=["timeout", "dropped"],
)
async def test_lost_without_inbox(host: Host, end: Exception, error: type[PaliadinError]) -> None:
    """Without an inbox, the end of the submit is the end of the turn."""
    host.script = raises(end)
    async with paliadin_client.connect(environ=host.environ) as paliadin:
        with pytest.raises(error) as caught:
            await paliadin.run_turn(ask())
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("bad_request", BadRequest),
        ("bootstrap_failed", BootstrapFailed),
        ("shim_error", ShimError),
    ],
)
async def test_backend_fails(
    host: Host, inbox: Inbox, code: str, error: type[PaliadinError]
) -> None:
    """A failure that no push can mend ends the turn at once, and speaks only our words."""
    host.script = raises(Fails(code))
    async with paliadin_client.connect(inbox=inbox, environ=host.environ) as paliadin:
        with pytest.raises(error) as caught:
            await paliadin.run_turn(ask())
    assert caught.value.code == code
    assert "words of the" in caught.value.detail
    assert "words of the" not in str(caught.value)
    assert "words of the" not in repr(caught.value)


async def test_half_answer_then_push(host: Host, inbox: Inbox, sidecar: Sidecar) -> None:
    """A response without a whole trailer waits for the push, which is the whole file."""
    host.script = says(HALF)
    async with (
        paliadin_client.connect(inbox=inbox, environ=host.environ) as paliadin,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_push_when_asked, host, sidecar)
        result = await paliadin.run_turn(ask())
    assert (result.text, result.via) == (TEXT, "push")


@pytest.mark.parametrize("deadline", ["20", "3"], ids=["patience ends", "deadline ends"])
async def test_half_answer_alone(
    host: Host, inbox: Inbox, deadline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response without a whole trailer is the answer where no push comes in time."""
    monkeypatch.setattr(submission, "_PUSH_GRACE_S", 0.2 if deadline == "20" else 20.0)
    host.script = says(HALF)
    environ = {**host.environ, "PALIADIN_DEADLINE_S": deadline}
    async with paliadin_client.connect(inbox=inbox, environ=environ) as paliadin:
        result = await paliadin.run_turn(ask())
    assert (result.text, result.via, result.trailer) == (HALF, "response", None)


async def test_half_answer_without_inbox(host: Host) -> None:
    """Without an inbox a response without a trailer is the answer, with nothing to wait for."""
    host.script = says(HALF)
    environ = {**host.environ, "PALIADIN_DEADLINE_S": "99999"}
    async with paliadin_client.connect(environ=environ) as paliadin:
        result = await paliadin.run_turn(ask())
    assert result.text == HALF


async def test_empty_answer(host: Host) -> None:
    """An empty response is no answer."""
    host.script = says("")
    async with paliadin_client.connect(environ=host.environ) as paliadin:
        with pytest.raises(ShimError, match="no text"):
            await paliadin.run_turn(ask())


async def test_deadline(
    host: Host, inbox: Inbox, sidecar: Sidecar, stored: list[TurnCallback]
) -> None:
    """After the deadline the error names the turn, and a later answer still reaches the app."""
    host.script = never
    request = ask()
    environ = {**host.environ, "PALIADIN_DEADLINE_S": "1"}
    async with paliadin_client.connect(inbox=inbox, environ=environ) as paliadin:
        with pytest.raises(TurnTimeout) as caught:
            await paliadin.run_turn(request)
    assert caught.value.turn_id == request.turn_id
    assert str(caught.value) == f"timeout: no answer to turn {request.turn_id} within 1 s"
    assert await sidecar.push(request.turn_id) == 204
    assert [turn.data.turn_id for turn in stored] == [request.turn_id]


async def test_turn_failed(
    host: Host, inbox: Inbox, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pushed failure ends the wait at once with its reason: no response could mend it."""
    monkeypatch.setattr(submission, "_REPLY_GRACE_S", 3600.0)
    host.script = never
    environ = {**host.environ, "PALIADIN_DEADLINE_S": "3600"}
    async with (
        paliadin_client.connect(inbox=inbox, environ=environ) as paliadin,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_fail_when_asked, host, sidecar)
        with pytest.raises(AnswerUnusable) as caught:
            await paliadin.run_turn(ask())
    assert (caught.value.reason, caught.value.code) == ("too_large", "answer_unusable")


async def _fail_when_asked(host: Host, sidecar: Sidecar) -> None:
    seen = await host.next_turn()
    await sidecar.fail(seen.turn_id)


async def test_push_before_the_turn(host: Host, inbox: Inbox, sidecar: Sidecar) -> None:
    """A turn whose push is here already is answered by it, and not asked again."""
    request = ask()
    await sidecar.push(request.turn_id)
    async with paliadin_client.connect(inbox=inbox, environ=host.environ) as paliadin:
        result = await paliadin.run_turn(request)
    assert result.via == "push"
    assert host.turns == []


async def test_cancelled(host: Host, inbox: Inbox) -> None:
    """A cancelled turn leaves no task, process or socket behind, on either side."""
    host.script = never
    async with paliadin_client.connect(inbox=inbox, environ=host.environ) as paliadin:
        await paliadin.health(ANNA)
        await until(lambda: not children())
        tasks, open_sockets = len(asyncio.all_tasks()), sockets()
        turn = asyncio.ensure_future(paliadin.run_turn(ask()))
        seen = await host.next_turn()
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        assert not children()
        await until(lambda: host.abandoned == [seen.turn_id])
        await until(lambda: len(asyncio.all_tasks()) <= tasks and sockets() <= open_sockets)


async def test_one_waiter_per_turn(host: Host, inbox: Inbox) -> None:
    """A turn id that somebody waits for already is refused."""
    host.script = never
    request = ask()
    async with paliadin_client.connect(inbox=inbox, environ=host.environ) as paliadin:
        turn = asyncio.ensure_future(paliadin.run_turn(request))
        await host.next_turn()
        with pytest.raises(BadRequest, match="waited for already"):
            await paliadin.run_turn(request)
        turn.cancel()
        with suppress(asyncio.CancelledError):
            await turn


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (ask(" \n\x1b\x00"), "the message is empty"),
        (ask(user=User("-oProxyCommand=touch /tmp/x")), "the user id is no id"),
        (ask(user=User("a\nb")), "the user id is no id"),
        (TurnRequest(user=ANNA, message="?", turn_id="../../etc/passwd"), "the turn id is no id"),
        (ask(user=User("0192c5d2-0000-7000-8000-000000000000")), "version 7"),
        (ask(user=User("1ec9414c-232a-6b00-b3c8-9e6bdeced846")), "version 6"),
        (ask(user=User("0192c5d2-0000-7000-0000-000000000000")), "version 7"),
        (ask(user=User("0192c5d2-0000-7000-c000-000000000000")), "version 7"),
        (ask(user=User("1ec9414c-232a-6b00-f3c8-9e6bdeced846")), "version 6"),
        (ask(user=User("customer-1")), "no UUID"),
        (ask(None), "the message is a NoneType"),  # type: ignore[arg-type]  # as an app without types has it
        (ask(user=User(ANNA.user_id, email=b"a@b")), "address is a bytes"),  # type: ignore[arg-type]  # the same
        (
            TurnRequest(user=ANNA, message="?", conversation_id=7),  # type: ignore[arg-type]  # the same
            "the conversation id is a int",
        ),
        (ask(user=User(7)), "the user id is a int: a str or a uuid.UUID"),  # type: ignore[arg-type]  # as an app without types has it
    ],
)
async def test_refused_unsent(host: Host, request_: TurnRequest, why: str) -> None:
    """What could not be right, or would share another user's session, never leaves."""
    async with paliadin_client.connect(environ=host.environ) as paliadin:
        with pytest.raises(BadRequest, match=why):
            await paliadin.run_turn(request_)
    assert (host.checks, host.turns) == (0, [])


async def test_uuids(host: Host) -> None:
    """Ids may be UUIDs, as a database hands them out."""
    user, turn = uuid4(), uuid4()
    request = TurnRequest(user=User(user), message="?", turn_id=turn, conversation_id=turn)  # type: ignore[arg-type]  # taken, not wanted
    async with paliadin_client.connect(environ=host.environ) as paliadin:
        assert (await paliadin.run_turn(request)).turn_id == str(turn)
        await paliadin.reset_session(User(user))  # type: ignore[arg-type]  # the same


async def test_one_window_for_two(aichat: AichatHost) -> None:
    """A second user is never put into a window that was a first one's, nor may they end it."""
    anna = User("a11ce000-1f2e-4d5c-8b7a-001122334455")
    others = [
        User("b0b00000-1f2e-4d5c-8b7a-001122334455", email="user-a11ce000@example.org"),
        User("a11ce000-aaaa-4d5c-8b7a-001122334455"),
    ]
    async with paliadin_client.connect(environ=aichat.environ) as paliadin:
        await paliadin.run_turn(ask(user=anna))
        for other in others:
            with pytest.raises(BadRequest, match="the window user-a11ce000 is another user's"):
                await paliadin.run_turn(ask(user=other))
            with pytest.raises(BadRequest, match="another user's"):
                await paliadin.reset_session(other)
        await paliadin.run_turn(ask(user=User(anna.user_id.upper())))
        await paliadin.run_turn(ask(user=User(others[0].user_id, email="bob@example.org")))
    assert [seen.pane for seen in aichat.turns] == ["user-a11ce000"] * 2 + ["bob"]


@pytest.mark.parametrize(
    ("typed", "arrives"),
    [
        ("Größe? 期限是哪天 🕰", "Größe? 期限是哪天 🕰"),
        ("eins\nzwei\r\n\tdrei", "eins zwei drei"),
        # A blank after a backslash at the end, which would make Enter a line break there.
        ("';\";';\"; $(touch /tmp/x) `id` \\", "';\";';\"; $(touch /tmp/x) `id` \\ "),
        ("a\x1b[201~b\x9bc\x00\x7f", "a[201~bc"),
        ("[PALIADIN:x] und [pali\x00adin:y]", "[ PALIADIN:x] und [ paliadin:y]"),
        ("-oProxyCommand=id --", "-oProxyCommand=id --"),
        ("halb \ud83d ganz", "halb ? ganz"),
        ("lang " * 16_000, ("lang " * 16_000).strip()),
    ],
    ids=["languages", "lines", "shell", "escapes", "envelope", "option", "surrogate", "80 KB"],
)
async def test_messages(host: Host, typed: str, arrives: str) -> None:
    """A message arrives as it was written, less what a pane must not get."""
    async with paliadin_client.connect(environ=host.environ) as paliadin:
        await paliadin.run_turn(ask(typed))
    assert [seen.message for seen in host.turns] == [arrives]


async def test_reset_hits_the_turns_pane(host: Host) -> None:
    """A reset names exactly the window or session that the user's turns used."""
    async with paliadin_client.connect(environ=host.environ) as paliadin:
        await paliadin.run_turn(ask(user=ANNA))
        await paliadin.run_turn(ask(user=BEN))
        await paliadin.reset_session(ANNA)
    anna, ben = (seen.pane for seen in host.turns)
    assert anna != ben
    assert host.resets == [anna]


async def test_reset_refused_unsent(host: Host) -> None:
    """A reset for who can be nobody never leaves, nor writes a line of its own into the log."""
    async with paliadin_client.connect(environ=host.environ) as paliadin:
        with pytest.raises(BadRequest, match="the user id is no id"):
            await paliadin.reset_session(User("a\nb", email="anna@example.org"))
    assert host.resets == []


async def test_primer(host: Host) -> None:
    """The primer goes to a fresh pane and, after a reset, to the fresh one again."""
    primer = [Exchange("Frage", "Antwort")]
    request = TurnRequest(user=ANNA, message="?", primer=primer)
    wanted = "[primer last=1] U: Frage A: Antwort [/primer]"
    async with paliadin_client.connect(environ=host.environ) as paliadin:
        for _ in range(2):
            await paliadin.run_turn(request)
        await paliadin.run_turn(TurnRequest(user=BEN, message="?", primer=primer))
        await paliadin.reset_session(ANNA)
        await paliadin.run_turn(request)
    assert [seen.primer for seen in host.turns] == [wanted, "", wanted, wanted]
    assert {seen.message for seen in host.turns} == {"?"}


async def test_primer_after_a_failure(host: Host) -> None:
    """A turn that was not answered has primed nobody."""
    request = TurnRequest(user=ANNA, message="?", primer=[Exchange("Frage", "Antwort")])
    host.script = raises(Fails("shim_error"))
    async with paliadin_client.connect(environ=host.environ) as paliadin:
        with pytest.raises(ShimError):
            await paliadin.run_turn(request)
        host.script = says(ANSWER)
        await paliadin.run_turn(request)
    assert [bool(seen.primer) for seen in host.turns] == [True, True]


async def test_health_is_trusted(host: Host) -> None:
    """A health check that succeeded is trusted for 10 s, and no longer."""
    clock = Clock()
    async with clocked(host, clock) as paliadin:
        await paliadin.run_turn(ask())
        clock.now += 9.9
        await paliadin.run_turn(ask())
        assert host.checks == 1
        clock.now += 0.2
        await paliadin.run_turn(ask())
    assert host.checks == 2


async def test_failed_health_is_not_trusted(host: Host) -> None:
    """A health check that failed ends the turn before it is sent, and is never remembered."""
    host.unwell = "shim_error"
    async with clocked(host, Clock()) as paliadin:
        with pytest.raises(ShimError):
            await paliadin.run_turn(ask())
        with pytest.raises(ShimError):
            await paliadin.health()
        assert (host.checks, host.turns) == (2, [])
        host.unwell = None
        await paliadin.run_turn(ask())
    assert (host.checks, len(host.turns)) == (3, 1)


async def test_unreachable(host: Host) -> None:
    """A host that does not listen is unreachable, at once and without a word of its address."""
    environ = {**host.environ, "AICHAT_URL": "http://127.0.0.1:1", "PALIADIN_REMOTE_PORT": "1"}
    if line := environ.get("PALIADIN_KNOWN_HOSTS"):
        environ["PALIADIN_KNOWN_HOSTS"] = f"127.0.0.1 {line.partition(' ')[2]}"
    async with paliadin_client.connect(environ=environ) as paliadin:
        with pytest.raises(Unreachable) as caught:
            await paliadin.run_turn(ask())
    assert caught.value.retryable
    assert caught.value.code == "mriver_unreachable"


async def test_nothing_secret_is_logged(
    host: Host, inbox: Inbox, sidecar: Sidecar, caplog: pytest.LogCaptureFixture
) -> None:
    """No log line at any level, and no error, holds a message, an answer, a token or a secret."""
    caplog.set_level(logging.DEBUG)
    request = TurnRequest(
        user=ANNA, message="marker-message", primer=[Exchange("marker-asked", "marker-said")]
    )
    errors: list[str] = [repr(request)]
    async with paliadin_client.connect(inbox=inbox, environ=host.environ) as paliadin:
        for script in (
            says("marker-answer\n" + ANSWER),
            raises(Fails("shim_error")),
            raises(Fails("bad_request")),
        ):
            host.script = script
            try:
                errors.append(repr(await paliadin.run_turn(request)))
            except PaliadinError as exc:
                errors.append(f"{exc} {exc!r}")
        await sidecar.push(request.turn_id, "marker-answer\n" + ANSWER)
    everything = caplog.text + "".join(errors)
    assert "turn.answered" in everything
    for marker in ("marker-", "Fristen", "PRIVATE KEY", "anna@", "words of"):
        assert marker not in everything
    for secret in ("AICHAT_TOKEN", "SUPABASE_JWT_SECRET"):
        assert host.environ.get(secret, "marker-") not in everything


class NullBackend:
    """A backend that waits for an event, and answers."""

    name: ClassVar[str] = "null"
    reply_has_metadata: ClassVar[bool] = False
    health_per_pane: ClassVar[bool] = False

    def __init__(self) -> None:
        self.answer = anyio.Event()
        self.well = anyio.Event()
        self.well.set()
        self.submits = 0

    def pane(self, user: User) -> str:
        return user.user_id

    def prepare(self, request: TurnRequest, primer: str) -> Callable[[], Awaitable[Reply]]:
        return self._submit

    async def health(self, user: User | None, /) -> None:
        await self.well.wait()

    async def reset(self, user: User) -> None:
        raise NotImplementedError

    async def _submit(self) -> Reply:
        self.submits += 1
        await self.answer.wait()
        return Reply(text="response", trailer=None, whole=True)


async def test_push_during_the_health_check(inbox: Inbox, sidecar: Sidecar) -> None:
    """A push that comes before the submit makes it needless."""
    backend = NullBackend()
    backend.well = anyio.Event()
    paliadin = Paliadin(backend, inbox=inbox, deadline_s=100)
    request = ask()
    turn = asyncio.ensure_future(paliadin.run_turn(request))
    await until(lambda: request.turn_id in inbox._waiters)
    await sidecar.push(request.turn_id)
    backend.well.set()
    assert (await turn).via == "push"
    assert backend.submits == 0


async def test_push_before_the_host_fails(inbox: Inbox, sidecar: Sidecar) -> None:
    """A turn whose push is there is answered, whatever its host says meanwhile."""
    backend = NullBackend()
    paliadin = Paliadin(backend, inbox=inbox, deadline_s=100)
    request = ask()

    async def pushed(user: User | None, /) -> None:
        del user
        await sidecar.push(request.turn_id)
        raise Unreachable("it went away")

    backend.health = pushed  # type: ignore[method-assign]  # of this one
    assert (await paliadin.run_turn(request)).via == "push"


async def test_deadline_in_the_health_check() -> None:
    """A turn whose host does not say in time that it is well was never sent; the error says so."""
    backend = NullBackend()
    backend.well = anyio.Event()
    paliadin = Paliadin(backend, deadline_s=0.1)
    with pytest.raises(TurnTimeout, match="never sent, since no host had said that it is well"):
        await paliadin.run_turn(ask())


@pytest.mark.slow
async def test_ten_thousand_waiters(inbox: Inbox, sidecar: Sidecar) -> None:
    """Ten thousand waiters at once are each answered or cancelled, and leave nothing behind."""
    backend = NullBackend()
    paliadin = Paliadin(backend, inbox=inbox, deadline_s=100)
    before = len(asyncio.all_tasks())
    requests = [ask() for _ in range(10_000)]
    turns = [asyncio.ensure_future(paliadin.run_turn(request)) for request in requests]
    await until(lambda: len(inbox._waiters) == 10_000, 60)
    for turn in turns[:5000]:
        turn.cancel()
    await sidecar.push(requests[5000].turn_id)
    pushed = await turns[5000]
    backend.answer.set()
    results = await asyncio.gather(*turns, return_exceptions=True)
    assert pushed.via == "push"
    assert all(isinstance(result, asyncio.CancelledError) for result in results[:5000])
    rest = [result for result in results[5001:] if not isinstance(result, BaseException)]
    assert [result.turn_id for result in rest] == [each.turn_id for each in requests[5001:]]
    assert (inbox._waiters, inbox._early_pushes) == ({}, {})
    await until(lambda: len(asyncio.all_tasks()) == before)


@pytest.mark.slow
async def test_random_order(inbox: Inbox, secret: str) -> None:
    """Response and push in any order: one result for each turn, and its own."""
    sidecar = Sidecar("http://inbox/", secret)
    # Each push is a call of the inbox, so that it can come between any two steps of the turn.
    sidecar.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=inbox))
    backend = NullBackend()
    backend.answer.set()
    paliadin = Paliadin(backend, inbox=inbox, deadline_s=100)
    for seed in range(1000):
        request = ask()
        order = random.Random(seed)
        results: list[str] = []

        async def run(request: TurnRequest = request, results: list[str] = results) -> None:
            results.append((await paliadin.run_turn(request)).turn_id)

        async def push(request: TurnRequest = request) -> None:
            assert await sidecar.push(request.turn_id) == 204

        async with anyio.create_task_group() as tasks:
            for action in order.sample([run, push], 2):
                tasks.start_soon(action)
                for _ in range(order.randrange(5)):
                    await anyio.lowlevel.checkpoint()
        assert results == [request.turn_id]
