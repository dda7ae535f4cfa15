"""Runs commands on the host by the system's ssh, with one key, one known host and no other way."""

from __future__ import annotations

import fcntl
import math
import os
import random
import shutil
import tempfile
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from paliadin_client import errors
from paliadin_client.backend import MAX_ANSWER_BYTES, answers_within
from paliadin_client.credentials import credential_problems, unescaped
from paliadin_client.sshlog import SshLog, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from anyio.abc import ByteReceiveStream, Process

    from paliadin_client.settings import LegacySettings


#: What is asked of ssh, and why.
_CONFIG = Path(__file__).with_name("ssh_config")
#: A stock sshd (`MaxStartups 10:30:100`) drops others at random while it has ten handshakes, and
#: other processes of ours have theirs.
_MAX_HANDSHAKES = 4
#: After so many seconds a handshake no longer counts, so that one that hangs delays no other.
_SLOW_HANDSHAKE_S = 10.0
#: For how long, in seconds, a dropped handshake is tried again: less than a health check may take.
_RETRY_S = 15.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_MAX_STDERR_BYTES = 4096


@asynccontextmanager
async def open_ssh(settings: LegacySettings) -> AsyncIterator[Ssh]:
    """Ssh to that host, until the context ends; the key lies in a private directory meanwhile.

    Raises:
        ConfigError: there is no room for the key, or key or known hosts will not do.
    """
    files = {"key": unescaped(settings.key), "known_hosts": unescaped(settings.known_hosts)}
    with closing(_PrivateFiles(files)) as private:
        try:
            problems = await credential_problems(str(private.directory()), settings)
        except OSError as exc:
            raise errors.ConfigError(
                [f"no directory for ssh's key (TMPDIR): {exc.strerror}"]
            ) from None
        if problems:
            raise errors.ConfigError(problems)
        destination = f"{settings.user}@{settings.host}" if settings.user else f"{settings.host}"
        yield Ssh(private, settings.port, destination)


class Ssh:
    """Runs commands on the host."""

    def __init__(self, private: _PrivateFiles, port: int, destination: str) -> None:
        self._private = private
        self._command = (
            *("ssh", "-F", str(_CONFIG), "-p", str(port)),
            # ssh closes all that it inherits but three descriptors. So it gets the log's end as its
            # stdin and writes there (-E), and the command on the host gets an empty stdin (-n).
            *("-E", "/dev/fd/0", "-n", destination, "--"),
        )
        self._handshakes = anyio.Semaphore(_MAX_HANDSHAKES)

    async def run(self, *command: str, limit_s: float = math.inf) -> bytes:
        """What the command prints; a handshake that the host drops is tried again.

        Args:
            command: goes to the host as one string, its words separated by blanks.
            limit_s: how long ssh may take, in seconds; what waits for others is not counted.

        Raises:
            Unreachable: nothing was sent.
            ConnectionLost: the connection went away after something was sent.
            PaliadinError: what else the exit status means.
        """
        pause, until = _FIRST_PAUSE_S, anyio.current_effective_deadline()
        while True:
            log = SshLog()
            try:
                return await self._run(command, log, limit_s)
            except errors.PaliadinError:
                now = anyio.current_time()
                until = min(until, now + _RETRY_S)  # counted from the first
                # Random, since those that were dropped together would otherwise return together.
                wait = pause * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
                if log.stage is not Stage.DROPPED or now + wait > until:
                    raise
            await anyio.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _run(self, command: Sequence[str], log: SshLog, limit_s: float) -> bytes:
        await self._handshakes.acquire()
        with ExitStack() as slot, answers_within(limit_s, "the shim"):
            slot.callback(self._handshakes.release)
            return await self._read(command, log, slot)

    async def _read(self, command: Sequence[str], log: SshLog, slot: ExitStack) -> bytes:
        stdout, stderr = bytearray(), bytearray()
        async with self._started(command) as (process, log_read):
            assert process.stdout is not None
            assert process.stderr is not None
            async with anyio.create_task_group() as reading:
                reading.start_soon(_release_slot, slot, authenticated := anyio.Event())
                reading.start_soon(_follow_log, log_read, log, authenticated)
                reading.start_soon(_keep_end, process.stderr, stderr)
                async for chunk in process.stdout:
                    stdout += chunk
                    if len(stdout) > MAX_ANSWER_BYTES:
                        reading.cancel_scope.cancel()
                        break
            if len(stdout) > MAX_ANSWER_BYTES:
                raise errors.ShimError(f"the shim printed more than {MAX_ANSWER_BYTES} bytes")
            status = await process.wait()
        if status:
            said = stderr.decode(errors="replace")
            raise errors.error_from_exit(status, log.stage, log.cause, said)
        return bytes(stdout)

    @asynccontextmanager
    async def _started(self, command: Sequence[str]) -> AsyncIterator[tuple[Process, int]]:
        # ssh, and where its log is read. When the context ends, ssh has ended and was reaped.
        with ExitStack() as opened:
            try:
                log_read, log_write = os.pipe()
                opened.callback(os.close, log_read)
                with ExitStack() as ours:
                    ours.callback(os.close, log_write)
                    process = await anyio.open_process(
                        [*self._command, *command], stdin=log_write, cwd=self._private.directory()
                    )
            except OSError as exc:
                raise errors.Unreachable(f"ssh could not be started: {exc.strerror}") from None
            try:
                yield process, log_read
            finally:
                if process.returncode is None:
                    process.kill()
                with anyio.CancelScope(shield=True):
                    await process.aclose()


async def _release_slot(slot: ExitStack, authenticated: anyio.Event) -> None:
    with anyio.move_on_after(_SLOW_HANDSHAKE_S):
        await authenticated.wait()
    slot.close()


async def _follow_log(descriptor: int, log: SshLog, authenticated: anyio.Event) -> None:
    written = b"."
    while written:
        await anyio.wait_readable(descriptor)
        written = os.read(descriptor, 65_536)
        log.feed(written)
        if log.stage is Stage.AUTHENTICATED or not written:
            authenticated.set()


async def _keep_end(stream: ByteReceiveStream, kept: bytearray) -> None:
    # All of it is read, since its writer would wait for us otherwise. The cause stands at its end.
    async for chunk in stream:
        kept += chunk
        del kept[:-_MAX_STDERR_BYTES]


class _PrivateFiles:
    """Files in a directory of our own, which is made again where somebody removed it."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files
        self._path = Path()
        self._descriptor = -1

    def close(self) -> None:
        """Remove them."""
        if self._is_ours():
            shutil.rmtree(self._path, ignore_errors=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def directory(self) -> Path:
        """Where the files are now.

        ssh runs there, so that its options name files without any character to be quoted.

        Raises:
            OSError: they could not be written.
        """
        if self._is_ours() and all((self._path / name).exists() for name in self._files):
            return self._path
        self.close()
        self._path = Path(tempfile.mkdtemp(prefix="paliadin-"))
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # systemd-tmpfiles ages /tmp, but leaves alone what somebody holds a lock on.
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            for name, contents in self._files.items():
                (self._path / name).touch(mode=0o600)
                (self._path / name).write_text(contents)
        except BaseException:
            self.close()
            raise
        return self._path

    def _is_ours(self) -> bool:
        # A name in /tmp that got free may be anybody's by now, and so the known hosts in it.
        try:
            return self._descriptor >= 0 and os.path.samestat(
                os.fstat(self._descriptor), self._path.stat(follow_symlinks=False)
            )
        except FileNotFoundError:
            return False
