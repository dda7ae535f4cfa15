"""What is the legacy path's own: ssh's options, the key, sessions, exit codes, one argument."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import signal
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

import anyio
import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.client_hosts import children, until

import paliadin_client
from paliadin_client import (
    BadRequest,
    ConfigError,
    Exchange,
    MessageTooLong,
    NotConfigured,
    Paliadin,
    PaliadinError,
    ShimAuthFailed,
    ShimError,
    TurnRequest,
    Unreachable,
    User,
)
from paliadin_client import legacy as module
from paliadin_client import ssh as ssh_module
from paliadin_client.legacy import Legacy
from paliadin_client.ssh import Ssh, _PrivateFiles

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from support.client_hosts import LegacyHost, Process, Seen, Sidecar

    from paliadin_client import Inbox
    from paliadin_client.backend import Reply

pytestmark = pytest.mark.anyio

ANNA = User("0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a11", email="anna@example.org")


def ask(message: str = "?", user: User = ANNA) -> TurnRequest:
    return TurnRequest(user=user, message=message)


def submitting(request: TurnRequest, primer: str = "") -> Callable[[], Awaitable[Reply]]:
    return backend().prepare(request, primer)


def backend(prefix: str = "paliad-paliadin") -> Legacy:
    return Legacy(Ssh(_PrivateFiles({}), 22, "h"), prefix)


async def test_commands(legacy: LegacyHost) -> None:
    """The shim gets its three verbs, each with the user's session, and base64 for what is typed."""
    request = ask("Frage")
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        await paliadin.run_turn(request)
        await paliadin.reset_session(ANNA)
    session = "paliad-paliadin-0f5c2a44"
    assert legacy.commands == [
        f"health {session}",
        f"run-turn {session} {request.turn_id} {base64.b64encode(b'Frage').decode()}",
        f"reset {session}",
    ]


async def test_health_without_user(legacy: LegacyHost) -> None:
    """A health check for nobody in particular names the bare prefix."""
    legacy.environ["PALIADIN_SESSION_PREFIX"] = "other_app"
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        await paliadin.health()
        await paliadin.reset_session(User(ANNA.user_id.upper()))
    assert legacy.commands == ["health other_app", "reset other_app-0f5c2a44"]


