"""The real Claude Code in the panes, asked by the real client.

Without a network, and with a stand-in for its model.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from support.host import BEARER, MESSAGES, PATH, Aichat, Shim, prompt_of, until
from support.needs import lacks, need

import paliadin_client
from paliadin_client import TurnRequest, User

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

    from support.host import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PACKAGE = "@anthropic-ai/claude-code@2.1.197"
#: Empty, or with a hint in it.
PROMPT = "^\u276f\\s*(Try .*|Press up .*)?$"
USERS = {
    "alice": "a11ce000-0000-4000-8000-000000000001",
    "bob": "b0b00000-0000-4000-8000-000000000002",
}
KEY = "no-key-" + "0" * 40
#: What an interactive prompt might take for a command or a key of its own.
TRICKY = {
    "endet mit \\": "endet mit \\",
    "wer ist @wor": "wer ist @wor",
    "/help": "/help",
    "?": "?",
    "eins\\\nzwei": "eins\\ zwei",
    "lang " * 1000 + "genug": "lang " * 1000 + "genug",
}


@pytest.fixture(scope="session")
def claude() -> Path:
    """The program, installed once for all test runs, whoever of them needs it first."""
    if os.geteuid():
        lacks("needs root", "sudo make test-all")
    need("npm", "unshare", "nsenter", "ip")
    prefix = Path.home() / ".cache/paliadin-test" / PACKAGE.replace("/", "-")
    program = prefix / "node_modules/.bin/claude"
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with prefix.with_name(f"{prefix.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            new = prefix.with_name(f"{prefix.name}.new")  # one that was interrupted goes on
            install = ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(new), PACKAGE]
            subprocess.run(install, check=True, timeout=240)
            new.rename(prefix)
    return program


@pytest.fixture
def agent(place: Place, claude: Path) -> list[str]:
    """The command that runs it beside its model, in a home where it asks nothing."""
    model = Path(__file__).with_name("model.py")
    url, process = place.start("unshare", "-n", sys.executable, str(model))
    home, work = place.path / "home", place.path / "work"
    home.mkdir()
    work.mkdir()
    settings = {
        "hasCompletedOnboarding": True,
        "customApiKeyResponses": {"approved": [KEY[-20:]], "rejected": []},
        "projects": {str(work): {"hasTrustDialogAccepted": True}},
    }
    (home / ".claude.json").write_text(json.dumps(settings))
    return [
        *("nsenter", f"--net=/proc/{process.pid}/ns/net", "env", "-i"),
        *(f"PATH={PATH}", f"HOME={home}", "TERM=tmux-256color", "LANG=C.UTF-8"),
        *(f"ANTHROPIC_API_KEY={KEY}", f"ANTHROPIC_BASE_URL={url}{place.answers}"),
        *("DISABLE_AUTOUPDATER=1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"),
        *(str(claude), "--permission-mode", "acceptEdits"),
        *("--add-dir", str(place.answers), "--allowedTools", "Write"),
    ]


@pytest.fixture(params=["aichat", "legacy"])
def ask(request: pytest.FixtureRequest, place: Place, agent: list[str]) -> Callable[..., str]:
    """Ask as a user, through `run_turn`: `ask(message, user)` is the answer."""
    if request.param == "aichat":
        persona = {
            "agent": agent,
            "process": "claude",
            "prompt": PROMPT,
            "cwd": f"{place.path}/work",
        }
        lines = (f"{name} = {json.dumps(value)}\n" for name, value in persona.items())
        aichat = Aichat(place, persona="".join(lines))
        environ = {"PALIADIN_BACKEND": "aichat", "AICHAT_URL": aichat.url, "AICHAT_TOKEN": BEARER}
    else:
        shim = Shim(
            place,
            *("--agent", shlex.join(agent), "--process", "claude", "--prompt", PROMPT),
            PALIADIN_REMOTE_CWD=f"{place.path}/work",
        )
        environ = {
            "PALIADIN_REMOTE_HOST": "127.0.0.1",
            "PALIADIN_REMOTE_PORT": shim.port,
            "PALIADIN_REMOTE_USER": "agent",
            "PALIADIN_SSH_PRIVATE_KEY": (place.path / "user_key").read_text(),
            "PALIADIN_KNOWN_HOSTS": (place.path / "known_hosts").read_text(),
        }

    async def run_turn(message: str, user: str) -> str:
        async with paliadin_client.connect(environ=environ) as paliadin:
            asker = User(USERS[user], email=f"{user}@example.org")
            return (await paliadin.run_turn(TurnRequest(user=asker, message=message))).text

    return lambda message, user: anyio.run(run_turn, message, user)


def screen(place: Place, user: str) -> str:
    """What the user's agent shows."""
    return place.screen(pane(place, user)[0])


def pane(place: Place, user: str) -> tuple[str, int]:
    """The id of the user's pane, and the process in it."""
    listed = place.windows("#{session_name}/#{window_name},#{pane_id},#{pane_pid}")
    # aichat names a window for the address, the shim a session for the id.
    names = (f"/{user},", f"-{USERS[user][:8]}/")
    [(_, pane_id, pid)] = [line.split(",") for line in listed if any(n in line for n in names)]
    return pane_id, int(pid)


def test_two_users_ask_the_real_agent_at_once(
    place: Place, ask: Callable[..., str], pool: ThreadPoolExecutor
) -> None:
    """Both are answered, each what they asked, by the agent's own Write tool."""
    users = ["alice", "bob"]
    for message, arrived in (MESSAGES | TRICKY).items():
        sent = [f"{user}: {message}" for user in users]
        answers = [prompt_of(answer) for answer in pool.map(ask, sent, users)]
        assert answers == [f"{user}: {arrived}" for user in users]
    for user in users:
        until(partial(re.search, r"Write\(.*/answers/", screen(place, user)))


def test_the_real_agent_is_killed_and_comes_back(place: Place, ask: Callable[..., str]) -> None:
    """A killed agent is started again by the next turn; the other user's goes on."""
    for user in ("alice", "bob"):
        ask("Eins", user)
    (_, killed), (_, other) = pane(place, "alice"), pane(place, "bob")
    os.kill(killed, signal.SIGKILL)
    assert prompt_of(ask("Zwei", "alice")) == "Zwei"
    assert prompt_of(ask("Drei", "bob")) == "Drei"
    assert pane(place, "alice")[1] != killed
    assert pane(place, "bob")[1] == other


def test_the_real_agent_is_reached_past_a_draft_and_copy_mode(
    place: Place, ask: Callable[..., str]
) -> None:
    """What somebody left in the prompt is not sent along, and who scrolls does not stop a turn."""
    ask("Eins", "alice")
    place.tmux("send-keys", "-t", pane(place, "alice")[0], "-l", "half a draft")
    until(lambda: "half a draft" in screen(place, "alice"))
    place.tmux("copy-mode", "-t", pane(place, "alice")[0])
    assert prompt_of(ask("Zwei", "alice")) == "Zwei"


@pytest.mark.parametrize("ask", ["aichat"], indirect=True)
def test_200_kb_reach_the_real_agent(ask: Callable[..., str]) -> None:
    """A message of 200 KB arrives byte for byte."""
    message = "".join(f"{n}: Frist für Müller; '期限' " for n in range(6000)).strip()
    assert prompt_of(ask(message, "alice")) == message
