"""The real Claude Code in the panes, without a network and with a stand-in for its model."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.host import MESSAGES, PATH, Aichat, Shim, told, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

    from support.host import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PACKAGE = "@anthropic-ai/claude-code@2.1.197"
#: Empty, or with a hint in it.
PROMPT = "^\u276f\\s*(Try .*|Press up .*)?$"
KEY = "sk-ant-" + "0" * 40
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
    """The program, installed once for all test runs."""
    lacking = [tool for tool in ("npm", "unshare", "nsenter", "ip") if not shutil.which(tool)]
    if lacking or os.geteuid():
        reason = f"needs root for a network namespace, and {lacking or 'nothing else'}"
        # Where everything is to be tested, what cannot be tested has failed.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    prefix = Path.home() / ".cache/paliadin-test" / PACKAGE.replace("/", "-")
    program = prefix / "node_modules/.bin/claude"
    if not program.exists():
        install = ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(prefix), PACKAGE]
        subprocess.run(install, check=True, timeout=240)
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


@pytest.fixture(params=["aichat", "shim"])
def ask(request: pytest.FixtureRequest, place: Place, agent: list[str]) -> Callable[..., str]:
    """Ask as a user: `ask(message, user)` is the whole answer."""
    if request.param == "aichat":
        persona = {
            "agent": agent,
            "process": "claude",
            "prompt": PROMPT,
            "cwd": f"{place.path}/work",
        }
        lines = (f"{name} = {json.dumps(value)}\n" for name, value in persona.items())
        aichat = Aichat(place, persona="".join(lines))
        return lambda message, user: str(aichat.answer(message, username=user)["response"])
    shim = Shim(
        place,
        *("--agent", shlex.join(agent), "--process", "claude", "--prompt", PROMPT),
        PALIADIN_REMOTE_CWD=f"{place.path}/work",
    )
    return lambda message, user: shim.ask(message, f"s-{user}")


def screen(place: Place, user: str) -> str:
    """What the user's agent shows."""
    return place.screen(pane(place, user)[0])


def pane(place: Place, user: str) -> tuple[str, int]:
    """The id of the user's pane, and the process in it."""
    listed = place.windows("#{session_name}/#{window_name},#{pane_id},#{pane_pid}")
    [(_, pane_id, pid)] = [line.split(",") for line in listed if user in line]
    return pane_id, int(pid)


def test_two_users_ask_the_real_agent_at_once(
    place: Place, ask: Callable[..., str], pool: ThreadPoolExecutor
) -> None:
    """Both are answered, each what they asked, by the agent's own Write tool."""
    users = ["alice", "bob"]
    for message, arrived in (MESSAGES | TRICKY).items():
        sent = [f"{user}: {message}" for user in users]
        answers = [told(answer) for answer in pool.map(ask, sent, users)]
        assert answers == [f"{user}: {arrived}" for user in users]
    for user in users:
        until(partial(re.search, r"Write\(.*/answers/", screen(place, user)))


def test_the_real_agent_is_killed_and_comes_back(place: Place, ask: Callable[..., str]) -> None:
    """A killed agent is started again by the next turn; the other user's goes on."""
    for user in ("alice", "bob"):
        ask("Eins", user)
    (_, killed), (_, other) = pane(place, "alice"), pane(place, "bob")
    os.kill(killed, signal.SIGKILL)
    assert told(ask("Zwei", "alice")) == "Zwei"
    assert told(ask("Drei", "bob")) == "Drei"
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
    assert told(ask("Zwei", "alice")) == "Zwei"


@pytest.mark.parametrize("ask", ["aichat"], indirect=True)
def test_200_kb_reach_the_real_agent(ask: Callable[..., str]) -> None:
    """A message of 200 KB arrives byte for byte."""
    message = "".join(f"{n}: Frist für Müller; '期限' " for n in range(6000)).strip()
    assert told(ask(message, "alice")) == message
