"""The client over the real host: tmux, ssh, the demo's programs, and the sidecar's pushes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

import anyio
import pytest
from support.client_hosts import serving, until
from support.host import BEARER, Aichat, Shim, prompt_of
from support.sidecar import Sidecar

from paliadin_client import Exchange, Inbox, TurnRequest, User, connect
from paliadin_contract.callback import TurnCompleted
from paliadin_contract.trailer import Trailer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.host import Place

    from paliadin_client import TurnCallback

pytestmark = pytest.mark.anyio

ANNA, BAO = (User(str(uuid4()), email=f"{name}@example.org") for name in ("anna", "bao"))
BEFORE = [Exchange("Wer bist du?", "Paliadin.")]
PRIMER = "[primer last=1] U: Wer bist du? A: Paliadin. [/primer] "
PALIADIN = str(Path(sys.executable).with_name("paliadin"))


@dataclass
class RealHost:
    """A host with one backend, the sidecar that watches it, and the inbox that it pushes to."""

    backend: Literal["aichat", "legacy"]
    place: Place
    inbox: Inbox
    stored: list[TurnCallback]

    def start(self, worst: Literal["", "impatient", "half"] = "") -> dict[str, str]:
        """Start the backend, in tmux as it was left; what a client must know of it."""
        if self.backend == "aichat":
            flags = {"": (), "impatient": ("--own-ids", "--deadline", "2"), "half": ("--half",)}
            aichat = Aichat(self.place, *flags[worst])
            return {
                "PALIADIN_BACKEND": "aichat",
                "AICHAT_URL": aichat.url,
                "AICHAT_TOKEN": BEARER,
                "SUPABASE_JWT_SECRET": "secret-" + uuid4().hex,
            }
        # The shim answers half a file by itself, where nothing is written for 2 s.
        shim = Shim(self.place, PALIADIN_TIMEOUT_S="2" if worst == "impatient" else "60")
        return {
            "PALIADIN_BACKEND": "legacy",
            "PALIADIN_REMOTE_HOST": "127.0.0.1",
            "PALIADIN_REMOTE_PORT": shim.port,
            "PALIADIN_REMOTE_USER": "agent",
            "PALIADIN_SSH_PRIVATE_KEY": (self.place.path / "user_key").read_text(),
            "PALIADIN_KNOWN_HOSTS": (self.place.path / "known_hosts").read_text(),
        }

    def answer(self, user: User, question: str) -> str:
        """What the demo agent answers: only over aichat a token says who asks."""
        whose = user.user_id if self.backend == "aichat" else "Somebody"
        return f"{whose} asked:\n\n> {question}"

    def window(self, user: User) -> str:
        """Where the user's turns are to be typed."""
        if self.backend == "aichat":
            return f"aichat-paliadin:{(user.email or '').partition('@')[0]}"
        return f"paliad-paliadin-{user.user_id[:8]}:agent"

    def agents(self) -> dict[str, int]:
        """Process ids of the agents, by window."""
        listed = self.place.windows("#{session_name}:#{window_name}=#{pane_pid}")
        return {window: int(pid) for window, _, pid in (line.partition("=") for line in listed)}


@pytest.fixture(params=["aichat", "legacy"])
async def host(request: pytest.FixtureRequest, place: Place) -> AsyncIterator[RealHost]:
    sidecar = Sidecar(place.path, "")
    sidecar.make_roots()
    place.answers = place.path / request.param
    stored: list[TurnCallback] = []

    async def store(turn: TurnCallback) -> None:
        stored.append(turn)

    inbox = Inbox([sidecar.secret], on_turn=store)
    async with serving(inbox) as url:
        sidecar.environ["PALIADIN_CALLBACK_URL"] = url
        sidecar.start()
        try:
            yield RealHost(request.param, place, inbox, stored)
        finally:
            sidecar.close()


async def test_a_turn_is_answered_and_pushed(host: RealHost) -> None:
    """A healthy backend's own response is the answer with its trailer; a push brings the same."""
    async with connect(environ=host.start()) as paliadin:
        await paliadin.health(ANNA)
        assert host.agents() == {}
        request = TurnRequest(user=ANNA, message="Welche Fristen?")
        result = await paliadin.run_turn(request)
    assert (result.via, result.revision, result.turn_id) == ("response", None, request.turn_id)
    assert result.text == host.answer(ANNA, "Welche Fristen?")
    assert result.trailer == Trailer(used_tools=("demo",), rows_seen=1, classifier_tag="echo")
    await until(lambda: bool(host.stored))
    [push] = host.stored
    assert isinstance(push, TurnCompleted)
    assert push.data.response == (host.place.answers / f"{request.turn_id}.txt").read_text()
    assert push.data.response.startswith(result.text)


@pytest.mark.slow
async def test_two_users_at_once_get_their_own(host: RealHost) -> None:
    """Several turns of two users at once: each gets exactly what they asked, in their name."""
    answers: dict[tuple[str, str], str] = {}

    async def ask(user: User, question: str) -> None:
        result = await paliadin.run_turn(TurnRequest(user=user, message=question))
        answers[user.user_id, question] = result.text

    turns = [(user, f"{user.email}: {n}") for user in (ANNA, BAO) for n in ("eins", "zwei")]
    async with (
        connect(inbox=host.inbox, environ=host.start()) as paliadin,
        anyio.create_task_group() as tasks,
    ):
        for turn in turns:
            tasks.start_soon(ask, *turn)
    assert answers == {
        (user.user_id, question): host.answer(user, question) for user, question in turns
    }
    assert host.agents().keys() == {host.window(ANNA), host.window(BAO)}


