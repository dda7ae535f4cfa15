"""What a host can do to ssh: banners, forged words, dropped handshakes; and the key's directory."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import asyncssh
import pytest
from support.client_hosts import ANSWER, Drops, children, until
from support.openssh import openssh_host
from support.users import root_only

import paliadin_client
from paliadin_client import (
    BootstrapFailed,
    ConnectionLost,
    PaliadinError,
    ShimAuthFailed,
    ShimError,
    TurnRequest,
    Unreachable,
    User,
)
from paliadin_client import ssh as module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.client_hosts import LegacyHost, Process, Seen, Sidecar

    from paliadin_client import Inbox

pytestmark = pytest.mark.anyio

ANNA = User("0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a11")
#: What ssh itself says of other ends, as a host may write it.
FORGED = (
    "river@127.0.0.1: Permission denied (publickey).",
    "Permission denied to outsiders.",
    "Host key verification failed.",
    "Too many authentication failures",
    "ssh: connect to host h port 22: Connection refused",
    "Trouble with ssh: call us.",
    "kex_exchange_identification: Connection closed by remote host",
    "Connection closed by 127.0.0.1 port 22",
    "Connection timed out during banner exchange",
    "** WARNING: connection is not using a post-quantum key exchange algorithm.",
)
STRICT = "strict checking. Host key verification failed."
LONG = "All that is done here is recorded.\r\n" * 150


def ask(user: User = ANNA) -> TurnRequest:
    return TurnRequest(user=user, message="?")


@pytest.mark.parametrize("words", FORGED)
async def test_lost_behind_a_banner(
    legacy: LegacyHost, inbox: Inbox, sidecar: Sidecar, words: str
) -> None:
    """A connection that is lost in the middle of a turn is that, whatever the banner says."""
    legacy.banner = f"{words}\r\n{LONG}{words}\r\n"

    async def push_later(turn_id: str) -> None:
        await until(lambda: not children())
        await sidecar.push(turn_id)

    async def push_and_drop(seen: Seen) -> str:
        pushes.start_soon(push_later, seen.turn_id)
        raise Drops

    legacy.script = push_and_drop
    async with (
        paliadin_client.connect(inbox=inbox, environ=legacy.environ) as paliadin,
        anyio.create_task_group() as pushes,
    ):
        assert (await paliadin.run_turn(ask())).via == "push"


@pytest.mark.parametrize("words", FORGED)
@pytest.mark.parametrize("by", ["stderr", "disconnect"])
async def test_lost_with_forged_words(legacy: LegacyHost, words: str, by: str) -> None:
    """What the host writes after it let us in, wherever, does not make the turn unsent."""

    async def shim(process: Process) -> None:
        if by == "stderr":
            process.stderr.write(f"{words}\n".encode())
            process.exit(255)
        else:
            process.channel.get_connection().disconnect(2, f"bye\r\n{words}\r\n{words}")

    legacy.shim = shim
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        with pytest.raises(ConnectionLost) as caught:
            await paliadin.health()
    # asyncssh closes the connection so soon after its reason that ssh may not have read that.
    assert by == "disconnect" or words in caught.value.detail


@pytest.mark.parametrize("wrong", ["PALIADIN_SSH_PRIVATE_KEY", "PALIADIN_KNOWN_HOSTS"])
async def test_refused_behind_a_banner(legacy: LegacyHost, wrong: str) -> None:
    """A key that is refused is that at once, behind a banner of any size, and says which."""
    legacy.banner = f"{LONG}Trouble with ssh: call us.\r\n"
    stranger = asyncssh.generate_private_key("ssh-ed25519")
    name = f"[127.0.0.1]:{legacy.environ['PALIADIN_REMOTE_PORT']}"
    legacy.environ[wrong], cause = {
        "PALIADIN_SSH_PRIVATE_KEY": (
            stranger.export_private_key().decode(),
            "river@127.0.0.1: Permission denied (publickey).",
        ),
        "PALIADIN_KNOWN_HOSTS": (
            f"{name} {stranger.export_public_key().decode()}",
            f"Host key for {name} has changed and you have requested {STRICT}",
        ),
    }[wrong]
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        with pytest.raises(ShimAuthFailed) as caught:
            await paliadin.run_turn(ask())
    assert caught.value.detail.endswith(cause)
    assert legacy.commands == []


async def test_agents_key(
    legacy: LegacyHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that an agent holds is not offered: we are who our own key says."""
    ours = tmp_path / "ours"
    ours.touch(0o600)
    ours.write_text(legacy.environ["PALIADIN_SSH_PRIVATE_KEY"])
    agent = await asyncio.create_subprocess_exec(
        *("ssh-agent", "-D", "-a", str(tmp_path / "agent")), stdout=subprocess.DEVNULL
    )
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        await until((tmp_path / "agent").exists)
        await anyio.run_process(["ssh-add", "-q", str(ours)])
        stranger = asyncssh.generate_private_key("ssh-ed25519")
        legacy.environ["PALIADIN_SSH_PRIVATE_KEY"] = stranger.export_private_key().decode()
        async with paliadin_client.connect(environ=legacy.environ) as paliadin:
            with pytest.raises(ShimAuthFailed):
                await paliadin.health()
    finally:
        agent.kill()
        await agent.wait()


