"""The demo's shim, over ssh as it is used; what it refuses is shown by calls."""

from __future__ import annotations

import base64
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from demo import shim as module
from support.host import MESSAGES, prompt_of, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.host import Place, Shim

    Start = Callable[..., Shim]
    Called = Callable[..., tuple[int, bytes, bytes]]

HALLO = base64.b64encode(b"Hallo?").decode()


@pytest.fixture
def called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Called:
    """Calls the program with a request: its exit code, what it printed, and its reason.

    No tmux can be started.
    """
    monkeypatch.setattr("sys.argv", ["shim", "--tmux", str(tmp_path / "tmux")])
    monkeypatch.setattr("os.umask", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PALIADIN_REMOTE_CWD", str(tmp_path))
    monkeypatch.setenv("PALIADIN_RESPONSE_DIR", str(tmp_path / "answers"))

    def call(*words: str) -> tuple[int, bytes, bytes]:
        monkeypatch.setenv("SSH_ORIGINAL_COMMAND", " ".join(words))
        code = module.main()
        sys.stdout.flush()
        return code, *capfdbinary.readouterr()

    return call


def test_health_prints_ok(shim: Start) -> None:
    """`health` says ok and starts nothing."""
    done = shim().run("health", "s-alice")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ok\n", b"")


def test_a_turn_prints_the_whole_file(place: Place, shim: Start) -> None:
    """`run-turn` blocks until the file is whole, prints its bytes, and leaves it.

    Whatever a person types arrives at the agent, less what the envelope cannot hold. It is typed as
    over aichat, where a test types each of these by itself.
    """
    turn_id = str(uuid4())
    printed = shim().ask("|".join(MESSAGES), turn_id=turn_id)
    assert prompt_of(printed) == "|".join(MESSAGES.values())
    assert (place.answers / f"{turn_id}.txt").read_text() == printed
    assert place.windows() == ["s-alice:agent"]


def test_the_longest_message_of_the_path_arrives(shim: Start) -> None:
    """A request of 131,050 bytes is all that SSH_ORIGINAL_COMMAND can carry to a forced command."""
    one = shim()
    room = 131_050 - len(f"run-turn s-alice {uuid4()} ")
    message = ("Frist: '期限'; " * 10_000).encode()[: room // 4 * 3 - 2].decode(errors="ignore")
    assert prompt_of(one.ask(message)) == message.strip()
    done = one.run("run-turn", "s-alice", str(uuid4()), "A" * (room + 4))
    assert done.returncode == 1
    assert b"too long" in done.stderr


def test_the_answer_comes_though_the_connection_is_lost(place: Place, shim: Start) -> None:
    """A caller that goes away costs it the reply, but neither the answer nor the server."""
    one = shim()
    turn_id = str(uuid4())
    with one.start("run-turn", "s-alice", turn_id, HALLO) as caller:
        until(lambda: "thinking" in place.screen("%0") if place.windows() else False)
        caller.kill()
    until((place.answers / f"{turn_id}.txt").exists)
    assert one.run("health", "s-alice").returncode == 0


def test_the_live_poller_deletes_what_it_read(place: Place, shim: Start) -> None:
    """Asked to, it removes the answer after it was read."""
    assert prompt_of(shim("--delete").ask("Hallo?")) == "Hallo?"
    assert [*place.answers.iterdir()] == []


@pytest.mark.parametrize(
    "words",
    [
        ("",),
        ("dance", "s"),
        ("health",),
        ("health", "a/b"),
        ("health", "s" * 65),
        ("health", "s", "more"),
        ("reset", "a:b"),
        ("run-turn", "s", str(uuid4())),
        ("run-turn", "s", "not-a-uuid", HALLO),
        ("run-turn", "s", f"../{uuid4()}", HALLO),
        ("run-turn", "s", uuid4().hex, HALLO),
        ("run-turn", "#(x)", str(uuid4()), HALLO),
        ("run-turn", "s", str(uuid4()), "no base64!"),
        ("run-turn", "s", str(uuid4()), "SGFsbG8"),
        ("run-turn", "s", str(uuid4()), base64.b64encode(b"\xff").decode()),
        ("run-turn", "s", str(uuid4()), base64.b64encode(b" \n").decode()),
        ("run-turn", "s", str(uuid4()), HALLO, ";", "touch", "/tmp/pwned"),
    ],
)
def test_a_bad_request_is_2_and_says_why(called: Called, words: tuple[str, ...]) -> None:
    """What is no request exits 2 with a reason, and starts nothing."""
    code, printed, reason = called(*words)
    assert (code, printed) == (2, b"")
    assert reason.strip()


@pytest.mark.parametrize("cwd", ["", "/nowhere/at/all"])
def test_a_missing_working_directory_is_3(
    called: Called, monkeypatch: pytest.MonkeyPatch, cwd: str
) -> None:
    """Without its working directory neither health nor a turn is possible."""
    monkeypatch.setenv("PALIADIN_REMOTE_CWD", cwd)
    assert called("health", "s")[0] == 3
    assert called("run-turn", "s", str(uuid4()), HALLO)[0] == 3


@pytest.mark.slow
def test_a_timeout_is_124_and_the_answer_still_comes(place: Place, shim: Start) -> None:
    """After PALIADIN_TIMEOUT_S it exits 124; the agent goes on and writes its answer."""
    one = shim(PALIADIN_TIMEOUT_S="1.5")
    one.ask("Eins")
    turn_id = str(uuid4())
    encoded = base64.b64encode(b"think 2.5").decode()
    assert one.run("run-turn", "s-alice", turn_id, encoded).returncode == 124
    path = place.answers / f"{turn_id}.txt"
    assert not path.exists()
    until(path.exists)
    assert prompt_of(path.read_text()) == "think 2.5"


def test_an_agent_that_cannot_start_is_1(shim: Start) -> None:
    """A failure that is not the caller's has a code of its own, and says why."""
    done = shim("--agent", "false").run("run-turn", "s", str(uuid4()), HALLO)
    assert done.returncode == 1
    assert b"exited while it started" in done.stderr


@pytest.mark.slow
def test_a_reset_kills_exactly_that_session(place: Place, shim: Start) -> None:
    """Sessions whose names begin alike, or differ by a dot, are three; one is ended."""
    one = shim()
    for session in ("s-a", "s-al", "s.al", "s_al"):
        one.ask("Hallo?", session)
    before = set(place.windows("#{pane_pid}"))
    assert len(before) == 4
    assert one.run("reset", "s_a").returncode == 0
    assert one.run("reset", "s-a").returncode == 0
    assert one.run("reset", "s.al").returncode == 0
    assert len(place.windows()) == 2
    for session in ("s-al", "s_al"):
        one.ask("Noch da?", session)
    assert before > set(place.windows("#{pane_pid}"))


def test_a_killed_agent_comes_back(place: Place, shim: Start) -> None:
    """An agent that was killed in its pane is started again by the next turn."""
    one = shim()
    one.ask("Eins")
    [pid] = place.windows("#{pane_pid}")
    os.kill(int(pid), 9)
    assert prompt_of(one.ask("Zwei")) == "Zwei"
    assert place.windows() == ["s-alice:agent"]
    assert place.windows("#{pane_pid}") != [pid]


@pytest.mark.slow
def test_turns_at_once_are_each_answered(place: Place, shim: Start) -> None:
    """Two users run at once; two turns of one user come one after the other."""
    one = shim()
    sessions = ["s-alice", "s-bob"] * 3
    messages = [f"Frage {n} von {session}" for n, session in enumerate(sessions)]
    with ThreadPoolExecutor() as pool:
        assert [prompt_of(text) for text in pool.map(one.ask, messages, sessions)] == messages
    assert place.windows() == ["s-alice:agent", "s-bob:agent"]


def test_a_stranger_is_refused(place: Place, shim: Start) -> None:
    """A key that is not in authorized_keys gets ssh's 255."""
    one = shim()
    (place.path / "user_key").unlink()
    (place.path / "host_key").rename(place.path / "user_key")
    assert one.run("health", "s").returncode == 255


def test_without_a_request_it_shows_how_to_ask(place: Place, shim: Start) -> None:
    """A login without a command is a bad request: there is no shell behind the key."""
    done = shim().run()
    assert done.returncode == 2
    assert b"run-turn SESSION" in done.stderr
    assert Path(place.answers).exists() is False
