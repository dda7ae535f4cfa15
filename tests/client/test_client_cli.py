"""`paliadin` as a person and a script meet it: a real process, in a terminal and in a pipe."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

import anyio
import pytest
from support.client_hosts import ANSWER, Fails, aichat_host, until
from support.slow import slow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.client_hosts import AichatHost, Host, LegacyHost, Seen

pytestmark = pytest.mark.anyio

COMMAND = str(Path(sys.executable).with_name("paliadin"))
#: Becomes the command after it. What was started by `nohup` or in a shell's background ignores
#: some signals, and so does what that starts.
HEARS_SIGNALS = ("env", "--default-signal")
USER_ID = "0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a11"
HOSTILE = "# Titel\n\n\x1b]0;pwned\x07\x9b31m**fett** <https://example.org/%1b]0;pwned%07>\r\n"


async def paliadin(environ: Mapping[str, str], *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, *arguments),
        env={**os.environ, **environ},
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*")}


async def in_terminal(environ: Mapping[str, str], *arguments: str) -> tuple[int, bytes]:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, *arguments),
        env={**os.environ, **environ, "TERM": "xterm-256color", "COLUMNS": "80"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = bytearray()
    ended = asyncio.Event()

    def read() -> None:
        try:
            shown.extend(os.read(ours, 65_536))
        except OSError:  # Linux's end of file on a terminal
            asyncio.get_running_loop().remove_reader(ours)
            ended.set()

    asyncio.get_running_loop().add_reader(ours, read)
    with anyio.fail_after(30):
        await ended.wait()
        code = await process.wait()
    os.close(ours)
    return code, bytes(shown)


async def test_ask_in_a_pipe(host: Host) -> None:
    """In a pipe the answer is plain text, and nothing else is said."""
    asked = ("ask", "Welche Fristen?", "--user-id", USER_ID, "--email", "anna@example.org")
    code, out, err = await paliadin(host.environ, *asked)
    assert (code, err) == (0, "")
    assert out == ANSWER.partition("\n\n[paliadin-meta]")[0] + "\n"
    assert [seen.message for seen in host.turns] == ["Welche Fristen?"]


@pytest.mark.parametrize("arguments", [("ask", "?", "--user-id", USER_ID), ("health",)])
async def test_no_room_for_the_output(aichat: AichatHost, arguments: tuple[str, ...]) -> None:
    """On a full disk a command says so in one line, which holds nothing of an answer."""
    full = os.open("/dev/full", os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, *arguments), env={**os.environ, **aichat.environ}, stdout=full, stderr=PIPE
    )
    os.close(full)
    _, err = await process.communicate()
    assert process.returncode == 1
    said = "paliadin: it is done, and the output cannot be written: No space left on device\n"
    assert err.decode() == said


async def test_a_pipe_that_does_not_wait(aichat: AichatHost) -> None:
    """A long answer comes whole through a pipe that somebody made non-blocking."""
    text = "Frist. " * 100_000

    async def long(_: Seen) -> str:
        return text

    aichat.script = long
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, "ask", "?", "--user-id", USER_ID),
        env={**os.environ, **aichat.environ},
        stdout=theirs,
    )
    os.close(theirs)
    with os.fdopen(ours, encoding="utf-8") as pipe:
        out = await anyio.to_thread.run_sync(pipe.read)
    assert await process.wait() == 0
    assert out.strip() == text.strip()


async def test_nobody_sees_the_output(aichat: AichatHost) -> None:
    """With its output closed the command asks nothing."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'exec "$@" >&-', "sh", COMMAND, "ask", "?", "--user-id", USER_ID),
        env={**os.environ, **aichat.environ},
        stderr=PIPE,
    )
    _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"paliadin: the output is closed\n")
    assert aichat.turns == []


async def test_ask_in_a_terminal(aichat: AichatHost) -> None:
    """In a terminal seconds are counted until the Markdown is rendered."""
    release = anyio.Event()

    async def slow(_: Seen) -> str:
        await release.wait()
        return ANSWER

    aichat.script = slow
    asking = asyncio.ensure_future(in_terminal(aichat.environ, "ask", "?", "--user-id", USER_ID))
    await aichat.next_turn()
    release.set()
    code, shown = await asking
    assert code == 0
    assert "waiting for the answer" in shown.decode()
    assert re.search(rb"0:00:0\d", shown)
    assert re.search(rb"\x1b\[1meine\x1b\[0m", shown)
    assert b"**" not in shown
    assert b"paliadin-meta" not in shown


