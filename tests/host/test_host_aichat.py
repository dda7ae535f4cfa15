"""The demo's stand-in for aichat, over HTTP and real tmux; what it refuses is shown by calls."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import anyio
import httpx2
import pytest
from demo.aichat import Backend, Persona
from demo.panes import Agent, Panes, _Pane
from support.host import BEARER, MESSAGES, PATH, prompt_of, until

from paliadin_contract.trailer import is_whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

    from support.host import Aichat, Place

    Start = Callable[..., Aichat]
    InProcess = Callable[..., httpx2.Response]

#: A token's shape, with the claims {"sub": "user-a", "jti": "caller-1"}.
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1c2VyLWEiLCJqdGkiOiJjYWxsZXItMSJ9.c2VjcmV0LXBhcnQ"


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Asks the stand-in's endpoints by a call. No tmux can be started."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def ask(
        method: str,
        path: str,
        content: bytes,
        *,
        bearer: str = f"Bearer {BEARER}",
        **how: object,
    ) -> httpx2.Response:
        options: dict[str, Any] = {"deadline_s": 1, "queue": 0, "own_ids": False, "half": False}
        options |= {"error": None, "flat": False} | how
        personas = {"paliadin": Persona(answers=str(tmp_path / "answers"))}
        panes = Panes(tmp_path / "tmux")
        backend = Backend(token=BEARER, personas=personas, panes=panes, **options)

        async def asked() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=backend.app())
            async with httpx2.AsyncClient(transport=transport, base_url="http://h") as http:
                headers = {"Authorization": bearer}
                return await http.request(method, path, content=content, headers=headers)

        return anyio.run(asked)

    return ask


def pane(place: Place, window: str = "alice") -> str:
    return f"=aichat-paliadin:{window}"


def test_a_turn_returns_the_whole_file_and_what_its_trailer_says(
    place: Place, aichat: Start
) -> None:
    """A turn blocks until its file is whole, and answers with all known names."""
    turn_id = str(uuid4())
    answer = aichat().answer("Hallo?", turn_id=turn_id, conversation_id="c-1", user_id="u-1")
    assert answer.pop("duration_ms") >= 0
    assert answer == {
        "turn_id": turn_id,
        "conversation_id": "c-1",
        "response": (place.answers / f"{turn_id}.txt").read_text(),
        "used_tools": ["demo"],
        "rows_seen": 1,
        "classifier_tag": "echo",
        "pane_spawned": True,
        "resumed": False,
    }
    assert prompt_of(answer["response"]) == "Hallo?"
    assert place.windows() == ["aichat-paliadin:alice"]


def test_ids_are_made_where_the_caller_has_none(aichat: Start) -> None:
    """A turn without ids gets a UUID of the backend's own, and a conversation."""
    answer = aichat().answer("Hallo?")
    assert str(UUID(answer["turn_id"])) == answer["turn_id"]
    assert answer["conversation_id"]


@pytest.mark.parametrize(
    "bearer",
    ["", "Bearer", "Bearer wrong", f"Basic {BEARER}", BEARER],
    ids=["none", "empty", "wrong", "basic", "bare"],
)
def test_only_the_bearer_of_the_token_is_served(in_process: InProcess, bearer: str) -> None:
    """Without the token every endpoint says auth_failed, and nothing is started."""
    for method, path in (("GET", "/chat/health"), ("POST", "/chat/reset"), ("POST", "/chat/turn")):
        response = in_process(method, path, b'{"username":"alice","message":"?"}', bearer=bearer)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "auth_failed"


def test_health_is_ok(aichat: Start) -> None:
    """A health check with the token succeeds."""
    assert aichat().http.get("/chat/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "body",
    [
        {"message": ""},
        {"message": " \n"},
        {"message": 1},
        {"message": None},
        {"message": "x", "turn_id": "../../etc/passwd"},
        {"message": "x", "turn_id": ""},
        {"message": "x", "username": ""},
        {"message": "x", "username": "#(touch /tmp/pwned)"},
        {"message": "x", "username": "a/b"},
        {"message": "x", "username": "a,b"},
        {"message": "x", "username": "a" * 65},
        {"message": "x", "jwt": ["no"]},
    ],
)
def test_a_malformed_request_is_a_bad_request(in_process: InProcess, body: dict[str, Any]) -> None:
    """A body of the wrong shape is refused before any pane is started."""
    content = json.dumps({"username": "alice", **body}).encode()
    response = in_process("POST", "/chat/turn", content)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_request"
    assert response.json()["error"]["retryable"] is False


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"message":"\xff"}'])
def test_a_body_that_is_no_json_is_a_bad_request(in_process: InProcess, content: bytes) -> None:
    """Bytes that are no JSON in UTF-8 are refused as any other shape."""
    response = in_process("POST", "/chat/turn", content)
    assert response.json()["error"]["code"] == "bad_request"


