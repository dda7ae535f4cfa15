"""The example receivers against the real sidecar."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from support.example_receivers import LANGUAGES, command, running, stored
from support.sidecar import TRAILER, Sidecar, new_secret
from support.tokens import unsigned_token
from support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_failures_and_revisions_are_stored(language: str, tmp_path: Path) -> None:
    """What the sidecar pushes ends in the receiver's store, whole, also over its restart."""
    (tmp_path / "build").mkdir()
    start = command(language, tmp_path / "build")
    store, secret = tmp_path / "store", new_secret()
    with ExitStack() as stack:
        with running(start, store, secret) as receiver:
            host = Sidecar(tmp_path, receiver.url, PALIADIN_CALLBACK_SECRET=secret)
            stack.callback(host.close)
            host.make_roots()
            host.start()
            (host.aichat / "t1.jwt").write_text(unsigned_token(jti="asked-1", sub="user-1"))
            host.answer("t1", "Grüße, 你好 👋")
            host.answer("t2", "eins")
            (host.legacy / "t3.txt").symlink_to("/nowhere")
            for turn in ("t1", "t2", "t3"):
                host.wait_event("delivery.delivered", turn_id=turn)
        host.answer("t2", "zwei")
        host.wait_event("delivery.attempted", turn_id="t2", error="connect")
        with running(start, store, secret, receiver.port):
            host.wait_event("delivery.delivered", turn_id="t2", revision=2)
            assert host.command("check", "--ping").returncode == 0
            host.command("replay", "t1")
            host.wait_event("delivery.delivered", count=2, turn_id="t1")
            until("three turns", lambda: len(stored(store)) == 3)
            found = stored(store)
    assert found["t1"].response == "Grüße, 你好 👋" + TRAILER
    assert found["t1"].submitted_turn_id == "asked-1"
    assert (found["t2"].revision, found["t2"].response) == (2, "zwei" + TRAILER)
    assert (found["t3"].response, found["t3"].reason) == (None, "untrusted")


def test_a_receiver_that_is_restored_from_a_backup(tmp_path: Path) -> None:
    """It has all again after a replay, also what had waited since before the backup, once each."""
    start = command("python", tmp_path)
    store, backup, secret = tmp_path / "store", tmp_path / "backup", new_secret()
    with ExitStack() as stack:
        with running(start, store, secret) as receiver:
            host = Sidecar(tmp_path, receiver.url, PALIADIN_CALLBACK_SECRET=secret)
            stack.callback(host.close)
            host.make_roots()
            host.start()
            host.answer("before")
            host.wait_event("delivery.delivered", turn_id="before")
        host.answer("waits")
        host.wait_event("delivery.attempted", turn_id="waits", error="connect")
        with closing(sqlite3.connect(store)) as there, closing(sqlite3.connect(backup)) as copy:
            there.backup(copy)
        made_at = datetime.now(UTC).isoformat()
        with running(start, store, secret, receiver.port):
            host.answer("after")
            for turn in ("waits", "after"):
                host.wait_event("delivery.delivered", turn_id=turn)
            before = stored(store)
        for path in tmp_path.glob("store*"):
            path.unlink()
        backup.rename(store)
        with running(start, store, secret, receiver.port):
            assert set(stored(store)) == {"before"}
            assert host.command("replay", "--since", made_at).stdout == "2 will be sent again\n"
            until("what was lost", lambda: stored(store) == before)
