"""The project's own receivers, rehearsed at full size."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyio import to_thread
from support import paliad
from support.callbacks import SECRET
from support.client_environments import AICHAT
from support.example_receivers import command, running
from support.served_app import served
from support.sidecar import COMMAND, Sidecar

if TYPE_CHECKING:
    from support.postgresql import PostgreSQL

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
INBOX = """
import os
from paliadin_client import Inbox

async def on_turn(turn):
    pass

app = Inbox(os.environ["PALIADIN_CALLBACK_SECRET"].split(), on_turn=on_turn, store=%s)
"""


def rehearsed(host: Sidecar, url: str) -> dict[str, str]:
    """Which rules are broken or could not be played, and why."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [COMMAND, "rehearse", "--json", "--url", url],
        env=host.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(found) > 20
    bad = {"breaks", "untried"}
    wrong = {each["rule"]: each["message"] for each in found if each["level"] in bad}
    assert done.returncode == (1 if wrong else 0)
    return wrong


@pytest.fixture
def host(tmp_path: Path) -> Sidecar:
    return Sidecar(tmp_path, "http://127.0.0.1:1/")


def test_go(host: Sidecar, tmp_path: Path) -> None:
    """The one with files."""
    with running(command("go", tmp_path), tmp_path / "store", host.secret) as receiver:
        assert rehearsed(host, receiver.url) == {}


def test_paliad(host: Sidecar, database: PostgreSQL, binary: str, tmp_path: Path) -> None:
    """The one with PostgreSQL, in which none of these turns is."""
    host.environ["PALIADIN_CALLBACK_SECRET"] = SECRET
    with paliad.running(database, [binary], tmp_path / "log") as running_paliad:
        assert rehearsed(host, running_paliad.receiver.url) == {}


async def test_the_app(host: Sidecar, tmp_path: Path) -> None:
    """The example with the client and its inbox."""
    (tmp_path / "app.py").write_text((ROOT / "examples/app.py").read_text())
    environ = AICHAT | {"PALIADIN_CALLBACK_SECRET": host.secret}
    async with served(tmp_path, environ) as url:
        assert await to_thread.run_sync(rehearsed, host, f"{url}/paliadin/callback") == {}


@pytest.mark.parametrize("store", ["None", "'inbox.sqlite3'"])
@pytest.mark.parametrize("bound", ["", "mriver="], ids=["any host", "a host's secret"])
async def test_the_inbox_alone(host: Sidecar, tmp_path: Path, store: str, bound: str) -> None:
    """With each of its own stores, and with a secret that is good for one host alone."""
    (tmp_path / "app.py").write_text(INBOX.replace("%s", store))
    environ = {"PALIADIN_CALLBACK_SECRET": bound + host.secret}
    async with served(tmp_path, environ) as url:
        assert await to_thread.run_sync(rehearsed, host, f"{url}/") == {}