def test_an_unknown_persona_is_named_so(in_process: InProcess) -> None:
    """A persona that is not configured is persona_unknown."""
    content = b'{"username":"alice","persona":"hugo","message":"?"}'
    response = in_process("POST", "/chat/turn", content)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "persona_unknown"


def test_a_message_arrives_as_it_was_written(aichat: Start) -> None:
    """Whatever a person types arrives at the agent, less what the envelope cannot hold."""
    answer = aichat().answer("|".join(MESSAGES))
    assert prompt_of(answer["response"]) == "|".join(MESSAGES.values())


@pytest.mark.slow
def test_messages_arrive_as_they_were_written(aichat: Start) -> None:
    """The same holds for each by itself, also where it begins or ends the line."""
    standin = aichat()
    for sent, arrived in MESSAGES.items():
        assert prompt_of(standin.answer(sent)["response"]) == arrived


def test_a_message_of_200_kb_arrives(aichat: Start) -> None:
    """200 KB in one line arrive byte for byte."""
    message = "".join(f"{n}: Frist für Müller; '期限' " for n in range(6000)).strip()
    assert len(message.encode()) > 200_000
    assert prompt_of(aichat().answer(message)["response"]) == message


def test_the_primer_stands_before_the_question(aichat: Start) -> None:
    """The primer is part of the line, and cannot open a second envelope either."""
    primer = "[primer last=1] U: [PALIADIN:x] alt\n A: neu [/primer]"
    answer = aichat().answer("Und jetzt?", primer=primer)
    arrived = "[primer last=1] U: [ PALIADIN:x] alt  A: neu [/primer] Und jetzt?"
    assert prompt_of(answer["response"]) == arrived


def test_a_pane_in_copy_mode_is_typed_to(place: Place, aichat: Start) -> None:
    """Somebody scrolls in the pane: the next turn is answered all the same."""
    standin = aichat()
    standin.answer("Eins")
    place.tmux("copy-mode", "-t", pane(place))
    assert place.windows("#{pane_in_mode}") == ["1"]
    assert prompt_of(standin.answer("Zwei")["response"]) == "Zwei"


def test_a_draft_that_somebody_left_is_not_sent_along(place: Place, aichat: Start) -> None:
    """What stands in the agent's prompt is no part of the turn."""
    standin = aichat()
    standin.answer("Eins")
    place.tmux("send-keys", "-t", pane(place), "-l", "half a draft")
    until(lambda: "(12 bytes)" in place.screen(pane(place)))
    place.tmux("copy-mode", "-t", pane(place))
    assert prompt_of(standin.answer("Zwei")["response"]) == "Zwei"


def test_a_killed_agent_comes_back(place: Place, aichat: Start) -> None:
    """An agent that was killed in its pane is started again, and the answer says so."""
    standin = aichat()
    first = standin.answer("Eins")
    [pid] = place.windows("#{pane_pid}")
    os.kill(int(pid), 9)
    until(lambda: place.windows("#{pane_dead}") == ["1"])
    again = standin.answer("Zwei")
    assert [a["pane_spawned"] for a in (first, again, standin.answer("Drei"))] == [1, 1, 0]
    assert prompt_of(again["response"]) == "Zwei"
    assert place.windows() == ["aichat-paliadin:alice"]


def test_nothing_is_typed_to_a_shell(place: Place, aichat: Start) -> None:
    """A window where a shell is in the foreground gets an agent, not the question."""
    standin = aichat()
    standin.answer("Eins")
    proof = place.path / "typed"
    place.tmux("respawn-pane", "-k", "-t", pane(place), "bash", "--norc", "-i")
    until(lambda: place.windows("#{pane_current_command}") == ["bash"])
    answer = standin.answer(f"; touch {proof};")
    assert answer["pane_spawned"]
    assert prompt_of(answer["response"]) == f"; touch {proof};"
    assert not proof.exists()


async def type_to(place: Place, process: str) -> bool:
    [line] = place.windows("#{pane_id},0,#{pane_current_command}")
    agent = Agent([], process=process, prompt="", cwd="/")
    return await Panes(place.socket)._type(_Pane(*line.split(",")), agent, b"echo > typed")


