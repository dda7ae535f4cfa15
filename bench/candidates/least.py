"""The least that Python can do with the libraries of ours, for measurements alone.

    least.py ROOT PORT DIRECTORY [no-commits]

asyncinotify, one row committed by SQLite in a thread, one signed request by aiohttp: no rules for
what is complete, no event, no retry.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import sys
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import anyio
import msgspec
from asyncinotify import Inotify, Mask
from standardwebhooks import Webhook

_WEBHOOK = Webhook(secrets.token_bytes(32))


async def main() -> None:
    """Push until killed."""
    root, url, own = Path(sys.argv[1]), f"http://127.0.0.1:{sys.argv[2]}/", sys.argv[3]
    database = sqlite3.connect(f"{own}/least.db", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(f"PRAGMA synchronous = {'OFF' if sys.argv[4:] else 'FULL'}")
    database.execute("CREATE TABLE body (bytes BLOB)")

    one = anyio.CapacityLimiter(1)

    async def push(path: Path) -> None:
        body = msgspec.json.encode({"turn_id": path.stem, "response": path.read_text("utf-8")})  # noqa: ASYNC240 - a thread would be more than the least
        await anyio.to_thread.run_sync(
            database.execute, "INSERT INTO body VALUES (?)", (body,), limiter=one
        )
        now = datetime.now(UTC)
        headers = {
            "webhook-id": path.stem,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": _WEBHOOK.sign(path.stem, now, body.decode()),
        }
        async with session.post(url, data=body, headers=headers):
            pass

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        with Inotify(cache_size=256) as notify:
            notify.add_watch(root, Mask.CLOSE_WRITE | Mask.MOVED_TO)
            async for event in notify:
                if event.path is not None and event.path.suffix == ".txt":
                    tasks.create_task(push(event.path))


asyncio.run(main())
