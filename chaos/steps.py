"""What is done to a database step by step, and what of it must be there after a loss of power.

    python -m chaos.steps STAGE FOLDER

Each stage is a process of its own, in a folder on a disk that forgets (`lossy`). What it has
promised so far it marks by a name in the folder `promised`. `chaos.power` then asks of each state
in which a loss of power can have left the disk whether a start makes all of it good.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from support.outbox_box import answer, counted, key
from support.pushes import push
from support.sidecar import new_secret

from paliadin_client.store.protocol import Verdict, Window
from paliadin_client.store.sqlite import SqliteStore
from paliadin_contract.callback import TurnCompleted
from paliadin_sidecar.host import state_directory
from paliadin_sidecar.outbox import acceptance, erasure, maintenance, queue, transitions
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.opening import open_outbox, quarantine_outbox
from paliadin_sidecar.outbox.records import Outcome
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

PROMISED = "promised"
_COUNT = 12
_SECRET = b"Die Frist ist versaeumt."
#: A step to a next version of the schema.
_MIGRATION = """
ALTER TABLE turn ADD COLUMN note TEXT;
CREATE INDEX turn_by_note ON turn (note);
UPDATE turn SET note = 'from version 1';
"""


@dataclass(frozen=True)
class Steps:
    """What is done, and how one sees that it holds.

    Attributes:
        stages: by name, in order.
        holds: takes the folder as the loss of power left it, and what was promised before;
            whatever it raises says what does not hold.
    """

    stages: tuple[str, ...]
    holds: Callable[[Path, Collection[str]], None]


def _promise(folder: Path, what: str) -> None:
    (folder / PROMISED).mkdir(exist_ok=True)
    (folder / PROMISED / what).touch()


def _settings(folder: Path) -> Settings:
    return Settings.from_environment(
        {
            "PALIADIN_CALLBACK_URL": "http://127.0.0.1:9/",
            "PALIADIN_CALLBACK_SECRET": new_secret(),
            "PALIADIN_WATCH": f"aichat/paliadin={folder}",
            "PALIADIN_STATE_DIR": str(folder / "var" / "state"),
            "PALIADIN_HOST_LABEL": "mriver",
        }
    )


def _with_outbox(folder: Path, use: Callable[[Outbox], None]) -> None:
    # Opened as the daemon does.
    async def opened() -> None:
        async with AsyncExitStack() as stack:
            use(await open_outbox(stack, _settings(folder), print))

    anyio.run(opened)


# --- stages -------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    """Make an outbox; accept turns, every other one is delivered; some more by a next process."""
    _with_outbox(folder, partial(_accept, folder, "a"))
    _with_outbox(folder, partial(_accept, folder, "b"))


def fill(folder: Path) -> None:
    """The same by one that dies, so that much is in the log alone."""

    def use(outbox: Outbox) -> None:
        _accept(folder, "a", outbox)
        os.kill(os.getpid(), signal.SIGKILL)

    _with_outbox(folder, use)


def quarantine(folder: Path) -> None:
    """Move the outbox aside, and begin a new one."""
    quarantine_outbox(_settings(folder))
    _with_outbox(folder, partial(_accept, folder, "b"))


def migrate(folder: Path) -> None:
    """Open it by a program of the next version."""
    Outbox.migrations = (_MIGRATION,)
    _with_outbox(folder, lambda _: _promise(folder, "migrated"))


def shrink(folder: Path) -> None:
    """Drop what was delivered, give back its pages, and go on."""

    def use(outbox: Outbox) -> None:
        maintenance._KEPT_PAGES = 4  # noqa: SLF001 - so that few writes are enough to shrink it
        pages = outbox.pragma("page_count")
        outbox.transaction([partial(maintenance.purge_bodies, outbox, outbox.now() + 1)])
        while outbox.transaction([partial(maintenance.prune, outbox)])[0]:
            pass
        assert outbox.pragma("page_count") < pages
        _accept(folder, "b", outbox)

    _with_outbox(folder, use)


def erase(folder: Path) -> None:
    """Erase an answer as the command does, and go on."""

    def use(outbox: Outbox) -> None:
        secret = answer(_SECRET, key("secret"))
        outbox.transaction([partial(acceptance.accept, outbox, secret)])
        _accept(folder, "a", outbox)
        (turn,) = erasure.turns_named(outbox, "secret")
        outbox.transaction([partial(erasure.erase, outbox, turn.id, "root", undelivered=True)])
        assert erasure.empty_log(outbox, 5)
        _promise(folder, "erased")
        _accept(folder, "b", outbox)

    _with_outbox(folder, use)


def receive(folder: Path) -> None:
    """Make an inbox's database; receive pushes, leave replies, hold windows."""

    async def received() -> None:
        store = SqliteStore(folder / "inbox.db")
        for n in range(_COUNT):
            async with store.receive(push(f"t{n}")):
                pass
            _promise(folder, f"acknowledged t{n}")
            await store.leave_reply(f"t{n}", b"reply")
            _promise(folder, f"replied t{n}")
        window = await store.hold(Window("window", "user", "t0"), 1000)
        _promise(folder, f"held {window.turn_id}")
        await store.prune()
        await store.aclose()

    anyio.run(received)