@pytest.mark.slow
async def test_a_reset_ends_exactly_what_the_turns_used(host: RealHost) -> None:
    """A reset ends the one window or session of the user's turns; the next turn makes it anew."""
    async with connect(environ=host.start()) as paliadin:
        for user in (ANNA, BAO):
            await paliadin.run_turn(TurnRequest(user=user, message="Eins"))
        before = host.agents()
        await paliadin.reset_session(ANNA)
        assert host.agents() == {host.window(BAO): before[host.window(BAO)]}
        await paliadin.run_turn(TurnRequest(user=ANNA, message="Zwei"))
    after = host.agents()
    assert after.keys() == before.keys()
    assert after[host.window(ANNA)] != before[host.window(ANNA)]


@pytest.mark.slow
async def test_a_turn_that_outlives_its_submit_is_answered_by_the_push(host: RealHost) -> None:
    """The backend gives up, aichat under an id of its own: the push still finds who waits."""
    async with connect(environ=host.start()) as paliadin:
        await paliadin.run_turn(TurnRequest(user=ANNA, message="Das erste weckt den Agenten."))
    await until(lambda: len(host.stored) == 1)
    async with connect(inbox=host.inbox, environ=host.start("impatient")) as paliadin:
        request = TurnRequest(user=ANNA, message="Gründlich: think 3")
        result = await paliadin.run_turn(request)
    assert (result.via, result.revision) == ("push", 1)
    assert result.text == host.answer(ANNA, "Gründlich: think 3")
    await until(lambda: len(host.stored) == 2)
    over_aichat = host.backend == "aichat"
    push = host.stored[1].data
    assert push.submitted_turn_id == (request.turn_id if over_aichat else None)
    assert (push.turn_id != request.turn_id) == over_aichat


@pytest.mark.slow
async def test_half_a_file_is_not_the_answer(host: RealHost) -> None:
    """Where the backend answers half a file, the push's whole text is what is returned."""
    think = "0.5" if host.backend == "aichat" else "3"
    question = f"Fristen, slow write, think {think}: " + "x" * 500
    async with connect(inbox=host.inbox, environ=host.start("half")) as paliadin:
        result = await paliadin.run_turn(TurnRequest(user=ANNA, message=question))
    assert (result.via, result.text) == ("push", host.answer(ANNA, question))


@pytest.mark.slow
async def test_an_agent_that_was_killed_comes_back(host: RealHost) -> None:
    """The turn after the agent was killed in its pane is answered there, by a new one."""
    async with connect(inbox=host.inbox, environ=host.start()) as paliadin:
        for user in (ANNA, BAO):
            await paliadin.run_turn(TurnRequest(user=user, message="Eins"))
        before = host.agents()
        os.kill(before[host.window(ANNA)], signal.SIGKILL)
        result = await paliadin.run_turn(TurnRequest(user=ANNA, message="Zwei"))
    assert result.text == host.answer(ANNA, "Zwei")
    after = host.agents()
    assert after[host.window(ANNA)] != before[host.window(ANNA)]
    assert after[host.window(BAO)] == before[host.window(BAO)]


@pytest.mark.slow
async def test_the_primer_goes_to_an_agent_that_does_not_know(host: RealHost) -> None:
    """It is sent at first and after a reset; over aichat also once a pane was found fresh."""
    async with connect(environ=host.start()) as paliadin:

        async def arrived(question: str) -> str:
            request = TurnRequest(user=ANNA, message=question, primer=BEFORE)
            return prompt_of((await paliadin.run_turn(request)).text)

        assert await arrived("Eins") == PRIMER + "Eins"
        assert await arrived("Zwei") == "Zwei"
        await paliadin.reset_session(ANNA)
        assert await arrived("Drei") == PRIMER + "Drei"
        os.kill(host.agents()[host.window(ANNA)], signal.SIGKILL)
        # Only this turn's response can show that the agent had to be started.
        assert await arrived("Vier") == "Vier"
        assert await arrived("Fünf") == (PRIMER if host.backend == "aichat" else "") + "Fünf"


@pytest.mark.slow
async def test_the_command_asks_and_resets(host: RealHost) -> None:
    """`paliadin health`, `ask` and `reset` do on the real host what they say."""
    environ = host.start()

    async def run(*arguments: str) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(PALIADIN, *arguments), env={**os.environ, **environ}, stdout=PIPE, stderr=PIPE
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    who = ("--user-id", ANNA.user_id, "--email", ANNA.email or "")
    assert await run("health") == (0, "ok\n", "")
    answer = host.answer(ANNA, "Fristen?") + "\n"
    code, out, err = await run("ask", "Fristen?", *who)
    assert (code, out) == (0, answer), err
    assert host.agents().keys() == {host.window(ANNA)}
    assert await run("reset", *who) == (0, "reset\n", "")
    assert host.agents() == {}
