"""Measures how many callbacks a second an app takes: beside a bare route, in memory and on disk."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from hashlib import sha256
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from paliadin_contract.callback import Answer, TurnCompleted, encode
from paliadin_contract.ids import webhook_id
from paliadin_contract.signature import Keys

if TYPE_CHECKING:
    from collections.abc import Sequence

BARE, BARE_SQLITE = "bare route, in memory", "bare route with one SQLite write"
INBOX, INBOX_SQLITE = "the inbox, in memory", "the inbox, in SQLite"
_KINDS = {
    BARE: "bare", BARE_SQLITE: "bare-sqlite", INBOX: "inbox", INBOX_SQLITE: "inbox-sqlite",
}  # fmt: skip
_SENDERS = 8
_WARM = 200
_TEXT = "Die Frist läuft am 3. März ab. " * 130  # 4 KB


def callbacks_per_s(disk: Path | None, *, rounds: int, callbacks: int) -> dict[str, list[float]]:
    """Of each kind: callbacks a second by 8 senders, a figure for each round.

    Each has its own process on a database of its own, and each round asks all of them in turn.
    """
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, kind in _KINDS.items():
            found.setdefault(name, []).append(_one(kind, secret, disk, callbacks))
    return found


def _one(kind: str, secret: str, disk: Path | None, callbacks: int) -> float:
    requests = [request(Keys([secret]), number) for number in range(_WARM + callbacks)]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=disk) as folder:
        app = subprocess.Popen(
            [sys.executable, "-m", "bench.inbox_app", kind, folder],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PALIADIN_CALLBACK_SECRET": secret},
            stdout=subprocess.PIPE,
        )
        try:
            assert app.stdout is not None
            port = int(app.stdout.readline())
            return asyncio.run(send([port], requests[:_WARM], requests[_WARM:]))
        finally:
            app.kill()
            app.communicate()


def turn_id(number: int) -> str:
    """The id of the turn of this number."""
    return f"00000000-0000-4000-8000-{number:012}"


def request(keys: Keys, number: int) -> bytes:
    """The HTTP request of the callback of a turn of this number, signed now."""
    now, file = datetime.now(UTC), _TEXT.encode()
    digest = sha256(file).hexdigest()
    turn = turn_id(number)
    data = Answer(
        turn_id=turn, submitted_turn_id=None, revision=1, backend="aichat", persona="paliadin",
        host="mriver", user_id=None, response=_TEXT, bytes=len(file), sha256=digest, lossy=False,
        completed_at=now,
    )  # fmt: skip
    body = encode(TurnCompleted(timestamp=now, data=data))
    headers = keys.sign(webhook_id("aichat", "paliadin", turn, 1, digest), body, now)
    lines = [
        "POST /callback HTTP/1.1", "host: 127.0.0.1", "content-type: application/json",
        f"content-length: {len(body)}", *(f"{name}: {text}" for name, text in headers.items()),
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def send(ports: Sequence[int], warm: list[bytes], requests: list[bytes]) -> float:
    """How many requests a second 8 senders bring to processes at these ports of loopback.

    Args:
        ports: each sender keeps a connection to one of them.
        warm: what is sent before, and does not count.
        requests: what is counted; each must be answered with 204.
    """
    connections = [
        await asyncio.open_connection("127.0.0.1", port) for port in islice(cycle(ports), _SENDERS)
    ]

    async def send_all(requests: list[bytes]) -> None:
        left = iter(requests)

        async def send_some(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for request in left:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 204 "):
                    raise RuntimeError(head.decode("latin-1"))

        async with asyncio.TaskGroup() as tasks:
            for connection in connections:
                tasks.create_task(send_some(*connection))

    await send_all(warm)
    began = time.monotonic()
    await send_all(requests)
    took_s = time.monotonic() - began
    for _, writer in connections:
        writer.close()
    return len(requests) / took_s