def test_the_foreground_is_looked_at_in_the_moment_of_typing(place: Place) -> None:
    """An agent that exits after it was found gets nothing, and leaves nothing in tmux."""
    bash = ("bash", "--norc", "-i")
    place.tmux("-f", "/dev/null", "new-session", "-d", "-c", str(place.path), *bash)
    until(lambda: place.screen("%0").strip())
    assert not anyio.run(type_to, place, "claude")
    assert place.tmux("list-buffers") == ""
    assert "typed" not in place.screen("%0")
    assert anyio.run(type_to, place, "bash")
    until((place.path / "typed").exists)


def test_what_is_typed_comes_as_a_paste(place: Place) -> None:
    """A program that asks for brackets gets the line in them, and Enter outside."""
    shown = ("sh", "-c", r"printf '\033[?2004h'; exec cat -v")
    place.tmux("-f", "/dev/null", "new-session", "-d", *shown)
    until(lambda: place.windows("#{pane_current_command}") == ["cat"])
    assert anyio.run(type_to, place, "cat")
    until(lambda: "\n^[[200~echo > typed^[[201~\n" in place.screen("%0"))


@pytest.mark.parametrize("name", ["my work dir", 'a "name"', "it's ${HOME}; 100% #{pane_id}"])
def test_the_demo_agent_runs_wherever_the_checkout_lies(
    place: Place, aichat: Start, name: str
) -> None:
    """Tmux shows a program's path up to the first blank or quote."""
    (place.path / name).symlink_to(sys.prefix)
    assert (
        prompt_of(aichat(python=f"{place.path}/{name}/bin/python").answer("Wo?")["response"])
        == "Wo?"
    )


def test_an_agent_that_cannot_start_fails_the_turn_at_once(aichat: Start) -> None:
    """An agent that exits while it starts is bootstrap_failed, and may be tried again."""
    error = aichat(persona='agent = ["false"]').error("Hallo?")
    assert error["code"] == "bootstrap_failed"
    assert error["retryable"] is True


def test_a_restarted_stand_in_finds_its_windows(place: Place, aichat: Start) -> None:
    """The stand-in is killed; the next one talks to the same agent."""
    standin = aichat()
    standin.answer("Eins")
    before = place.windows("#{pane_pid}")
    standin.process.kill()
    standin.process.wait()
    answer = aichat().answer("Zwei")
    assert not answer["pane_spawned"]
    assert place.windows("#{pane_pid}") == before


def test_two_users_are_answered_at_once(
    place: Place, aichat: Start, pool: ThreadPoolExecutor
) -> None:
    """Each user has a window, and one does not wait for the other."""
    standin = aichat()
    names = ["alice", "bob"]
    turns = [
        pool.submit(standin.answer, f"{name}? think 1", username=name, jwt=TOKEN) for name in names
    ]
    until(lambda: len([*place.answers.glob("[!.]*.jwt")]) == 2)
    assert [prompt_of(turn.result()["response"]) for turn in turns] == [
        "alice? think 1",
        "bob? think 1",
    ]
    assert place.windows() == ["aichat-paliadin:alice", "aichat-paliadin:bob"]


@pytest.mark.slow
def test_turns_of_one_window_queue_and_the_queue_is_bounded(
    place: Place, aichat: Start, pool: ThreadPoolExecutor
) -> None:
    """One turn is open, one waits and is answered, the next learns that there is no room."""
    standin = aichat("--queue", "1")
    turns = []
    for n in (1, 2):
        turn_id = str(uuid4())
        turns.append(pool.submit(standin.answer, f"{n} think 1", turn_id=turn_id, jwt=TOKEN))
        until((place.answers / f"{turn_id}.jwt").exists)
    error = standin.error("3")
    assert (error["code"], error["retryable"]) == ("shim_error", True)
    assert standin.answer("3", username="bob")
    assert [prompt_of(turn.result()["response"]) for turn in turns] == ["1 think 1", "2 think 1"]