IN_A_MACHINE = """
import anyio, json, os, paliadin_client
async def main():
    async with paliadin_client.connect(environ=json.loads(os.environ["SETTINGS"])) as paliadin:
        try:
            await paliadin.health()
        except paliadin_client.ShimAuthFailed as exc:
            print(exc.detail)
anyio.run(main)
"""


@root_only
async def test_machines_known_hosts(legacy: LegacyHost, tmp_path: Path) -> None:
    """A host key that only the machine's own file knows is not the pinned one."""
    (tmp_path / "global").write_text(legacy.environ["PALIADIN_KNOWN_HOSTS"])
    name = legacy.environ["PALIADIN_KNOWN_HOSTS"].partition(" ")[0]
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    settings = {**legacy.environ, "PALIADIN_KNOWN_HOSTS": f"{name} {other}"}
    mounted = (
        f"mount -t tmpfs tmpfs /etc/ssh && cp {tmp_path}/global /etc/ssh/ssh_known_hosts && "
        'exec "$@"'
    )
    done = await anyio.run_process(
        ["unshare", "--mount", "sh", "-c", mounted, "sh", sys.executable, "-c", IN_A_MACHINE],
        env={**os.environ, "SETTINGS": json.dumps(settings)},
        check=False,
    )
    if done.stderr.startswith((b"unshare:", b"mount:")):
        pytest.skip(f"this root may not mount: {done.stderr.decode()}")
    assert b"has changed and you have requested strict checking" in done.stdout
    assert legacy.commands == []


async def test_words_of_the_shim_behind_a_banner(legacy: LegacyHost) -> None:
    """The shim's reason is the detail, without the banner."""
    legacy.banner = LONG

    async def shim(process: Process) -> None:
        process.stderr.write(b"no such directory\n")
        process.exit(3)

    legacy.shim = shim
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        with pytest.raises(BootstrapFailed) as caught:
            await paliadin.health()
    assert caught.value.detail == "no such directory"


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (2, "Too many authentication failures", ShimAuthFailed),
        (14, "none left", ShimAuthFailed),
        (11, "river@h: Permission denied (x).", Unreachable),
        (11, "bye\nriver@h: Permission denied (x).", Unreachable),
    ],
)
async def test_disconnected_unsent(
    legacy: LegacyHost, code: int, reason: str, error: type[PaliadinError]
) -> None:
    """A host that ends the connection before it let us in has been sent nothing."""
    legacy.before_auth = lambda connection: connection.disconnect(code, reason)
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        with pytest.raises(error) as caught:
            await paliadin.health()
    assert type(caught.value) is error
    assert reason.rpartition("\n")[2] in caught.value.detail


