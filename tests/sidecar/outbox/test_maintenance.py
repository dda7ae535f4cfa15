from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest
from support.noise import noise
from support.outbox_box import ROOT, Box, answer, key
from support.receiver import Reply
from support.waiting import PATIENCE_S, until

import paliadin_sidecar.outbox.database
from paliadin_sidecar.outbox import acceptance, event_rows, maintenance, queries, queue, transitions
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.maintenance import AWAITED_S, follow_commands
from paliadin_sidecar.outbox.records import Retention

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.receiver import Receiver, Request
    from support.sidecar import Sidecar

MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86_400.0
BODY_S, TURN_S = Retention().answers_s, Retention().turns_s


class Pruned(Box):
    """An outbox whose end is pruned as time goes by."""

    def take(self, turn_id: str, text: str = "Yes.") -> None:
        self(acceptance.accept, answer(text, key(turn_id)))

    def gone(self, turn_id: str) -> None:
        self(acceptance.mark_gone, key(turn_id))

    def printed(self) -> None:
        self(event_rows.set_printed, self(event_rows.newest_id))

    def prune(self) -> int:
        """Prune to the end; how many steps it took."""
        steps = 1
        while self(maintenance.prune):
            steps += 1
        return steps

    def later(self, seconds: float) -> None:
        self.printed()
        self.now += seconds
        self.prune()

    def known(self, turn_id: str) -> bool:
        return bool(self(queries.timelines, turn_id))

    def ask(self, statement: str) -> int:
        with closing(sqlite3.connect(self.path)) as db:
            found: int = db.execute(statement).fetchone()[0]
            return found

    @property
    def bodies(self) -> int:
        return self.ask("SELECT count(*) FROM body")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Pruned]:
    box = Pruned(tmp_path / FILENAME, create=True)
    yield box
    box.outbox.close()


# --- bodies -------------------------------------------------------------------------------


def test_a_body_goes_72_hours_after_its_acknowledgement(box: Pruned) -> None:
    """Until then it can be replayed; then a replay says that it cannot."""
    box.take("t")
    box.now += DAY_S
    box.deliver()
    box.later(BODY_S)
    assert box.bodies == 1
    box.later(1)
    assert box.bodies == 0
    assert box(transitions.replay, turn_id="t") == (0, ["t"])
    assert box.known("t")


def test_a_date_that_is_set_forward_is_no_reason_to_forget(box: Pruned) -> None:
    """A wrong clock takes nothing away: what it jumped over is not counted while we run."""
    box.take("t")
    box.deliver()
    box.set_s = 10 * BODY_S
    box.now += box.set_s
    box.later(BODY_S - 1)
    assert box.bodies == 1
    box.later(2)
    assert box.bodies == 0


def test_what_waits_or_was_given_up_keeps_its_body(box: Pruned) -> None:
    """A year later it can still be sent."""
    box.take("dead")
    box.give_up(box.due()[0], "refused")
    box.take("pending")
    for turn_id in ("dead", "pending"):
        box.gone(turn_id)
    box.later(365 * DAY_S)
    assert box.bodies == 2
    assert box(queries.counts) == {"dead": 1, "pending": 1}
    assert box(transitions.replay, dead=True) == (1, [])


def test_a_replayed_body_stays_until_it_is_acknowledged_again(box: Pruned) -> None:
    """Its 72 hours begin anew."""
    box.take("t")
    box.deliver()
    box.later(BODY_S - 1)
    assert box(transitions.replay, turn_id="t") == (1, [])
    box.later(365 * DAY_S)
    assert box.bodies == 1
    box.deliver()
    box.later(BODY_S)
    assert box.bodies == 1
    box.later(1)
    assert box.bodies == 0


def test_a_superseded_body_goes_too(box: Pruned) -> None:
    """Nothing ever sends it again; that of its successor stays."""
    box.take("t", "eins")
    box.take("t", "zwei")
    box.later(BODY_S + 1)
    assert box.bodies == 1
    (due,), _ = box(queue.fetch_due, (), limit=9, max_retries=9)
    assert b"zwei" in due.body


# --- turns --------------------------------------------------------------------------------