async def test_options(legacy: LegacyHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ssh runs with the known options, and its key is private and goes with us."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    request = ask("Frage")
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        await paliadin.health(ANNA)
        legacy.script = _never
        turn = asyncio.ensure_future(paliadin.run_turn(request))
        await legacy.next_turn()
        [ssh] = children()
        argv, directory = _argv_and_cwd(ssh)
        modes = _modes(tmp_path)
        turn.cancel()
        with suppress(asyncio.CancelledError):
            await turn
    assert directory.parent == tmp_path
    assert modes == {directory: 0o700, directory / "key": 0o600, directory / "known_hosts": 0o600}
    assert _modes(tmp_path) == {}
    assert argv[-6:] == [
        *("river@127.0.0.1", "--", "run-turn", "paliad-paliadin-0f5c2a44"),
        *(request.turn_id, "RnJhZ2U="),
    ]
    # Only some versions and builds have the others.
    known = {
        *_effective("ssh", "-F", "/dev/null", "h"),
        "identityagent",
        "preferredauthentications",
    }
    chosen = _effective(*argv)
    assert chosen["port"] == legacy.environ["PALIADIN_REMOTE_PORT"]
    assert {name: chosen.get(name) for name in OPTIONS if name in known} == {
        name: value for name, value in OPTIONS.items() if name in known
    }


def _effective(ssh: str, *argv: str) -> dict[str, str]:
    shown = subprocess.run([ssh, "-G", *argv], stdout=PIPE, check=True, text=True).stdout
    return dict(line.split(" ", 1) for line in shown.splitlines())


#: As `ssh -G` writes them; None is what it does not show, since there is none.
OPTIONS = {
    "addkeystoagent": "false",
    "batchmode": "yes",
    "canonicalizehostname": "false",
    "checkhostip": "no",
    "clearallforwardings": "yes",
    "compression": "no",
    "connectionattempts": "1",
    "connecttimeout": "10",
    "controlmaster": "false",
    "controlpath": None,
    "controlpersist": "no",
    "escapechar": "none",
    "forwardagent": "no",
    "forwardx11": "no",
    "globalknownhostsfile": "/dev/null",
    "gssapiauthentication": "no",
    "gssapikeyexchange": "no",
    "hashknownhosts": "no",
    "hostbasedauthentication": "no",
    "identitiesonly": "yes",
    "identityagent": "none",
    "identityfile": "key",
    "kbdinteractiveauthentication": "no",
    "knownhostscommand": None,
    "loglevel": "ERROR",
    "nohostauthenticationforlocalhost": "no",
    "passwordauthentication": "no",
    "permitlocalcommand": "no",
    "pkcs11provider": None,
    "preferredauthentications": "publickey",
    "proxycommand": None,
    "proxyjump": None,
    "pubkeyauthentication": "true",
    "remotecommand": None,
    "requesttty": "false",
    "serveralivecountmax": "4",
    "serveraliveinterval": "15",
    "stricthostkeychecking": "true",
    "tunnel": "false",
    "updatehostkeys": "false",
    "userknownhostsfile": "known_hosts",
    "verifyhostkeydns": "false",
}


@pytest.mark.parametrize("switch", [None, "1", "0"])
async def test_primer_in_the_process_list(legacy: LegacyHost, switch: str | None) -> None:
    """Earlier questions and answers are in ssh's arguments, unless they are switched off."""
    if switch is not None:
        legacy.environ["PALIADIN_LEGACY_PRIMER"] = switch
    primer = [Exchange("Frage", "Antwort")] * 6
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        legacy.script = _never
        turn = asyncio.ensure_future(
            paliadin.run_turn(TurnRequest(user=ANNA, message="?", primer=primer))
        )
        seen = await legacy.next_turn()
        [ssh] = children()
        argv, _ = _argv_and_cwd(ssh)
        turn.cancel()
        with suppress(asyncio.CancelledError):
            await turn
    typed = base64.b64decode(argv[-1]).decode()
    assert seen.message == "?"
    assert typed == f"{seen.primer} ?".lstrip()
    assert typed.count("U: Frage A: Antwort") == (0 if switch == "0" else 5)


def _argv_and_cwd(pid: int) -> tuple[list[str], Path]:
    process = Path(f"/proc/{pid}")
    return (process / "cmdline").read_text().split("\0")[:-1], (process / "cwd").readlink()


def _modes(directory: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*")}


async def _never(_: Seen) -> str:
    await anyio.sleep_forever()
    raise AssertionError


async def test_key_in_an_environment_file(legacy: LegacyHost) -> None:
    """A key whose line ends an environment file wrote as escapes, without the last, is a key."""
    for name in ("PALIADIN_SSH_PRIVATE_KEY", "PALIADIN_KNOWN_HOSTS"):
        legacy.environ[name] = legacy.environ[name].strip().replace("\n", "\\n")
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        await paliadin.health()


async def test_our_own_account(legacy: LegacyHost) -> None:
    """Without PALIADIN_REMOTE_USER it is ssh that knows who we are."""
    del legacy.environ["PALIADIN_REMOTE_USER"]
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        await paliadin.health()


@pytest.mark.parametrize("wrong", ["PALIADIN_SSH_PRIVATE_KEY", "PALIADIN_KNOWN_HOSTS"])
async def test_not_admitted(legacy: LegacyHost, wrong: str) -> None:
    """A key that the host refuses, and a host whose key is not the known one, end every call."""
    stranger = asyncssh.generate_private_key("ssh-ed25519")
    legacy.environ[wrong] = {
        "PALIADIN_SSH_PRIVATE_KEY": stranger.export_private_key().decode(),
        "PALIADIN_KNOWN_HOSTS": f"[127.0.0.1]:{legacy.environ['PALIADIN_REMOTE_PORT']} "
        + stranger.export_public_key().decode(),
    }[wrong]
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        with pytest.raises(ShimAuthFailed) as caught:
            await paliadin.health()
    assert (caught.value.code, caught.value.retryable) == ("shim_auth_failed", False)
    assert legacy.commands == []


async def test_not_configured() -> None:
    """Without a host it connects, and every call says what is missing."""
    async with paliadin_client.connect(environ={}) as paliadin:
        for call in (
            paliadin.health(),
            paliadin.health(ANNA),
            paliadin.run_turn(ask()),
            paliadin.reset_session(ANNA),
        ):
            with pytest.raises(NotConfigured, match="PALIADIN_REMOTE_HOST is not set"):
                await call


async def test_no_room_for_the_key(
    legacy: LegacyHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the key can be written nowhere, connecting says so, and leaves nothing."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "write_text", _full)
    with pytest.raises(ConfigError, match=r"no directory for ssh's key \(TMPDIR\): No space left"):
        async with paliadin_client.connect(environ=legacy.environ):
            pytest.fail("connected")
    assert _modes(tmp_path) == {}


def _full(path: Path, _contents: str) -> None:
    path.touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


async def test_no_ssh(legacy: LegacyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without an ssh program the error says so."""
    monkeypatch.setenv("PATH", "/nonexistent")
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        with pytest.raises(Unreachable, match="ssh could not be started"):
            await paliadin.health()


async def test_ssh_killed(legacy: LegacyHost, inbox: Inbox, sidecar: Sidecar) -> None:
    """An ssh that is killed under us ends the submit, not the wait."""
    legacy.script = _never
    async with paliadin_client.connect(inbox=inbox, environ=legacy.environ) as paliadin:
        turn = asyncio.ensure_future(paliadin.run_turn(ask()))
        seen = await legacy.next_turn()
        [ssh] = children()
        os.kill(ssh, signal.SIGKILL)
        await until(lambda: not children())
        await sidecar.push(seen.turn_id)
        assert (await turn).via == "push"


async def test_health_says_something_else(legacy: LegacyHost) -> None:
    """Any answer but ok is not well."""

    async def shim(process: Process) -> None:
        process.stdout.write(b"nok\n")
        process.exit(0)

    legacy.shim = shim
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        with pytest.raises(ShimError, match="did not print ok"):
            await paliadin.health()


async def test_silent_shim(legacy: LegacyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A health check that is not answered ends by itself, and its ssh with it."""
    monkeypatch.setattr(module, "_HEALTH_S", 0.5)

    async def shim(process: Process) -> None:
        await process.channel.wait_closed()

    legacy.shim = shim
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        with pytest.raises(Unreachable, match=r"within 0\.5 s"):
            await paliadin.health()
    assert not children()


async def test_endless_output(legacy: LegacyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is read up to a limit, and then ssh is ended."""
    monkeypatch.setattr(ssh_module, "MAX_ANSWER_BYTES", 100_000)

    async def shim(process: Process) -> None:
        with suppress(OSError):
            while not process.channel.is_closing():
                process.stdout.write(b"x" * 10_000)
                await process.stdout.drain()

    legacy.shim = shim
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        with pytest.raises(ShimError, match="more than 100000 bytes"):
            await paliadin.health()
    assert not children()


async def test_talkative_shim(legacy: LegacyHost) -> None:
    """A flood on stderr blocks nothing; its end, cleaned, is the error's detail."""

    async def shim(process: Process) -> None:
        process.stderr.write(b"x" * 1_000_000 + b"\nno such\n\x1b[31mdirectory\xff\n")
        process.exit(3)

    legacy.shim = shim
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        with pytest.raises(PaliadinError) as caught:
            await paliadin.health()
    assert caught.value.code == "bootstrap_failed"
    assert caught.value.detail == "no such [31mdirectory\ufffd"


async def test_not_utf8(legacy: LegacyHost) -> None:
    """Bytes that are no UTF-8 cost themselves, not the answer."""

    async def shim(process: Process) -> None:
        process.stdout.write(b"ok" if "health" in str(process.command) else b"Gr\xfc\xdfe\n")
        process.exit(0)

    legacy.shim = shim
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        assert (await paliadin.run_turn(ask())).text == "Gr\ufffd\ufffde\n"


async def test_failed_health_frees_the_primer(legacy: LegacyHost) -> None:
    """After a failed health check any session may be fresh, and gets its primer again."""
    request = TurnRequest(user=ANNA, message="?", primer=[Exchange("Q", "A")])
    now = [0.0]
    settings = paliadin_client.settings.Settings.from_environ(legacy.environ)
    async with paliadin_client.connection.open_hosts(settings.backend) as hosts:
        paliadin = Paliadin(hosts, deadline_s=20, clock=lambda: now[0])
        await paliadin.run_turn(request)
        now[0] += 11
        legacy.unwell = "shim_error"
        with pytest.raises(ShimError):
            await paliadin.health()
        legacy.unwell = None
        await paliadin.run_turn(request)
    assert [bool(seen.primer) for seen in legacy.turns] == [True, True]


@pytest.mark.parametrize(
    "turn_id", ["turn-1", "0f5c2a448f7e4b599a521d0a8a5a2a11", "0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a1"]
)
def test_turn_id(turn_id: str) -> None:
    """A turn id that the shim would not accept is refused before ssh."""
    with pytest.raises(BadRequest, match="the turn id is no UUID"):
        submitting(TurnRequest(user=ANNA, message="?", turn_id=turn_id))


SHIM = r"""
read -ra words <<<"$SSH_ORIGINAL_COMMAND"
[[ ${words[0]} == health ]] && { echo ok; exit; }
[[ ${#words[@]} == 4 && ${words[0]} == run-turn ]] || exit 2
base64 -d <<<"${words[3]}"
"""


async def _bash(process: Process) -> None:
    # As sshd does it with `command=`: the shell runs the shim, and finds the command in one string.
    shim = await asyncio.create_subprocess_exec(
        *("bash", "-c", SHIM),
        stdout=PIPE,
        env={**os.environ, "SSH_ORIGINAL_COMMAND": str(process.command)},
    )
    output, _ = await shim.communicate()
    process.stdout.write(output)
    process.exit(shim.returncode or 0)


async def test_longest_message(legacy: LegacyHost) -> None:
    """The longest message that is not refused fits into a real shim's environment."""
    legacy.shim = _bash
    with pytest.raises(MessageTooLong) as caught:
        submitting(ask("x" * 200_000))
    longest = "x" * (caught.value.limit // 4 * 3)
    with pytest.raises(MessageTooLong):
        submitting(ask(longest + "x"))
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        assert (await paliadin.run_turn(ask(longest))).text == longest


def test_too_long_says_how_long() -> None:
    """A message that does not fit is refused with its size and the limit; a primer counts too."""
    with pytest.raises(MessageTooLong) as caught:
        submitting(ask("x" * 90_000), primer="[primer last=1] U: " + "x" * 10_000)
    error = caught.value
    assert error.size == 4 * -(-(90_000 + 1 + 19 + 10_000) // 3)
    assert 130_900 < error.limit <= 131_071
    assert str(error) == (
        f"bad_request: the message is {error.size} bytes as base64, "
        f"and at most {error.limit} fit into one argument"
    )


@given(st.text(), st.text())
def test_nothing_typed_becomes_a_word(user_id: str, message: str) -> None:
    """Whatever the user id and the message are, ssh gets four harmless words or nothing."""
    request = TurnRequest(user=User(user_id), message=message)
    with pytest.raises(BadRequest):
        submitting(request)
    prepared = submitting(ask(message))
    words = prepared.args  # type: ignore[attr-defined]  # it is a functools.partial
    assert words[:3] == ("run-turn", "paliad-paliadin-0f5c2a44", words[2])
    assert all(word.replace("=", "").replace("/", "").replace("+", "-") for word in words[:3])
    decoded = base64.b64decode(words[3], validate=True).decode()
    assert decoded.isprintable() or not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in decoded)


@given(st.uuids())
def test_sessions_are_the_shims(uuid: object) -> None:
    """A session's name is of the alphabet that the shim accepts, or the user is refused."""
    try:
        session = backend("p" * 55).pane(User(str(uuid)))
    except BadRequest:
        return
    assert len(session) == 64
    assert session == "p" * 55 + "-" + str(uuid)[:8]
