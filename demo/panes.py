"""Runs one turn in a tmux pane: finds or starts the agent, types the question, reads the answer."""

from __future__ import annotations

import fcntl
import os
import re
import sys
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import anyio

from paliadin_contract.trailer import TAIL_BYTES, is_whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


#: Seconds in which an agent must be ready: its skills and tools may take more than a minute.
_BOOT_S = 90.0
#: How often, in seconds, a file or a pane is looked at.
_TICK_S = 0.05
#: An answer without a trailer has ended when it has not changed for so many seconds.
_QUIET_S = 2.0
#: Seconds in which what was typed must be seen. An agent that is busy shows it late or never, and
#: Enter then waits behind it in the agent's input.
_SHOWN_S = 2.0
#: How often Enter is pressed before the turn is given up.
_ENTERS = 4
#: The variables that tmux and so every agent gets of our environment. No token is among them.
_ENVIRONMENT = {
    name: os.environ[name]
    for name in ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TMPDIR", "USER")
    if name in os.environ
}
_LINE_BREAKS = re.compile("\r\n|[\t\n\v\f\r\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


class PaneError(Exception):
    """tmux refused. Its text is tmux's own."""


class AgentNotReady(PaneError):
    """The agent exited while it started, or did not come to its prompt in time."""


class Busy(PaneError):
    """A turn is open in this window, and enough others wait for it."""


class Agent(NamedTuple):
    """What runs in a pane."""

    command: list[str]
    """Arguments of `env`, so that no shell is beneath it when it exits."""
    process: str
    """The name that tmux shows while it is in the foreground."""
    prompt: str
    """A regular expression that its screen matches while its prompt is there and empty."""
    cwd: str


def agent(command: list[str], process: str, prompt: str, answers: Path, cwd: str) -> Agent:
    """An agent, or the demo's own where there is no command."""
    if not command:
        python, script = Path(sys.executable), Path(__file__).with_name("agent.py")
        # tmux shows a program's path up to the first blank or quote: this one has neither.
        process = f"./{python.name}"
        command = [f"--chdir={python.parent}", process, str(script), str(answers)]
        prompt = "^demo agent>$"
    return Agent(command, process or Path(command[0]).name, prompt, str(Path(cwd).absolute()))


def envelope(turn_id: str, question: str, primer: str = "") -> bytes:
    """The one line to type for a turn; it holds no control character and no second envelope."""
    text = " ".join(part for part in (primer, question) if part)
    text = _CONTROLS.sub("", _LINE_BREAKS.sub(" ", text))
    # After the control characters are gone, since one may have stood inside the mark.
    text = re.sub(r"\[(?=PALIADIN:)", "[ ", text, flags=re.IGNORECASE)
    # A space ends the line, since Claude Code takes Enter after a backslash for a new line.
    return f"[PALIADIN:{turn_id}] {text} ".encode(errors="replace")


class _Pane(NamedTuple):
    id: str
    dead: str
    command: str


class Panes:
    """The sessions of one tmux server.

    Args:
        socket: path of the server's socket; locks live beside it.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._queues: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def run_turn(
        self,
        session: str,
        window: str,
        agent: Agent,
        *,
        line: bytes,
        path: Path,
        queue: int = 1,
        half: bool = False,
    ) -> tuple[bytes, bool]:
        """Type a line to a window's agent and wait for its file to be whole.

        A window has one open turn, in all processes; others wait. A turn that has its answer
        already, for it came twice, is not typed again.

        Args:
            session: name of the session, of letters, digits and `_.-`.
            window: name of the window. tmux expands `#` in it, and `/` and `,` delimit.
            agent: what runs there, started where it does not.
            line: of `envelope`.
            path: of the answer.
            queue: how many turns of this process may wait for the window.
            half: take what is in the file as soon as anything is.

        Returns:
            The file's bytes, and whether the agent had to be started.

        Raises:
            AgentNotReady: it could not be started.
            Busy: `queue` turns wait already.
            PaneError: tmux refused.
        """
        key = quote(f"{session}/{window}", safe="")
        lock = self._queues[key]
        if lock.statistics().tasks_waiting >= queue:
            raise Busy(f"{queue} turns wait already")
        async with lock, self._flock(key):
            spawned = False
            if not path.exists():
                spawned = await self._ask(session, window, agent, line)
            return await _answer(path, half=half), spawned

    async def close(self, session: str, window: str | None = None) -> None:
        """End a window or a whole session; one that is not there is well."""
        if window is None:
            with suppress(PaneError):
                await self._tmux("kill-session", "-t", _exact(session))
        elif pane := await self._find(session, window):
            with suppress(PaneError):
                await self._tmux("kill-window", "-t", pane.id)

    async def _ask(self, session: str, window: str, agent: Agent, line: bytes) -> bool:
        fresh = False
        for _ in range(3):  # as it is; started; once more where it exited in between
            pane = await self._await_prompt(session, window, agent, fresh=fresh)
            if pane:
                # It is not cancelled halfway: a draft without its Enter would join the next one.
                with anyio.CancelScope(shield=True):
                    if await self._type(pane, agent, line):
                        return fresh
            elif fresh:
                break
            else:
                await self._spawn(session, window, agent)
                fresh = True
        raise AgentNotReady("the agent exited while it started")

    async def _find(self, session: str, window: str) -> _Pane | None:
        fields = "#{pane_id} #{pane_dead} #{pane_current_command}"
        named = f"#{{==:#{{window_name}},{window}}}"
        try:
            listed = await self._tmux(
                "list-panes", "-s", "-t", _exact(session), "-f", named, "-F", fields
            )
        except PaneError:
            return None  # no such session, or no server
        panes = [_Pane(*line.split(" ", 2)) for line in listed.splitlines()]
        return panes[0] if panes else None

    async def _spawn(self, session: str, window: str, agent: Agent) -> None:
        # With `env` the command has two words at least. tmux hands a single word to a shell.
        run = ("-c", agent.cwd.replace("#", "##"), "env", *agent.command)
        if old := await self._find(session, window):
            await self._tmux("respawn-pane", "-k", "-t", old.id, *run)
            return
        async with self._flock("spawn"):
            with suppress(PaneError):
                await self._tmux("new-window", "-d", "-t", _exact(session), "-n", window, *run)
                return
            # The server stays when the last agent exits, since the next turn might meet one that is
            # ending. Panes stay, too, with what their agent said last.
            await self._tmux(
                *("start-server", ";", "set", "-s", "exit-empty", "off", ";"),
                *("set", "-g", "remain-on-exit", "on", ";"),
                *("new-session", "-d", "-x", "200", "-y", "50"),
                *("-s", _plain(session), "-n", window, *run),
            )

    async def _await_prompt(
        self, session: str, window: str, agent: Agent, *, fresh: bool
    ) -> _Pane | None:
        with anyio.move_on_after(_BOOT_S):
            while (pane := await self._find(session, window)) and pane.dead == "0":
                if pane.command == agent.process:
                    if await self._until_prompts(pane, agent, wanted=True):
                        return pane
                    if not fresh:
                        # A draft that somebody left would become a part of the question.
                        to = ("-t", pane.id)
                        await self._tmux("copy-mode", "-q", *to, ";", "send-keys", *to, "C-u")
                elif not fresh:
                    return None
                await anyio.sleep(_TICK_S)
            return None
        raise AgentNotReady(f"the agent had no empty prompt within {_BOOT_S:g} s")

    async def _type(self, pane: _Pane, agent: Agent, line: bytes) -> bool:
        """Whether the agent was there before and after."""
        to = ("-t", pane.id)
        there = f"#{{==:#{{pane_current_command}},{agent.process}}}"
        try:
            refused = await self._tmux(
                *("load-buffer", "-b", pane.id, "-", ";"),
                *("copy-mode", "-q", *to, ";"),  # there, Enter would be swallowed
                # Who is in the foreground is checked once more: a shell would run what is typed.
                *("if-shell", "-F", *to, there),
                *(f"paste-buffer -p -b {pane.id} -t {pane.id}", "display-message -p no"),
                stdin=line,
            )
        finally:
            with suppress(PaneError):
                await self._tmux("delete-buffer", "-b", pane.id)
        if refused:
            return False
        # Programs read in chunks, and may take an Enter in the chunk of a paste for a part
        # of it: so it waits until the paste is seen. It may get lost all the same.
        await self._until_prompts(pane, agent, wanted=False)
        for _ in range(_ENTERS):
            await self._tmux("send-keys", *to, "Enter")
            if await self._until_prompts(pane, agent, wanted=True):
                return await self._tmux("display-message", "-p", *to, there) == "1\n"
        raise PaneError("the agent did not take what was typed")

    async def _until_prompts(self, pane: _Pane, agent: Agent, *, wanted: bool) -> bool:
        with anyio.move_on_after(_SHOWN_S):
            while await self._prompts(pane, agent) != wanted:
                await anyio.sleep(_TICK_S)
            return True
        return False

    async def _prompts(self, pane: _Pane, agent: Agent) -> bool:
        screen = await self._tmux("capture-pane", "-p", "-t", pane.id)
        return re.search(agent.prompt, screen, re.MULTILINE) is not None

    async def _tmux(self, *arguments: str, stdin: bytes = b"") -> str:
        done = await anyio.run_process(
            ["tmux", "-u", "-S", str(self._socket), "-f", "/dev/null", *arguments],
            input=stdin,
            check=False,
            env=_ENVIRONMENT,
        )
        if done.returncode:
            raise PaneError(done.stderr.decode(errors="replace").strip())
        return done.stdout.decode(errors="replace")

    @asynccontextmanager
    async def _flock(self, name: str) -> AsyncIterator[None]:
        descriptor = os.open(f"{self._socket}.{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                await anyio.sleep(_TICK_S)
            yield
        finally:
            os.close(descriptor)


async def _answer(path: Path, *, half: bool) -> bytes:
    seen, since = b"", anyio.current_time()
    while True:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        if content != seen:
            seen, since = content, anyio.current_time()
        quiet = anyio.current_time() - since >= _QUIET_S
        if content and (half or quiet or is_whole(content[-TAIL_BYTES:])):
            return content
        await anyio.sleep(_TICK_S)


def _exact(session: str) -> str:
    return f"={_plain(session)}:"


def _plain(session: str) -> str:
    # tmux would make a dot an underscore, and two sessions one.
    return session.replace(".", "=")