def test_a_window_is_locked_across_processes(place: Place, aichat: Start) -> None:
    """While another process holds a window, nothing is typed to it."""
    standin = aichat("--deadline", "1")
    with Path(f"{place.socket}.aichat-paliadin%2Falice.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert standin.error("Hallo?")["code"] == "timeout"
        assert place.windows() == []
    # Free again: the deadline is short, and an agent that starts may need more than one.
    until(lambda: standin.ask("Hallo?").status_code == 200)


@pytest.mark.slow
def test_two_stand_ins_share_a_window(
    aichat: Start, place: Place, pool: ThreadPoolExecutor
) -> None:
    """Turns of one user through two processes come one after the other, each whole."""
    messages = [f"Frage {n}" for n in range(6)]
    standins = [aichat(), aichat()] * 3
    turns = [pool.submit(s.answer, m) for s, m in zip(standins, messages, strict=True)]
    assert [prompt_of(turn.result()["response"]) for turn in turns] == messages
    assert place.windows() == ["aichat-paliadin:alice"]


def test_the_token_lies_beside_the_answer_while_the_turn_is_open(
    place: Place, aichat: Start, pool: ThreadPoolExecutor
) -> None:
    """The token file is there, 0600 in a 0700 directory, whole, and gone with the answer."""
    turn_id = str(uuid4())
    path = place.answers / f"{turn_id}.jwt"
    turn = pool.submit(aichat().answer, "Wer? think 1", turn_id=turn_id, jwt=TOKEN)
    until(path.exists)
    assert path.read_text() == TOKEN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.answers.stat().st_mode) == 0o700
    assert turn.result()["response"].startswith("user-a asked:")
    assert [file.name for file in place.answers.iterdir()] == [f"{turn_id}.txt"]
    assert stat.S_IMODE((place.answers / f"{turn_id}.txt").stat().st_mode) == 0o600


def test_the_token_is_in_no_process_no_environment_and_on_no_screen(
    place: Place, aichat: Start, pool: ThreadPoolExecutor
) -> None:
    """Neither token can be found where other users, or the agent, would see it."""
    turn = pool.submit(aichat().answer, "Wer? think 1", jwt=TOKEN)
    until(lambda: "thinking" in place.screen(pane(place)) if place.windows() else False)
    server = place.tmux("display-message", "-p", "#{pid}").strip()
    agents = place.windows("#{pane_pid}")
    seen = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    seen += [Path(f"/proc/{pid}/environ").read_bytes() for pid in (server, *agents)]
    for command in (
        ("show-environment", "-g"),
        ("show-environment", "-t", "=aichat-paliadin"),
        ("capture-pane", "-p", "-S", "-", "-t", pane(place)),
        ("list-buffers",),
        ("show-options", "-A", "-p", "-t", pane(place)),
    ):
        seen.append(place.tmux(*command).encode())
    everything = b"\n".join(seen)
    assert b"thinking" in everything
    for secret in (TOKEN, *TOKEN.split(".")[1:], BEARER):
        assert secret.encode() not in everything
    assert turn.result()


@pytest.mark.slow
def test_the_deadline_ends_the_turn_but_not_the_answer(place: Place, aichat: Start) -> None:
    """After the deadline the token is gone, and the answer comes all the same."""
    standin = aichat("--deadline", "1.5")
    standin.answer("Eins")
    turn_id = str(uuid4())
    error = standin.error("Spät think 2.5", turn_id=turn_id, jwt=TOKEN)
    assert (error["code"], error["retryable"]) == ("timeout", True)
    path = place.answers / f"{turn_id}.txt"
    assert not path.exists()
    assert not path.with_suffix(".jwt").exists()
    until(path.exists)
    assert prompt_of(path.read_text()) == "Spät think 2.5"


@pytest.mark.slow
def test_a_turn_after_a_late_one_is_answered(aichat: Start) -> None:
    """An agent that is still busy with a turn given up takes the next one after it."""
    standin = aichat("--deadline", "4")
    assert standin.error("Eins think 5")["code"] == "timeout"
    assert prompt_of(standin.answer("Zwei")["response"]) == "Zwei"


def test_the_token_goes_with_a_stand_in_that_is_stopped(
    place: Place, aichat: Start, pool: ThreadPoolExecutor
) -> None:
    """Asked to stop, it gives its open turns up and removes their tokens."""
    standin = aichat()
    turn = pool.submit(standin.ask, "Wer? think 30", jwt=TOKEN)
    until(lambda: [*place.answers.glob("[!.]*.jwt")])
    standin.process.terminate()
    standin.process.wait(timeout=20)
    assert [*place.answers.iterdir()] == []
    assert turn.exception() or turn.result().status_code == 500


