"""A damaged outbox under the real daemon: it stops and says what to type, and nothing is lost."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import anyio
import pytest
from support.receiver import Receiver, Reply
from support.slow import slow
from support.waiting import PATIENCE_S, until

from paliadin_sidecar import daemon
from paliadin_sidecar.delivery.sender import Sender
from paliadin_sidecar.errors import Damaged
from paliadin_sidecar.intake import service as intake_service
from paliadin_sidecar.outbox import event_rows
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.records import Outcome
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.sidecar import Sidecar

    from paliadin_sidecar.outbox.records import Event

PAGE = 4096


@pytest.fixture
def stopped(host: Sidecar, receiver: Receiver) -> Sidecar:
    """One turn was delivered, another one waits; both files are older than what is history."""
    host.start()
    answer_of_an_hour_ago(host, "sent")
    host.wait_event("delivery.delivered", turn_id="sent")
    receiver.behaviour = lambda _: Reply(503)
    answer_of_an_hour_ago(host, "waits")
    host.wait_event("delivery.retry_scheduled", turn_id="waits")
    return host


def answer_of_an_hour_ago(host: Sidecar, turn_id: str) -> None:
    elsewhere = host.base / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    host.answer(turn_id, root=elsewhere)
    file = elsewhere / f"{turn_id}.txt"
    an_hour_ago = time.time() - 3600
    os.utime(file, (an_hour_ago, an_hour_ago))
    file.rename(host.aichat / file.name)


def overwrite(path: Path, at: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * size)


def page_of(path: Path, name: str) -> int:
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)
        ).fetchone()
    return (int(page) - 1) * PAGE


def header(path: Path) -> None:
    overwrite(path, 0, 100)


def truncated(path: Path) -> None:
    os.truncate(path, 3 * PAGE)


def deliveries(path: Path) -> None:
    overwrite(path, page_of(path, "delivery"), PAGE)


def service_row(path: Path) -> None:
    overwrite(path, page_of(path, "service"), PAGE)


def assert_nothing_is_lost(host: Sidecar, receiver: Receiver) -> None:
    receiver.behaviour = lambda _: Reply()
    for turn_id in ("sent", "waits"):
        host.wait_event("delivery.delivered", turn_id=turn_id)
        assert len({request.id for request in receiver.of(turn_id)}) == 1
    assert not host.events("turn.history")


@pytest.mark.parametrize("harm", [header, slow(truncated), deliveries, slow(service_row)])
def test_damage_that_is_met_at_the_start(
    stopped: Sidecar, receiver: Receiver, harm: Callable[[Path], None]
) -> None:
    """Exit 1 and the command; after it both turns arrive under their old ids."""
    assert stopped.stop() == 0
    harm(stopped.state / FILENAME)
    stopped.raw.clear()
    stopped.start(wait=False)
    assert stopped.wait() == 1
    assert b"paliadin-sidecar run --quarantine" in stopped.output
    assert b"service.crashed" not in stopped.output
    stopped.start("--quarantine")
    assert_nothing_is_lost(stopped, receiver)


def test_damage_that_is_met_later(stopped: Sidecar, receiver: Receiver) -> None:
    """The index that the next turn needs: the daemon stops at that moment, and not before."""
    assert stopped.stop() == 0
    # The files were too young to be known again by their times: this start reads them once more,
    # and the next one has no need of that index.
    stopped.start()
    assert stopped.stop() == 0
    path = stopped.state / FILENAME
    overwrite(path, page_of(path, "sqlite_autoindex_turn_1"), PAGE)
    stopped.start()
    stopped.answer("t3")
    assert stopped.wait() == 1
    assert b"paliadin-sidecar run --quarantine" in stopped.output
    stopped.start("--quarantine")
    assert_nothing_is_lost(stopped, receiver)
    stopped.wait_event("delivery.delivered", turn_id="t3")


@pytest.mark.parametrize("at", [slow(0), 32, slow(32 + 24 + PAGE + 24 + 100)])
def test_a_damaged_log(stopped: Sidecar, receiver: Receiver, at: int) -> None:
    """SQLite takes what is whole of it; the rest is found again in the roots.

    Even if the whole outbox was in the log, what is begun anew makes no history.
    """
    stopped.kill()
    log = stopped.state / f"{FILENAME}-wal"
    overwrite(log, at, log.stat().st_size - at)
    stopped.start(wait=False)
    assert_nothing_is_lost(stopped, receiver)


def test_a_log_that_is_emptied_from_a_shell(host: Sidecar, receiver: Receiver) -> None:
    """A checkpoint under the running daemon, at rest and between turns, ends nothing."""
    host.start()
    for n in range(3):
        with closing(sqlite3.connect(host.state / FILENAME)) as shell:
            assert shell.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        host.answer(f"t{n}")
        host.wait_event("delivery.delivered", turn_id=f"t{n}")
    assert host.stop() == 0
    assert len(receiver.turns) == 3


@pytest.mark.parametrize("command", ["status", "turns", "show", "replay"])
def test_commands_on_a_damaged_outbox(stopped: Sidecar, command: str) -> None:
    """Each says what to type, and none shows a traceback."""
    assert stopped.stop() == 0
    deliveries(stopped.state / FILENAME)
    args = {"show": ["sent"], "replay": ["sent"]}.get(command, [])
    done = stopped.typed(command, *args)
    assert done.returncode == 1
    assert "paliadin-sidecar run --quarantine" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_attempt_that_is_recorded_while_all_ends(
    tmp_path: Path, host: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It once waited for ever for a commit, since what commits had ended before it."""
    log = tmp_path / "log"
    all_ends = anyio.Event()
    lost = Damaged(tmp_path / FILENAME, "was removed")

    async def until_all_ends(*_: object) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            all_ends.set()

    def fail(*_: object) -> list[Event]:
        raise lost

    async def attempt(_: Sender, webhook_id: str, body: bytes) -> Outcome:
        await anyio.to_thread.run_sync(
            until, "its line", lambda: "turn.accepted" in log.read_text()
        )
        monkeypatch.setattr(event_rows, "events", fail)
        if "_t0_" in webhook_id:
            host.answer("t1")  # of all that is asked because of it, the events are the last
        with anyio.CancelScope(shield=True):
            await all_ends.wait()
        return Outcome(status=503)

    # What is the process's own stays as it is: this one is the test's, and in a thread.
    monkeypatch.setattr(intake_service, "ignore_lease_breaks", lambda: None)
    monkeypatch.setattr(os, "umask", lambda _: 0o077)
    monkeypatch.setattr(daemon, "feed_watchdog", until_all_ends)
    monkeypatch.setattr(Sender, "attempt", attempt)
    host.answer("t0")
    settings = Settings.from_environment(host.environ | {"PALIADIN_RESCAN_S": "60"})
    ended: list[BaseException] = []

    async def serve() -> None:
        with log.open("w", buffering=1) as lines:
            await daemon.run(settings, lines, lambda _: None)

    def run() -> None:
        try:
            anyio.run(serve)
        except BaseExceptionGroup as exc:
            ended.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert len(ended) == 1, "it hangs"
    assert lost in leaves(ended[0])


def leaves(exc: BaseException) -> list[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for one in exc.exceptions for leaf in leaves(one)]
    return [exc]