async def test_hostile_answer(aichat: AichatHost) -> None:
    """Escape sequences in an answer do nothing, in a pipe and in a terminal."""

    async def hostile(_: Seen) -> str:
        return HOSTILE

    aichat.script = hostile
    _, out, _ = await paliadin(aichat.environ, "ask", "?", "--user-id", USER_ID)
    code, shown = await in_terminal(aichat.environ, "ask", "?", "--user-id", USER_ID)
    assert code == 0
    assert "pwned" in out
    assert b"pwned" in shown
    for text in (out.encode(), shown):
        assert b"\x1b]" not in text
        assert b"\x07" not in text
        assert "\x9b".encode() not in text


@pytest.mark.parametrize("encoding", ["ascii", slow("latin-1")])
async def test_an_encoding_that_lacks_a_character(host: Host, encoding: str) -> None:
    """A character that the output's encoding lacks gets a stand-in; the answer is not lost."""

    async def chinese(_: Seen) -> str:
        return "Größe: 期限 € **fett**"

    host.script = chinese
    asked = ("ask", "?", "--user-id", USER_ID)
    environ = host.environ | {"PYTHONIOENCODING": encoding}
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, *asked), env={**os.environ, **environ}, stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out == "Größe: ?? ? **fett**\n".encode(encoding, errors="replace")
    code, screen = await in_terminal(environ, *asked)
    assert code == 0
    assert "Größe: ?? ?".encode(encoding, errors="replace") in screen


async def test_health_and_reset(host: Host) -> None:
    """The other two commands say that it is done."""
    assert await paliadin(host.environ, "health") == (0, "ok\n", "")
    assert await paliadin(host.environ, "reset", "--user-id", USER_ID) == (0, "reset\n", "")
    assert len(host.resets) == 1


async def test_failure(legacy: LegacyHost) -> None:
    """A failure is 1, with what the host said, and what to do."""

    async def fails(_: Seen) -> str:
        raise Fails("bootstrap_failed")

    legacy.script = fails
    code, out, err = await paliadin(legacy.environ, "ask", "?", "--user-id", USER_ID)
    assert (code, out) == (1, "")
    assert err == (
        "paliadin: bootstrap_failed: ssh ended with 3\n"
        "paliadin: words of the shim\n"
        "paliadin: The host could not start the agent: look at its tmux session there.\n"
    )


@pytest.mark.parametrize(
    ("environ", "arguments", "code", "says"),
    [
        ({}, ("ask", "?"), 2, "Missing option '--user-id'"),
        ({"PALIADIN_REMOTE_HOST": ""}, ("health",), 78, "PALIADIN_REMOTE_HOST is not set"),
        ({"PALIADIN_BACKEND": "aichat"}, ("health",), 78, "AICHAT_URL is not set"),
    ],
)
async def test_exit_codes(
    environ: dict[str, str], arguments: tuple[str, ...], code: int, says: str
) -> None:
    """Wrong usage is 2, a wrong configuration 78."""
    found, out, err = await paliadin(environ, *arguments)
    assert (found, out) == (code, "")
    assert says in err
    assert "Traceback" not in err


async def test_bad_user(legacy: LegacyHost) -> None:
    """A user id that cannot be one is wrong usage, and nothing was sent."""
    code, _, err = await paliadin(legacy.environ, "ask", "?", "--user-id", "anna")
    assert (code, legacy.commands) == (2, [])
    assert "the user id is no UUID" in err


#: A command in which a signal comes while one of its tasks runs, and not while all wait.
_HIT = """
import signal, sys
from contextlib import asynccontextmanager
import anyio
from paliadin_client import cli

@asynccontextmanager
async def connect():
    yield None

async def hit():
    signal.raise_signal(int(sys.argv[1]))
    await anyio.sleep_forever()

async def action(_):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hit)
        await anyio.sleep_forever()

cli.connect = connect
cli.main.command("held")(lambda: cli._do(action))
cli.main(["held"])
"""


