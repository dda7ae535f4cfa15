"""The secret is rotated as docs/operate.md says, under load, and no turn is lost."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from typing import Self

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from support.operate import block
from support.receiver import Receiver, Reply, Request
from support.sidecar import Sidecar, new_secret
from support.waiting import until


class Paliad:
    """A receiver that answers 401 to what none of its secrets signed."""

    def __init__(self, *secrets: str) -> None:
        self.secrets = secrets
        self.refused = 0
        self.stored: dict[str, bytes] = {}

    def __call__(self, request: Request) -> Reply:
        if not any(_is_signed(request, secret) for secret in self.secrets):
            # `check --ping` asks once with a wrong signature, and wants to be refused.
            self.refused += not request.is_ping
            return Reply(401)
        if not request.is_ping:
            self.stored[request.id] = request.body
        return Reply()


def _is_signed(request: Request, secret: str) -> bool:
    try:
        Webhook(secret).verify(request.body, request.headers)
    except WebhookVerificationError:
        return False
    return True


class Load:
    """Answers, one after the other, until the block ends; at most 50 ahead of the receiver."""

    def __init__(self, host: Sidecar, receiver: Receiver) -> None:
        self._host = host
        self._receiver = receiver
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.written: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._end.wait(0.01):
            if len(self.written) - len(self._receiver.turns) >= 50:
                continue
            turn_id = f"t{len(self.written)}"
            data = self._host.answer(turn_id, f"Antwort {turn_id}")
            digest = hashlib.sha256(data).hexdigest()[:16]
            self.written[turn_id] = f"aichat_paliadin_{turn_id}_1_{digest}"

    def more(self) -> None:
        """Some more were written."""
        enough = len(self.written) + 20
        until("more turns", lambda: len(self.written) >= enough)


def restart(host: Sidecar) -> None:
    assert host.stop() == 0
    host.start()


def type_in(host: Sidecar, name: str) -> None:
    """Run a block of docs/operate.md on this host's secret; the restart is ours."""
    text = block(name).replace("/etc/paliadin", str(host.base))
    before, check = text.split("systemctl restart paliadin-sidecar\n")
    subprocess.run(["bash", "-euo", "pipefail", "-c", before], check=True)
    restart(host)
    assert host.command(*check.split()[1:]).returncode == 0


@pytest.mark.slow
def test_a_rotation_under_load(host: Sidecar, receiver: Receiver) -> None:
    """Every turn arrives, under one id, and at no moment is one refused."""
    file = host.base / "callback-secret"
    file.write_text(f"{host.secret}\n")
    file.chmod(0o600)
    del host.environ["PALIADIN_CALLBACK_SECRET"]
    host.environ["PALIADIN_CALLBACK_SECRET_FILE"] = str(file)
    receiver.behaviour = paliad = Paliad(host.secret)
    host.start()
    with Load(host, receiver) as load:
        load.more()
        type_in(host, "rotate: both")
        load.more()
        new, old = file.read_text().split()
        assert old == host.secret
        paliad.secrets = (new,)
        load.more()
        type_in(host, "rotate: drop")
        load.more()
    assert (file.read_text(), file.stat().st_mode & 0o777) == (f"{new}\n", 0o600)
    until("all of them", lambda: paliad.stored.keys() >= set(load.written.values()))
    assert paliad.stored.keys() == set(load.written.values())
    assert paliad.refused == 0
    assert not host.events("receiver.paused")
    Webhook(new).verify(receiver.turns[-1].body, receiver.turns[-1].headers)
    assert not _is_signed(receiver.turns[-1], old)


def test_a_rotation_in_the_wrong_order(host: Sidecar, receiver: Receiver) -> None:
    """The receiver switched first: everything waits for the sidecar, and nothing is given up."""
    old, new = host.secret, new_secret()
    receiver.behaviour = paliad = Paliad(new)
    host.start()
    with Load(host, receiver) as load:
        host.wait_event("receiver.paused")
        host.environ["PALIADIN_CALLBACK_SECRET"] = f"{new} {old}"
        restart(host)
    until("all of them", lambda: paliad.stored.keys() >= set(load.written.values()))
    assert paliad.stored.keys() == set(load.written.values())
    assert not host.events("delivery.dead")