def test_a_turn_goes_90_days_after_its_file(box: Pruned) -> None:
    """With its deliveries and events; and nothing is left of it."""
    box.take("t")
    box.deliver()
    box.now += 10 * DAY_S
    box.gone("t")
    box.later(TURN_S)
    assert box.known("t")
    box.later(1)
    assert not box.known("t")
    for table in ("turn", "delivery", "event", "body"):
        assert box.ask(f"SELECT count(*) FROM {table}") == 0


def test_a_turn_whose_file_lies_is_kept(box: Pruned) -> None:
    """Without its row it would be taken for a new one, history too."""
    box.take("present")
    box.deliver()
    old = replace(answer(key=key("old")), data=None)
    box(acceptance.register_root, ROOT, [old])
    box.later(3 * 365 * DAY_S)
    assert set(box(acceptance.present_files, "aichat", "paliadin")) == {"present", "old"}
    assert not box(acceptance.accept, answer(key=key("present")))
    assert not box(acceptance.accept, old)


def test_history_goes_like_any_other(box: Pruned) -> None:
    """90 days after its file."""
    box(acceptance.register_root, ROOT, [replace(answer(key=key("old")), data=None)])
    box.gone("old")
    box.later(TURN_S + 1)
    assert not box.known("old")


def test_a_file_that_came_back_is_kept(box: Pruned) -> None:
    """It is counted from its last going."""
    box.take("t")
    box.deliver()
    box.gone("t")
    box.now += TURN_S - 1
    box.take("t")
    box.later(DAY_S)
    assert box.known("t")


def test_what_was_touched_lately_is_kept(box: Pruned) -> None:
    """A replay makes an old turn young."""
    box.take("t")
    box.give_up(box.due()[0], "refused")
    box.gone("t")
    box.later(2 * TURN_S)
    assert box(transitions.replay, dead=True) == (1, [])
    box.deliver()
    box.later(TURN_S)
    assert box.known("t")
    box.later(1)
    assert not box.known("t")


def test_a_turn_of_which_only_a_token_told_goes(box: Pruned) -> None:
    """90 days after it was seen, when no file ever came."""
    box(acceptance.record_hint, key("t"), "asked", "user")
    box.later(TURN_S)
    assert box.known("t")
    box.later(1)
    assert not box.known("t")


def test_a_file_that_vanished_goes(box: Pruned) -> None:
    """90 days later."""
    box(acceptance.mark_vanished, key("t"))
    box.later(TURN_S + 1)
    assert not box.known("t")


def test_the_service_s_own_events_go(box: Pruned) -> None:
    """After 90 days, and the younger ones stay."""
    box(event_rows.record_service_event, "service.started", {})
    box.now += DAY_S
    box(event_rows.record_service_event, "service.stopped", {})
    box.later(TURN_S - MINUTE_S)
    assert [event.name for event in box(event_rows.events, 0)] == ["service.stopped"]


def test_what_was_not_printed_yet_is_kept(box: Pruned) -> None:
    """A log that was blocked for long misses nothing."""
    box(event_rows.record_service_event, "service.started", {})
    box.take("t")
    box.deliver()
    box.gone("t")
    box.now += 2 * TURN_S
    box.prune()
    assert len(box(event_rows.events, 0)) == 4
    box.later(0)
    assert box(event_rows.events, 0) == []


def test_ids_of_events_are_not_used_again(box: Pruned) -> None:
    """A line's event_id distinguishes it from all others, also after the newest went."""
    box(event_rows.record_service_event, "service.started", {})
    before = box(event_rows.newest_id)
    box.later(TURN_S + 1)
    box(event_rows.record_service_event, "service.stopped", {})
    assert box(event_rows.newest_id) > before


# --- as long as the owner says ------------------------------------------------------------


def test_bodies_and_turns_go_when_the_owner_says(box: Pruned) -> None:
    """Neither later nor earlier, for an hour or for years."""
    for answers_s, turns_s in ((HOUR_S, 2 * HOUR_S), (400 * DAY_S, 4000 * DAY_S)):
        box.outbox.retention = Retention(answers_s, turns_s)
        box.take("t")
        box.deliver()
        box.gone("t")
        box.later(answers_s)
        assert box.bodies == 1
        box.later(1)
        assert (box.bodies, box.known("t")) == (0, True)
        box.later(turns_s - answers_s - 1)
        assert box.known("t")
        box.later(1)
        assert not box.known("t")