@pytest.mark.parametrize(
    ("hears", "number"),
    [
        (HEARS_SIGNALS, signal.SIGINT),
        (HEARS_SIGNALS, signal.SIGTERM),
        (HEARS_SIGNALS, signal.SIGHUP),
        # As a shell starts what runs in the background.
        ((*HEARS_SIGNALS, "--ignore-signal=INT"), signal.SIGTERM),
    ],
)
async def test_a_signal_that_hits_a_task(hears: tuple[str, ...], number: signal.Signals) -> None:
    """It ends as Ctrl-C does, in one line, whatever ran at that moment."""
    process = await asyncio.create_subprocess_exec(
        *(*hears, sys.executable, "-c", _HIT, str(int(number))), stderr=PIPE
    )
    _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"\nAborted!\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_no_key_stays(legacy: LegacyHost, tmp_path: Path, number: signal.Signals) -> None:
    """However it is ended, ssh ends with it, and the key is removed."""

    async def never(_: Seen) -> str:
        await anyio.sleep_forever()
        raise AssertionError

    legacy.script = never
    process = await asyncio.create_subprocess_exec(
        *(*HEARS_SIGNALS, COMMAND, "ask", "?", "--user-id", USER_ID),
        env={**os.environ, **legacy.environ, "TMPDIR": str(tmp_path)},
        stderr=PIPE,
    )
    seen = await legacy.next_turn()
    assert {"key", "known_hosts"} <= names(tmp_path)
    process.send_signal(number)
    _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"\nAborted!\n")
    assert names(tmp_path) == set()
    await until(lambda: legacy.abandoned == [seen.turn_id])


async def test_hangup_is_ignored_where_it_was(aichat: AichatHost) -> None:
    """Under `nohup` the end of the terminal does not end it."""
    release = anyio.Event()

    async def slow(_: Seen) -> str:
        await release.wait()
        return ANSWER

    aichat.script = slow
    process = await asyncio.create_subprocess_exec(
        *("nohup", COMMAND, "ask", "?", "--user-id", USER_ID),
        env={**os.environ, **aichat.environ},
        stdout=PIPE,
        stderr=PIPE,
    )
    await aichat.next_turn()
    process.send_signal(signal.SIGHUP)
    release.set()
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert out.decode() == ANSWER.partition("\n\n[paliadin-meta]")[0] + "\n"


async def test_interrupted(aichat: AichatHost) -> None:
    """Ctrl-C ends it, and the backend sees that nobody waits."""

    async def never(_: Seen) -> str:
        await anyio.sleep_forever()
        raise AssertionError

    aichat.script = never
    process = await asyncio.create_subprocess_exec(
        *(*HEARS_SIGNALS, COMMAND, "ask", "?", "--user-id", USER_ID),
        env={**os.environ, **aichat.environ},
        stderr=PIPE,
    )
    seen = await aichat.next_turn()
    process.send_signal(2)
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"Traceback" not in err
    await until(lambda: aichat.abandoned == [seen.turn_id])


async def test_health_of_several_hosts(aichat: AichatHost) -> None:
    """Each host has a line, and only if all are well is it 0."""
    async with aichat_host() as other:
        urls = aichat.environ["AICHAT_URL"], other.environ["AICHAT_URL"]
        environ = {**aichat.environ, "AICHAT_URL": " ".join(urls)}
        assert await paliadin(environ, "health") == (0, f"{urls[0]} ok\n{urls[1]} ok\n", "")
        aichat.unwell = "auth_failed"
        said, why = (
            f"{urls[0]} auth_failed: HTTP 500\n{urls[1]} ok\n",
            [
                f"paliadin: {urls[0]}: words of the backend",
                f"paliadin: {urls[0]}: Is AICHAT_TOKEN the backend's?",
            ],
        )
        assert await paliadin(environ, "health") == (1, said, "\n".join([*why, ""]))
        other.unwell = "auth_failed"
        code, said, _ = await paliadin(environ, "health")
        assert (code, said) == (1, "".join(f"{url} auth_failed: HTTP 500\n" for url in urls))