@asynccontextmanager
async def dropping(host: LegacyHost, times: int, after: bytes = b"") -> AsyncIterator[list[int]]:
    """A way to `host` that first drops this many connections; yields how many were made."""
    target = int(host.environ["PALIADIN_REMOTE_PORT"])
    made: list[int] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.append(target)
        if len(made) <= times:
            writer.write(after)
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(pipe(reader, back), pipe(there, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    host.environ["PALIADIN_REMOTE_PORT"] = str(port)
    host.environ["PALIADIN_KNOWN_HOSTS"] = host.environ["PALIADIN_KNOWN_HOSTS"].replace(
        f":{target} ", f":{port} "
    )
    try:
        yield made
    finally:
        server.close()


@pytest.mark.parametrize("after", [b"", b"Exceeded MaxStartups\r\n"])
async def test_dropped_handshakes(
    legacy: LegacyHost, monkeypatch: pytest.MonkeyPatch, after: bytes
) -> None:
    """A handshake that the host drops is tried again, and what was sent is sent once."""
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    async with (
        dropping(legacy, 3, after) as made,
        paliadin_client.connect(environ=legacy.environ) as paliadin,
    ):
        await paliadin.run_turn(ask())
        assert len(made) == 5
    assert [command.split()[0] for command in legacy.commands] == ["health", "run-turn"]


async def test_dropped_for_good(legacy: LegacyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that drops every handshake is unreachable within a while, and says how."""
    monkeypatch.setattr(module, "_RETRY_S", 0.4)
    async with (
        dropping(legacy, 1000) as made,
        paliadin_client.connect(environ=legacy.environ) as paliadin,
    ):
        with pytest.raises(Unreachable) as caught:
            await paliadin.health()
    assert 1 < len(made) < 10
    assert "kex_exchange_identification" in caught.value.detail


async def test_dropped_until_the_deadline(
    legacy: LegacyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline ends the attempts, with the cause."""
    monkeypatch.setattr(module, "_RETRY_S", 1000)
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 100)
    async with (
        dropping(legacy, 1000) as made,
        paliadin_client.connect(environ=legacy.environ) as paliadin,
    ):
        with pytest.raises(Unreachable) as caught:
            await paliadin.run_turn(ask())
    assert made
    assert "kex_exchange_identification" in caught.value.detail


async def test_handshakes_are_bounded(legacy: LegacyHost) -> None:
    """Of many turns at once, few are in their handshake; those that were let in hold up nobody."""
    inside = anyio.Event()

    async def wait_for_all(_: Seen) -> str:
        if len(legacy.turns) == 12:
            inside.set()
        await inside.wait()
        return ANSWER

    legacy.script = wait_for_all
    # The first waits for the last, however long a busy machine takes for all handshakes.
    environ = legacy.environ | {"PALIADIN_DEADLINE_S": "100"}
    async with (
        paliadin_client.connect(environ=environ) as paliadin,
        anyio.create_task_group() as turns,
    ):
        for _ in range(12):
            turns.start_soon(paliadin.run_turn, ask(User(str(uuid4()))))
    assert 1 < legacy.most_handshakes <= 4
    assert legacy.handshakes == 0


async def test_slow_handshakes(legacy: LegacyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes that hang do not hold up the others for long."""
    monkeypatch.setattr(module, "_SLOW_HANDSHAKE_S", 0.3)
    monkeypatch.setattr(module, "_MAX_HANDSHAKES", 1)
    async with (
        silent() as port,
        paliadin_client.connect(environ=legacy.environ) as paliadin,
        anyio.create_task_group() as hanging,
    ):
        ssh = paliadin._hosts.backend._ssh  # type: ignore[attr-defined]  # of Legacy
        command, position = list(ssh._command), ssh._command.index("-p") + 1
        command[position] = str(port)
        ssh._command, usual = command, ssh._command
        hanging.start_soon(ssh.run, "health")
        await anyio.wait_all_tasks_blocked()
        ssh._command = usual
        await paliadin.health()
        hanging.cancel_scope.cancel()


@asynccontextmanager
async def silent() -> AsyncIterator[int]:
    """A port that takes connections and says nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.slow
async def test_stock_sshd(tmp_path: Path) -> None:
    """OpenSSH's server as it comes drops handshakes over ten; none of many turns fails by that."""
    users = 30
    with openssh_host(tmp_path) as environ:
        async with (
            paliadin_client.connect(environ=environ) as paliadin,
            anyio.create_task_group() as turns,
        ):
            for number in range(users):
                user = User(f"{number:08x}-8f7e-4b59-9a52-1d0a8a5a2a11")
                turns.start_soon(paliadin.run_turn, ask(user))
    ran = (tmp_path / "commands").read_text().splitlines()
    assert len(ran) == len(set(ran)) == 2 * users


@pytest.mark.parametrize("printed", [b"Welcome!\nok\n", b"ok\nbye\n", b"\x1b[2J\nok\n"])
async def test_profile_that_prints(legacy: LegacyHost, printed: bytes) -> None:
    """A host whose profile prints on stdout is reported so: it would print into answers too."""

    async def shim(process: Process) -> None:
        process.stdout.write(printed)
        process.exit(0)

    legacy.shim = shim
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        with pytest.raises(
            ShimError, match=r"profile of its account .* prints on stdout"
        ) as caught:
            await paliadin.run_turn(ask())
    assert not caught.value.retryable
    assert "ok" in caught.value.detail


@pytest.mark.parametrize("removed", ["directory", "key", "known_hosts", "replaced"])
async def test_removed_directory(
    legacy: LegacyHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    """The private directory that somebody removed is made again; one that is not ours is left."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        [private] = tmp_path.iterdir()  # noqa: ASYNC240 - a directory in memory
        if removed in ("directory", "replaced"):
            shutil.rmtree(private)
        else:
            (private / removed).unlink()
        if removed == "replaced":
            private.mkdir()
            for name in ("key", "known_hosts"):
                (private / name).write_text("of somebody else")
        await paliadin.health()
        await paliadin.run_turn(ask())
    left = {path.name for path in tmp_path.rglob("*")}  # noqa: ASYNC240 - likewise
    assert left == ({private.name, "key", "known_hosts"} if removed == "replaced" else set())


async def test_no_room_for_the_directory(
    legacy: LegacyHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be made again, the call says so."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    (tmp_path / "gone").mkdir()
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        shutil.rmtree(tmp_path / "gone")
        with pytest.raises(Unreachable, match="No such file or directory"):
            await paliadin.health()


async def test_no_more_files(legacy: LegacyHost) -> None:
    """A process without a free descriptor cannot start ssh, and says so."""
    async with paliadin_client.connect(environ=legacy.environ) as paliadin:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened = os.dup(0)
        os.close(opened)
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened, hard))
        try:
            with pytest.raises(Unreachable, match="ssh could not be started: Too many open files"):
                await paliadin.health()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await paliadin.health()
