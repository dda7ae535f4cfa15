"""The legacy backend: a shim behind the host's `authorized_keys`, spoken to by the system's ssh."""

from __future__ import annotations

import base64
import fcntl
import os
import tempfile
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING, ClassVar

import anyio

from paliadin_client.backend import MAX_ANSWER_BYTES, Reply, parse_uuid, user8
from paliadin_client.errors import (
    BadRequest,
    ConfigError,
    MessageTooLong,
    NotConfigured,
    ShimError,
    Unreachable,
    of_exit,
)
from paliadin_client.text import one_line
from paliadin_contract.trailer import TAIL_BYTES, is_whole, split

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from anyio.abc import ByteReceiveStream

    from paliadin_client.backend import TurnRequest, User
    from paliadin_client.settings import LegacySettings

__all__ = ["Legacy", "open_legacy"]

#: The kernel's limit for one string of argv or environ, less its final NUL.
_ARGUMENT_BYTES = 131_071
#: sshd hands the whole command to the shim in one such string.
_ORIGINAL_COMMAND = "SSH_ORIGINAL_COMMAND="
_MAX_STDERR_BYTES = 4096
_HEALTH_S = 20.0
_RESET_S = 30.0


@asynccontextmanager
async def open_legacy(settings: LegacySettings) -> AsyncIterator[Legacy]:
    """The shim, until the context ends; the key lies in a private directory meanwhile."""
    if settings.host is None:
        yield Legacy([], "", settings.prefix)
        return
    with ExitStack() as kept:
        try:
            private = kept.enter_context(tempfile.TemporaryDirectory(prefix="paliadin-"))
            kept.enter_context(_locked(private))
            _write_private(Path(private, "key"), settings.key)
            _write_private(Path(private, "known_hosts"), settings.known_hosts)
        except OSError as exc:
            raise ConfigError([f"no directory for ssh's key (TMPDIR): {exc.strerror}"]) from None
        ssh = [
            *("ssh", "-F", "/dev/null", "-i", "key", "-p", str(settings.port)),
            *("-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=known_hosts"),
            *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"),
            *("-o", "ConnectTimeout=10"),
            *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"),
            *(f"{settings.user}@{settings.host}" if settings.user else settings.host, "--"),
        ]
        yield Legacy(ssh, private, settings.prefix)


class Legacy:
    """The shim's verbs as a `Backend`."""

    name: ClassVar[str] = "legacy"
    says_more: ClassVar[bool] = False
    health_per_pane: ClassVar[bool] = True

    def __init__(self, ssh: Sequence[str], directory: str, prefix: str) -> None:
        self._ssh = ssh
        # ssh runs here, so that its options name files without any character to be quoted.
        self._directory = directory
        self._prefix = prefix

    def pane(self, user: User) -> str:
        """The session: `<prefix>-<userid8>`."""
        return f"{self._configured()}-{user8(user)}"

    def prepare(self, request: TurnRequest, primer: str) -> Callable[[], Awaitable[Reply]]:
        """The submit; refused are a turn id that is no UUID and a message that does not fit."""
        session = self.pane(request.user)
        # Written as the shim reads it: it is a file's name there, and the push's here.
        if parse_uuid(request.turn_id) is None:
            raise BadRequest("the turn id is no UUID")
        line = f"{primer} {one_line(request.message)}".lstrip()
        message = base64.b64encode(line.encode()).decode()
        verb = ("run-turn", session, request.turn_id)
        limit = _ARGUMENT_BYTES - len(f"{_ORIGINAL_COMMAND}{' '.join(verb)} ")
        if len(message) > limit:
            raise MessageTooLong(len(message), limit)
        return partial(self._turn, *verb, message)

    async def health(self, user: User | None, /) -> None:
        """`health <session>`; without a user the session is the bare prefix."""
        session = self.pane(user) if user else self._configured()
        if (await self._within(_HEALTH_S, "health", session)).strip() != b"ok":
            raise ShimError("the shim's health check did not print ok", retryable=True)

    async def reset(self, user: User) -> None:
        """`reset <session>`."""
        await self._within(_RESET_S, "reset", self.pane(user))

    def _configured(self) -> str:
        if not self._ssh:
            raise NotConfigured("PALIADIN_REMOTE_HOST is not set")
        return self._prefix

    async def _turn(self, *command: str) -> Reply:
        answer = await self._call(*command)
        text, trailer = split(answer.decode(errors="replace"))
        return Reply(text=text, trailer=trailer, whole=is_whole(answer[-TAIL_BYTES:]))

    async def _within(self, seconds: float, *command: str) -> bytes:
        try:
            with anyio.fail_after(seconds):
                return await self._call(*command)
        except TimeoutError:
            raise Unreachable(f"the shim did not answer within {seconds:g} s") from None

    async def _call(self, *command: str) -> bytes:
        stdout, stderr = bytearray(), bytearray()
        try:
            process = await anyio.open_process(
                [*self._ssh, *command], stdin=DEVNULL, cwd=self._directory
            )
        except OSError as exc:
            raise Unreachable(f"ssh could not be started: {exc.strerror}") from None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with anyio.create_task_group() as reading:
                reading.start_soon(_drain, process.stderr, stderr)
                async for chunk in process.stdout:
                    stdout += chunk
                    if len(stdout) > MAX_ANSWER_BYTES:
                        reading.cancel_scope.cancel()
                        break
            if len(stdout) > MAX_ANSWER_BYTES:
                raise ShimError(f"the shim printed more than {MAX_ANSWER_BYTES} bytes")
            status = await process.wait()
        finally:
            # However we leave, ssh ends, and is reaped.
            if process.returncode is None:
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.aclose()
        if status:
            raise of_exit(status, stderr.decode(errors="replace"))
        return bytes(stdout)


async def _drain(stream: ByteReceiveStream, kept: bytearray) -> None:
    # To the end, else its writer would wait for us.
    async for chunk in stream:
        kept += chunk[: _MAX_STDERR_BYTES - len(kept)]


def _write_private(path: Path, contents: str) -> None:
    # An environment file holds a line's end as \n, and often lacks the last one.
    path.touch(mode=0o600)
    path.write_text(contents.replace("\\n", "\n").replace("\r\n", "\n").strip() + "\n")


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    # systemd-tmpfiles ages /tmp, but leaves alone what somebody holds a lock on.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)