@pytest.mark.slow
def test_the_token_goes_with_a_stand_in_that_is_stopped_while_tmux_is_slow(
    place: Place, aichat: Start, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a turn does not end at once, since a command of tmux is under way."""
    slow = place.path / "bin/tmux"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 3\nexec {shutil.which("tmux")} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr("support.host.PATH", f"{slow.parent}:{PATH}")
    test_the_token_goes_with_a_stand_in_that_is_stopped(place, aichat, pool)


def test_tokens_that_a_killed_stand_in_left_are_removed(place: Place, aichat: Start) -> None:
    """A token older than the deadline goes with the next turn; a younger one stays."""
    place.answers.mkdir(mode=0o700)
    old, young = (place.answers / f"{uuid4()}.jwt" for _ in range(2))
    half = place.answers / ".x7k2m9qa.jwt"  # killed before it had its name
    for path in (old, young, half):
        path.write_text(TOKEN)
    for path in (old, half):
        os.utime(path, (time.time() - 200,) * 2)
    aichat().answer("Hallo?")
    assert not old.exists()
    assert not half.exists()
    assert young.exists()


def test_a_turn_that_comes_twice_is_typed_once(place: Place, aichat: Start) -> None:
    """The same turn id again brings the same answer, from the file that is there."""
    standin = aichat()
    turn_id = str(uuid4())
    first = standin.answer("Hallo?", turn_id=turn_id)
    before = (place.answers / f"{turn_id}.txt").stat()
    assert standin.answer("Hallo?", turn_id=turn_id)["response"] == first["response"]
    standin.answer("Und jetzt?")  # were it typed again, its answer would have come before
    after = (place.answers / f"{turn_id}.txt").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_its_own_turn_ids(place: Place, aichat: Start, pool: ThreadPoolExecutor) -> None:
    """Asked to, it names the turn itself; the token, and its jti, stay the caller's."""
    turn_id = str(uuid4())
    standin = aichat("--own-ids")
    turn = pool.submit(standin.answer, "Hallo? think 1", turn_id=turn_id, jwt=TOKEN)
    # Without the dot of the name under which it is written first.
    [token] = until(lambda: [*place.answers.glob("[!.]*.jwt")])
    assert token.read_text() == TOKEN
    assert turn.result()["turn_id"] == token.stem != turn_id
    assert [file.name for file in place.answers.iterdir()] == [f"{token.stem}.txt"]


@pytest.mark.slow
def test_half_an_answer(place: Place, aichat: Start) -> None:
    """Asked to, it answers before the file is whole; else it waits for the trailer."""
    half = aichat("--half").answer("slow write think 1")
    path = place.answers / f"{half['turn_id']}.txt"
    assert half["response"]
    assert not is_whole(half["response"].encode())
    until(lambda: is_whole(path.read_bytes()))
    assert path.read_text().startswith(half["response"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert is_whole(aichat().answer("slow write think 1")["response"].encode())


@pytest.mark.slow
def test_an_answer_without_a_trailer_is_whole_when_it_rests(aichat: Start) -> None:
    """Without a trailer the answer comes too, and names nothing."""
    answer = aichat().answer("no trailer")
    assert answer["response"] == "Somebody asked:\n\n> no trailer \n"
    assert (answer["used_tools"], answer["rows_seen"], answer["classifier_tag"]) == ([], None, None)


@pytest.mark.parametrize(
    ("code", "status", "retryable"),
    [
        ("auth_failed", 401, False),
        ("bad_request", 400, False),
        ("bootstrap_failed", 503, True),
        ("mriver_unreachable", 503, True),
        ("persona_unknown", 404, False),
        ("shim_error", 502, True),
        ("timeout", 504, True),
    ],
)
def test_each_error_on_demand(
    in_process: InProcess, code: str, status: int, *, retryable: bool
) -> None:
    """Asked to, it answers with any code, under `error` or at the top level."""
    expected = {"code": code, "message": "as it was asked to", "retryable": retryable}
    for flat, body in ((False, {"error": expected}), (True, expected)):
        response = in_process("POST", "/chat/turn", b"{}", error=code, flat=flat)
        assert response.status_code == status
        assert response.json() == body


def test_an_error_by_its_option(aichat: Start) -> None:
    """The program's two options are these."""
    response = aichat("--error", "timeout", "--flat-errors").ask("Hallo?")
    assert (response.status_code, response.json()["code"]) == (504, "timeout")


def test_a_reset_ends_exactly_that_users_window(place: Place, aichat: Start) -> None:
    """Another user's window stays, also one whose name begins alike; the next turn is fresh."""
    standin = aichat()
    for name in ("al", "alice"):
        standin.answer("Hallo?", username=name)
    assert standin.post("/chat/reset", username="al").status_code == 200
    assert place.windows() == ["aichat-paliadin:alice"]
    assert standin.post("/chat/reset", username="ali").status_code == 200
    assert not standin.answer("Noch da?", username="alice")["pane_spawned"]
    assert standin.post("/chat/reset", username="alice").status_code == 200
    assert place.windows() == []
    assert standin.answer("Neu?", username="al")["pane_spawned"]