def _accept(folder: Path, name: str, outbox: Outbox) -> None:
    _promise(folder, "made")
    for n in range(_COUNT):
        turn_id = f"{name}{n}"
        arrival = answer(os.urandom(16_000).hex(), key(turn_id))
        outbox.transaction([partial(acceptance.accept, outbox, arrival)])
        _promise(folder, f"accepted {turn_id}")
        if n % 2:
            ((due, *_), _) = queue.fetch_due(outbox, (), limit=1, max_retries=0)
            sent = counted(due, outbox.wall())
            outbox.transaction(
                [partial(transitions.record_delivered, outbox, sent, Outcome(status=204, ms=1.0))]
            )
            _promise(folder, f"delivered {due.subject['turn_id']}")


# --- what holds ---------------------------------------------------------------------------------


def _outbox_holds(folder: Path, promised: Collection[str]) -> None:
    state = folder / "var" / "state"

    def use(outbox: Outbox) -> None:
        assert outbox.check_pages(60)
        found = {row["turn_id"]: row["state"] for row in outbox.execute(_STATES)}
        for what, _, turn_id in (each.partition(" ") for each in promised):
            if what in {"accepted", "delivered"}:
                assert turn_id in found, f"{turn_id} is lost"
            if what == "delivered":
                assert found[turn_id] == "delivered", f"{turn_id} is {found[turn_id]}"
        assert outbox.value(_BODILESS) == 0
        assert outbox.pragma("user_version") == 1 + len(outbox.migrations)

    if "made" in promised:
        with state_directory.lock(state) as held_one:
            assert held_one, "nothing shows that an outbox was made"
    _with_outbox(folder, use)


_STATES = "SELECT turn_id, state FROM turn JOIN delivery ON turn = turn.id"
_BODILESS = """
SELECT count(*) FROM delivery LEFT JOIN body ON body.delivery = delivery.id
WHERE state = 'pending' AND body.delivery IS NULL
"""


def _erasing_holds(folder: Path, promised: Collection[str]) -> None:
    if "erased" in promised:
        for path in (folder / "var" / "state").iterdir():
            assert _SECRET not in path.read_bytes(), f"{path.name} has what was erased"
    _outbox_holds(folder, [each for each in promised if "secret" not in each])


def _migration_holds(folder: Path, promised: Collection[str]) -> None:
    Outbox.migrations = (_MIGRATION,)
    try:
        _outbox_holds(folder, promised)
    finally:
        Outbox.migrations = ()


def _quarantine_holds(folder: Path, promised: Collection[str]) -> None:
    _with_outbox(folder, lambda _: None)
    state = folder / "var" / "state"
    found = set()
    for path in (state / FILENAME, *state.glob(f"{FILENAME}.aside-*Z")):
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)
            found |= {turn_id for (turn_id,) in db.execute("SELECT turn_id FROM turn")}
    lost = {each.removeprefix("accepted ") for each in promised if each.startswith("acc")} - found
    assert not lost, f"{lost} are in no outbox"


def _inbox_holds(folder: Path, promised: Collection[str]) -> None:
    async def holds() -> None:
        store = SqliteStore(folder / "inbox.db")
        try:
            for what, _, turn_id in (each.partition(" ") for each in promised):
                found = (await store.find([turn_id])).get(turn_id)
                if what == "acknowledged":
                    async with store.receive(push(turn_id)) as receipt:
                        verdict = receipt.verdict
                    assert verdict is Verdict.KNOWN, f"{turn_id} is {verdict}"
                    assert found is not None
                    assert isinstance(found.push, TurnCompleted)
                    assert found.push.data.turn_id == turn_id
                elif what == "replied":
                    assert found is not None
                    assert found.reply == b"reply"
                else:
                    held = await store.hold(Window("window", "user", "other"), 1000)
                    assert held.turn_id == turn_id
            async with store.receive(push("later")) as receipt:
                assert receipt.verdict is Verdict.NEW
        finally:
            await store.aclose()

    anyio.run(holds)


OUTBOX_MADE = Steps(("make",), _outbox_holds)
OUTBOX_MOVED_ASIDE = Steps(("fill", "quarantine"), _quarantine_holds)
OUTBOX_MIGRATED = Steps(("fill", "migrate"), _migration_holds)
OUTBOX_ERASED = Steps(("erase",), _erasing_holds)
OUTBOX_SHRUNK = Steps(("fill", "shrink"), _outbox_holds)
INBOX_MADE = Steps(("receive",), _inbox_holds)


def _main(stage: str, folder: str) -> None:
    stages = {
        each.__name__: each for each in (make, fill, quarantine, migrate, erase, shrink, receive)
    }
    stages[stage](Path(folder))


if __name__ == "__main__":
    _main(*sys.argv[1:])
