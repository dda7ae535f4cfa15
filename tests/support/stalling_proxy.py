"""A proxy between an app and a PostgreSQL, in a process of its own that can be stopped.

    python -m support.stalling_proxy UPSTREAM

It prints its port, and hands on what comes to that port of loopback to the socket UPSTREAM. While
it is stopped (SIGSTOP) all its connections stay open, and nothing passes: no driver sees that. By
SIGUSR1 it does so for ever with the connections that it has, and goes on with new ones.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgresql import PostgreSQL


class StallingProxy:
    """One that is running."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port

    def url(self, database: str) -> str:
        """The connection string of a database, through this proxy."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def forget(self) -> None:
        """Hand nothing on any more of the connections that there are, without closing them."""
        self._process.send_signal(signal.SIGUSR1)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Nothing passes, until the block ends."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


@contextmanager
def stalling_proxy(server: PostgreSQL) -> Iterator[StallingProxy]:
    """One in front of this server."""
    process = subprocess.Popen(
        [sys.executable, "-m", "support.stalling_proxy", str(server.home / ".s.PGSQL.5432")],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield StallingProxy(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def _main(upstream: str) -> None:
    pumps: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            above, below = await asyncio.open_unix_connection(upstream)
        except OSError:
            writer.close()
            return
        pumps.add(asyncio.create_task(_hand_on(reader, below)))
        pumps.add(asyncio.create_task(_hand_on(above, writer)))

    def forget() -> None:
        forgotten.update(pumps)

    async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if asyncio.current_task() in forgotten:
                await asyncio.Event().wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    forgotten: set[asyncio.Task[None]] = set()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, forget)
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
