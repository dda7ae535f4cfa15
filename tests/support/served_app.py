"""Apps as their readers start them: under uvicorn's own command, in a directory of their own."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING

from itsdangerous import TimestampSigner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


ROOT = Path(__file__).parents[2]
ANNA = {"user_id": "0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a11", "email": "anna@example.org"}
BEN = {"user_id": "7be1d0aa-5f0e-4c59-8a52-2d0a8a5a2a12", "email": "ben@example.org"}
SESSION_SECRET = "of these tests"


def snippets(document: str) -> dict[str, str]:
    """The blocks of Python of a document, by the comment before each."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall("(?:<!-- ([a-z-]+) -->\n)?```python\n(.*?)```", text, re.DOTALL)
    return {name: str(code) for name, code in found}


def cookie(who: Mapping[str, str] = ANNA) -> dict[str, str]:
    """The header of who is signed in, by the sessions of starlette."""
    session = base64.b64encode(json.dumps(who).encode())
    return {"cookie": f"session={TimestampSigner(SESSION_SECRET).sign(session).decode()}"}


@asynccontextmanager
async def served(
    folder: Path, environ: Mapping[str, str], app: str = "app:app"
) -> AsyncIterator[str]:
    """The app in this folder, until the context ends; yields its URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        # From here on a connection waits in the backlog: nobody has to wait for the start.
        fd = listener.fileno()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "--app-dir", str(folder), "--fd", str(fd), app),
            cwd=folder,
            env={**os.environ, **environ, "SESSION_SECRET": SESSION_SECRET},
            pass_fds=[fd],
            stdout=DEVNULL,
            stderr=DEVNULL,
        )
        port = listener.getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert await process.wait() in (0, -15)