def test_answers_that_are_not_kept_go_with_their_acknowledgement(box: Pruned) -> None:
    """In its transaction; a superseded one with its successor, and what waits stays."""
    box.outbox.retention = Retention(0, TURN_S)
    box.take("t", "eins")
    box.take("t", "zwei")
    assert box.bodies == 1
    box.take("waits")
    box.acknowledge(box.due()[0])
    assert box.bodies == 1
    assert box(transitions.replay, turn_id="t") == (0, ["t"])
    box.give_up(box.due()[0], "refused")
    assert box(transitions.replay, dead=True) == (1, [])


def test_a_value_that_was_made_much_smaller_is_reached_in_small_steps(box: Pruned) -> None:
    """A hundred rows at a time, as ever."""
    for n in range(250):
        box.take(f"t{n}")
        box.deliver()
        box.gone(f"t{n}")
    box.printed()
    box.now += DAY_S
    box.outbox.retention = Retention(0, 10 * MINUTE_S)
    assert box.prune() == 3 + 3 + 1
    assert box(queries.counts) == {}


def test_a_turn_that_is_announced_is_waited_for(box: Pruned) -> None:
    """Its answer may take longer than turns are kept, and needs what its token said."""
    box.outbox.retention = Retention(0, 10 * MINUTE_S)
    box(acceptance.record_hint, key("t"), "asked", "user")
    box.later(AWAITED_S)
    box.take("t")
    (due,) = box.due()
    assert due.subject["submitted_turn_id"] == "asked"
    box(acceptance.record_hint, key("never"), "never", "user")
    box.later(AWAITED_S + 1)
    assert not box.known("never")


def test_a_file_that_lies_there_is_never_sent_again(box: Pruned) -> None:
    """Not even where turns are kept as short as can be."""
    box.outbox.retention = Retention(0, 10 * MINUTE_S)
    box.take("t")
    box.deliver()
    box.later(365 * DAY_S)
    box.take("t")
    assert box.due() == []


def test_pruning_keeps_up_with_what_is_kept_for_less_than_hours() -> None:
    """What is to go after ten minutes goes a minute later at most."""
    minutes = {
        Retention(): 60,
        Retention(0): 60,
        Retention(0, 10 * MINUTE_S): 1,
        Retention(HOUR_S): 6,
        Retention(1, 10 * MINUTE_S): 1,
    }
    for retention, often in minutes.items():
        assert maintenance.prune_every_s(retention) == often * MINUTE_S


# --- the disk -----------------------------------------------------------------------------


def test_a_step_is_small(box: Pruned) -> None:
    """Many rows, or a few large bodies, are many steps: a delivery waits for one at most."""
    for n in range(250):
        box.take(f"t{n}")
        box.deliver()
    box.now += BODY_S + 1
    assert box.prune() == 4
    large = noise(3 * 1024 * 1024)
    for n in range(4):
        box.take(f"l{n}", large)
        box.deliver()
    box.now += BODY_S + 1
    assert box(maintenance.prune)
    assert box.bodies == 2


