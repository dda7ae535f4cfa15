"""The client's side of the promise, with apps that are processes and can be killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.app_process import database
from support.client_hosts import Sidecar as Sender
from support.sidecar import Sidecar
from support.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio
TESTS = Path(__file__).parents[1]


class Apps:
    """Processes of one app: one folder, one port for each."""

    def __init__(self, folder: Path, secret: str) -> None:
        self.folder, self.secret = folder, secret
        self.stack = ExitStack()
        self.listeners: dict[int, socket.socket] = {}

    def listen(self) -> int:
        """A port that waits for an app, also while there is none."""
        listener = self.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        port: int = listener.getsockname()[1]
        self.listeners[port] = listener
        return port

    def start(self, port: int, *how: str) -> subprocess.Popen[bytes]:
        fd = self.listeners[port].fileno()
        app = subprocess.Popen(
            [sys.executable, "-m", "support.app_process", str(fd), str(self.folder), *how],
            cwd=TESTS,
            env={**os.environ, "PALIADIN_CALLBACK_SECRET": self.secret},
            pass_fds=[fd],
        )
        self.stack.callback(app.wait, PATIENCE_S)
        self.stack.callback(app.kill)
        return app

    def stored(self) -> list[str]:
        """The turns that were stored, as often as they were."""
        with closing(database(self.folder)) as db:
            return [turn for (turn,) in db.execute("SELECT id FROM stored ORDER BY rowid")]

    def turns(self) -> dict[str, str]:
        """What the app has in the end."""
        with closing(database(self.folder)) as db:
            return dict(db.execute("SELECT id, response FROM turn"))


@pytest.fixture
def apps(tmp_path: Path, secret: str) -> Iterator[Apps]:
    made = Apps(tmp_path, secret)
    with made.stack:
        yield made


@pytest.fixture
def port(apps: Apps) -> int:
    return apps.listen()


@pytest.fixture
def pushing(apps: Apps, port: int, tmp_path: Path, secret: str) -> Iterator[Sidecar]:
    """The real sidecar, which pushes to that port."""
    url = f"http://127.0.0.1:{port}/"
    sidecar = Sidecar(
        tmp_path, url, PALIADIN_CALLBACK_SECRET=secret, PALIADIN_CALLBACK_TIMEOUT_S="1"
    )
    sidecar.make_roots()
    sidecar.start()
    yield sidecar
    sidecar.close()


def test_killed_between_effect_and_acknowledgement(apps: Apps, port: int, pushing: Sidecar) -> None:
    """What the app stored and could not acknowledge comes again, and is there once."""
    app = apps.start(port, "dies")
    content = pushing.answer("t1")
    assert app.wait(PATIENCE_S) == -signal.SIGKILL
    assert apps.stored() == ["t1"]
    apps.start(port)
    pushing.wait_event("delivery.delivered", turn_id="t1")
    assert apps.stored() == ["t1", "t1"]
    assert apps.turns() == {"t1": content.decode()}


def test_slower_than_the_sidecars_deadline(apps: Apps, port: int, pushing: Sidecar) -> None:
    """A turn that is stored for longer than an attempt takes is stored once, and acknowledged."""
    os.mkfifo(apps.folder / "go")
    apps.start(port, "rests")
    content = pushing.answer("t1")
    pushing.wait_event("delivery.attempted", turn_id="t1", error="timeout")
    pushing.wait_event("delivery.attempted", turn_id="t1", status=503)
    (apps.folder / "go").write_bytes(b"")
    pushing.wait_event("delivery.delivered", turn_id="t1")
    assert apps.stored() == ["t1"]
    assert apps.turns() == {"t1": content.decode()}


@pytest.mark.parametrize("label", ["mriver", "mlake"])
def test_secret_of_a_host(tmp_path: Path, secret: str, label: str) -> None:
    """What a real sidecar signs is taken where the secret is bound to its label, and only there."""
    apps = Apps(tmp_path, f"mriver={secret}")
    with apps.stack:
        port = apps.listen()
        apps.start(port)
        sidecar = Sidecar(
            *(tmp_path, f"http://127.0.0.1:{port}/"),
            PALIADIN_CALLBACK_SECRET=secret,
            PALIADIN_HOST_LABEL=label,
        )
        sidecar.make_roots()
        sidecar.start()
        apps.stack.callback(sidecar.close)
        sidecar.answer("t1")
        if label == "mriver":
            sidecar.wait_event("delivery.delivered", turn_id="t1")
        else:
            sidecar.wait_event("delivery.attempted", turn_id="t1", status=401)
        assert apps.stored() == ["t1"] * (label == "mriver")


async def test_two_processes(apps: Apps, port: int) -> None:
    """Whichever of two processes is pushed to, how often and how fast, a turn is stored once."""
    ports = [port, apps.listen()]
    for each in ports:
        apps.start(each)
    turns = [f"t{n}" for n in range(20)]
    senders = [Sender(f"http://127.0.0.1:{each}/", apps.secret) for each in ports]
    pushes = [(sender, turn) for sender in senders for turn in turns for _ in range(3)]
    random.Random(1).shuffle(pushes)
    async with senders[0].http, senders[1].http:
        found = await asyncio.gather(*(sender.push(turn) for sender, turn in pushes))
        assert set(found) <= {204, 503}
        assert [await sender.push(turn) for sender, turn in pushes] == [204] * len(pushes)
    assert sorted(apps.stored()) == sorted(turns)


async def test_one_of_two_processes_is_killed(apps: Apps, port: int) -> None:
    """What one process stored when it was killed, the other stores again, and only once."""
    other = apps.listen()
    doomed = apps.start(port, "dies")
    apps.start(other)
    for url in (port, other, other):
        sender = Sender(f"http://127.0.0.1:{url}/", apps.secret)
        async with sender.http:
            if url == port:
                push = asyncio.ensure_future(sender.push("t1"))
                assert await asyncio.to_thread(doomed.wait, PATIENCE_S) == -signal.SIGKILL
                await asyncio.gather(push, return_exceptions=True)
            else:
                assert await sender.push("t1") == 204
    assert apps.stored() == ["t1", "t1"]
    assert list(apps.turns()) == ["t1"]
