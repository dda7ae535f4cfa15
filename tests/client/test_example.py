"""The apps of `examples/app.py` and of the README, run as a newcomer runs them."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING

import anyio
import httpx2
import pytest
from httpx2 import AsyncHTTPTransport
from support.client_hosts import ANSWER, Sidecar

from paliadin_contract.trailer import split

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.client_hosts import Host, Seen

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


def readme_app() -> str:
    """The README's app: its one block of Python."""
    (block,) = re.findall("```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return str(block)


@pytest.fixture(params=["example", "readme"])
async def app(
    request: pytest.FixtureRequest, host: Host, secret: str, tmp_path: Path
) -> AsyncIterator[str]:
    """An app under uvicorn's own command, in a directory of its own."""
    (tmp_path / "app.py").write_text(
        readme_app() if request.param == "readme" else (ROOT / "examples/app.py").read_text()
    )
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "--app-dir", str(tmp_path), "--port", str(port)),
        "app:app",
        cwd=tmp_path,
        env={**os.environ, **host.environ, "PALIADIN_CALLBACK_SECRET": secret},
        stdout=DEVNULL,
        stderr=DEVNULL,
    )
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    assert await process.wait() in (0, -15)


def test_fifteen_lines() -> None:
    """The README's app is fifteen lines, as a newcomer counts them."""
    assert len([line for line in readme_app().splitlines() if line]) == 15


async def test_example(host: Host, app: str, secret: str, tmp_path: Path) -> None:
    """A question to the app is answered by the push to its inbox."""

    async def never(_: Seen) -> str:
        await anyio.sleep_forever()
        raise AssertionError

    host.script = never
    question = {"user_id": "0f5c2a44-8f7e-4b59-9a52-1d0a8a5a2a11", "message": "Frage?"}
    # Until uvicorn listens its port refuses: the transport tries again.
    transport = AsyncHTTPTransport(retries=8, trust_env=False)
    async with httpx2.AsyncClient(transport=transport, timeout=30) as http:
        answer = asyncio.ensure_future(http.post(f"{app}/ask", json=question))
        seen = await host.next_turn()
        sidecar = Sidecar(f"{app}/paliadin/callback", secret)
        async with sidecar.http:
            assert await sidecar.push(seen.turn_id) == 204
        # The host never answers: this came with the push.
        assert split(ANSWER)[0] in (await answer).text
    assert (tmp_path / "inbox.sqlite3").exists()