@pytest.mark.slow
def test_what_a_backlog_took_is_given_back(box: Pruned) -> None:
    """The file shrinks again, in small steps, to what is used and some room."""
    large = noise(2 * 1024 * 1024)
    for n in range(12):
        box.take(f"t{n}", large)
        box.deliver()
    assert box.path.stat().st_size > 25_000_000
    box.printed()
    box.now += BODY_S + 1
    assert box.prune() < 150
    with closing(sqlite3.connect(box.path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert box.path.stat().st_size < 20_000_000
    assert box.path.with_name(f"{FILENAME}-wal").stat().st_size <= 16 * 1024 * 1024


def test_upkeep_with_nothing_to_do_writes_nothing(box: Pruned) -> None:
    """An idle host's disk may sleep."""
    box.take("t")
    box.deliver()
    box.prune()
    log = box.path.with_name(f"{FILENAME}-wal")
    before = (log.stat().st_size, log.stat().st_mtime_ns, box.path.stat().st_mtime_ns)
    box.prune()
    assert before == (log.stat().st_size, log.stat().st_mtime_ns, box.path.stat().st_mtime_ns)


@pytest.mark.parametrize("query", ["expired_bodies", "purge_turns", "purge_events"])
def test_upkeep_reads_an_index(box: Pruned, query: str) -> None:
    """What is to be done is found without reading what is not."""
    statement = getattr(paliadin_sidecar.outbox.database.sql, query)
    with closing(sqlite3.connect(box.path)) as db:
        values = {"before": 0, "awaited_before": 0, "limit": 1}
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    # `service` has one row.
    assert not [step for step in plan if step.startswith("SCAN") and step != "SCAN service"], plan


# --- the daemon ---------------------------------------------------------------------------


def test_the_daemon_tidies_at_its_start(host: Sidecar, receiver: Receiver) -> None:
    """What became old while it was down goes, and what is new is delivered meanwhile."""
    host.start()
    for turn_id in ("old", "present"):
        host.answer(turn_id)
        host.wait_event("delivery.delivered", turn_id=turn_id)
    (host.aichat / "old.txt").unlink()
    assert host.stop() == 0
    days_ms = int(100 * DAY_S * 1000)
    with closing(sqlite3.connect(host.state / FILENAME)) as db, db:
        db.execute(f"UPDATE delivery SET settled_at = settled_at - {days_ms}")
        db.execute(f"UPDATE event SET at = at - {days_ms}")
        db.execute(f"UPDATE turn SET gone_at = {int(time.time() * 1000) - days_ms}")
        db.execute("UPDATE turn SET gone_at = NULL WHERE turn_id = 'present'")
    host.start()
    host.answer("new")
    receiver.wait("new")
    with closing(sqlite3.connect(host.state / FILENAME)) as db:

        def turns() -> list[str]:
            return [row[0] for row in db.execute("SELECT turn_id FROM turn ORDER BY turn_id")]

        until("upkeep", lambda: turns() == ["new", "present"])
        until("bodies", lambda: db.execute("SELECT count(*) FROM body").fetchone()[0] == 1)
    again = host.typed("replay", "present")
    assert "bodies are let go PALIADIN_KEEP_ANSWERS (72h unless it is set) after" in again.stderr


@pytest.mark.slow
def test_a_year_of_upkeep_holds_no_delivery(host: Sidecar, receiver: Receiver) -> None:
    """A new answer is delivered while thousands of old turns are still being let go."""
    host.start()
    assert host.stop() == 0
    past = int((time.time() - 200 * DAY_S) * 1000)
    with closing(sqlite3.connect(host.state / FILENAME)) as db, db:
        db.executescript(f"""
            WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 20100)
            INSERT INTO turn (id, backend, persona, turn_id, gone_at, seen_at)
            SELECT i, 'aichat', 'paliadin', 'old' || i, {past}, {past} FROM n;
            INSERT INTO delivery (turn, revision, state, bytes, accepted_at, settled_at)
            SELECT id, 1, 'delivered', 1, {past}, {past} FROM turn;
            INSERT INTO body SELECT id, 'x', 1, 0 FROM delivery;
            """)
    left: list[int] = []

    def count(_: Request) -> Reply:
        with closing(sqlite3.connect(host.state / FILENAME)) as db:
            left.append(db.execute("SELECT count(*) FROM body").fetchone()[0])
        return Reply()

    receiver.behaviour = count
    host.start()
    host.answer("new")
    receiver.wait("new")
    assert left[0] > 1


@pytest.mark.anyio
async def test_what_a_command_wrote_is_noticed(tmp_path: Path) -> None:
    """At the start, and after each write of another process; not after the outbox's own."""
    path = tmp_path / FILENAME
    changes = 0
    changed = anyio.Event()

    def on_change() -> None:
        nonlocal changes, changed
        changes += 1
        changed.set()
        changed = anyio.Event()

    with closing(Outbox(path, create=True)) as outbox, closing(Outbox(path)) as command:
        group = GroupCommit(outbox, lambda: None, lambda _: None)
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(PATIENCE_S):
                first = changed
                tasks.start_soon(follow_commands, group, 0.01, on_change)
                await first.wait()
                await group.commit(acceptance.accept, answer())
                second = changed
                command.transaction([lambda: transitions.pause(command, "status_404")])
                await second.wait()
            tasks.cancel_scope.cancel()
    assert changes == 2
