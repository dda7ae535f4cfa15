"""One root's loops, on a real directory and a real outbox."""

from __future__ import annotations

import itertools
import os
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from support.outbox_box import answer
from support.sidecar import new_secret
from support.waiting import PATIENCE_S
from support.watched import TEXT, WHOLE

from paliadin_sidecar.errors import WatchFailed
from paliadin_sidecar.host.resources import Threads
from paliadin_sidecar.intake import loop as intake_loop
from paliadin_sidecar.intake import roots
from paliadin_sidecar.intake.events import Gone, IntakeEvent, record_events
from paliadin_sidecar.intake.loop import RootIntake
from paliadin_sidecar.intake.scan import Depth, find_history, scan
from paliadin_sidecar.intake.tracking import WatchedRoot
from paliadin_sidecar.outbox import acceptance
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.records import TurnKey
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from paliadin_sidecar.outbox.records import Arrival

pytestmark = pytest.mark.anyio


class IntakeListener:
    """Whoever runs the root: it remembers what it was called with."""

    def __init__(self) -> None:
        self.group: GroupCommit
        self.turns: list[str] = []
        self.events: list[str] = []
        self._more = anyio.Event()
        self.record: Callable[..., Awaitable[None]] = self._record

    async def commit(self, events: list[IntakeEvent]) -> None:
        deliveries = await self.group.commit(record_events, events)
        self.turns += [delivery.subject["turn_id"] for delivery in deliveries]
        self._more.set()

    async def _record(self, name: str, **fields: Any) -> None:  # noqa: ANN401 - of an event
        self.events.append(name)
        self._more.set()

    async def save_root_states(self) -> None: ...

    def report_missing_events(self) -> None: ...

    async def until(self, turn: str) -> None:
        """Wait until this turn, or this event, was reported."""
        while turn not in self.turns + self.events:
            self._more = anyio.Event()
            await self._more.wait()


@asynccontextmanager
async def running(
    root: Path, state: Path, listener: IntakeListener | None = None, /, **variables: str
) -> AsyncIterator[IntakeListener]:
    """A root's loops, which have begun."""
    await anyio.Path(root).mkdir(mode=0o700, exist_ok=True)
    settings = Settings.from_environment(
        {
            "PALIADIN_CALLBACK_URL": "https://paliad.example.org/callback",
            "PALIADIN_CALLBACK_SECRET": new_secret(),
            "PALIADIN_STATE_DIR": str(state),
            "PALIADIN_WATCH": f"aichat/paliadin={root}",
            "PALIADIN_EVENTS": "inotify",
            **variables,
        }
    )
    listener = listener or IntakeListener()
    with Outbox(state / "outbox", create=True) as outbox:
        listener.group = GroupCommit(outbox, lambda: None, lambda _: None)
        one = RootIntake(settings.roots[0], settings, 16, listener.group, listener)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            await one.began.wait()
            try:
                yield listener
            finally:
                one.stop()
                tasks.cancel_scope.cancel()
        one.close()


def publish(root: Path, turn: str, content: str = WHOLE) -> None:
    draft = root / f"{turn}.tmp"
    draft.write_text(content)
    draft.rename(root / f"{turn}.txt")


async def test_a_turn_while_a_large_scan_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes, the turn is accepted before it has ended."""
    root, started, turns = tmp_path / "root", anyio.Event(), list[str]()

    def endless(*_: object, **__: object) -> Iterator[None]:
        started.set()
        while "t1" not in turns:
            yield None

    async with running(root, tmp_path, PALIADIN_RESCAN_S="0.1") as listener:
        turns = listener.turns
        monkeypatch.setattr(intake_loop, "scan", endless)
        await started.wait()
        publish(root, "t1")
        await listener.until("t1")


async def test_old_files_are_history_before_anything_is_inspected(tmp_path: Path) -> None:
    """Of a root that is new, only what comes from now on is sent."""
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    publish(root, "old")
    os.utime(root / "old.txt", (1e9, 1e9))
    publish(root, "young")
    async with running(root, tmp_path) as listener:
        publish(root, "new")
        await listener.until("new")
        assert sorted(listener.turns) == ["new", "young"]


async def test_a_turn_while_a_root_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many old files it has, a new answer is accepted before all of them are recorded."""
    root, listener, recorded = tmp_path / "root", IntakeListener(), list[int]()

    def endless(_: object) -> Iterator[Arrival | None]:
        publish(root, "new")
        for n in itertools.count():
            os.utime(root / "new.txt")  # again and again: the root may not be watched yet
            if "new" in listener.turns and len(recorded) > 1:
                return
            yield answer(f"old {n}", key=TurnKey("aichat", "paliadin", f"old-{n}"))
            yield None

    def record(outbox: Outbox, history: Sequence[Arrival]) -> None:
        recorded.append(len(history))
        record_history(outbox, history)

    record_history = acceptance.record_history
    monkeypatch.setattr(acceptance, "record_history", record)
    monkeypatch.setattr(intake_loop, "find_history", endless)
    monkeypatch.setattr(intake_loop, "_HISTORY_BATCH", 2)
    monkeypatch.setattr(intake_loop, "_SLICE_S", 0.0)
    async with running(root, tmp_path, listener):
        assert listener.turns == ["new"]
    assert max(recorded) == 2


async def test_an_old_file_that_is_touched_while_its_root_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is history like the others; one that was written meanwhile is an answer."""
    root, listener = tmp_path / "root", IntakeListener()
    root.mkdir(mode=0o700)
    for name in ("old", "older"):
        publish(root, name)
        os.utime(root / f"{name}.txt", (1e9, 1e9))

    def slow(watched: WatchedRoot) -> Iterator[Arrival | None]:
        while watched.root.state == "armed" and "t1" not in listener.turns:
            # Again and again: the root may not be watched yet.
            (root / "old.txt").chmod(0o600)
            publish(root, "older", TEXT + WHOLE)
            publish(root, "t1")
            yield None
        yield from find_history(watched)

    monkeypatch.setattr(intake_loop, "find_history", slow)
    async with running(root, tmp_path, listener):
        publish(root, "t2")
        await listener.until("t2")
        assert sorted(listener.turns) == ["older", "t1", "t2"]


async def test_names_that_come_while_others_are_observed_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that may hang the event loop adds names while the root's thread has some."""
    published, begun, added = anyio.Event(), threading.Event(), threading.Event()
    may_begin = threading.Event()
    may_begin.set()

    begin = Threads.begin

    def held(threads: Threads, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - handed through
        return begin(threads, lambda: [may_begin.wait(PATIENCE_S), call()][1])

    def slowly(watched: WatchedRoot, names: Iterable[str]) -> Iterator[IntakeEvent]:
        for name in names:
            begun.set()
            added.wait(PATIENCE_S)
            yield from watched.observe(name)

    def takes_long(name: str) -> bool:
        if name == "t2.txt":  # the thread begins with the names of before
            may_begin.set()
            begun.wait(PATIENCE_S)
        return True

    async def scripted(*_: Any, **__: Any) -> AsyncIterator[set[str]]:  # noqa: ANN401 - none of them is looked at
        await published.wait()
        may_begin.clear()
        yield {"t1.txt"}
        for _n in range(10):
            await anyio.lowlevel.checkpoint()  # the thread is asked to observe it
        yield {"t2.txt"}
        added.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(roots, "device_with_leases", lambda _: None)
    monkeypatch.setattr(WatchedRoot, "notice", slowly)
    monkeypatch.setattr(Threads, "begin", held)
    monkeypatch.setattr(intake_loop, "is_ours", takes_long)
    monkeypatch.setattr(intake_loop, "changes", scripted)
    variables = {"PALIADIN_QUIET_S": "0.1", "PALIADIN_RESCAN_S": "60"}
    async with running(tmp_path / "root", tmp_path, None, **variables) as listener:
        publish(tmp_path / "root", "t1")
        publish(tmp_path / "root", "t2")
        published.set()
        await listener.until("t1")
        await listener.until("t2")


async def test_what_is_due_is_not_asked_while_the_thread_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan's slice in the root's thread ends before."""
    busy, asked = threading.Event(), threading.Event()
    asked_while_busy: list[bool] = []
    due_in = WatchedRoot.due_in

    def endless(*_: object, **__: object) -> Iterator[None]:
        while True:
            busy.set()
            asked.wait(0.05)
            busy.clear()
            yield None

    class Committing(IntakeListener):
        async def commit(self, events: list[IntakeEvent]) -> None:
            await super().commit(events)
            asked.clear()
            while not busy.is_set():
                await anyio.lowlevel.checkpoint()

    def asking(watched: WatchedRoot) -> float | None:
        asked.set()
        asked_while_busy.append(busy.is_set())
        return due_in(watched)

    monkeypatch.setattr(roots, "device_with_leases", lambda _: None)
    monkeypatch.setattr(WatchedRoot, "due_in", asking)
    variables = {"PALIADIN_QUIET_S": "0.1", "PALIADIN_RESCAN_S": "0.05"}
    async with running(tmp_path / "root", tmp_path, Committing(), **variables) as listener:
        monkeypatch.setattr(intake_loop, "scan", endless)
        publish(tmp_path / "root", "t1")
        await listener.until("t1")
        before = len(asked_while_busy)
        while len(asked_while_busy) == before:
            await anyio.lowlevel.checkpoint()
    assert not any(asked_while_busy)


async def test_it_has_begun_when_what_was_there_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a scan found it while what a notification named was committed."""
    root = tmp_path / "root"
    async with running(root, tmp_path):
        pass
    publish(root, "t1")
    publish(root, "t2")

    scanned = anyio.Event()

    def scan_once(*what: Any, **how: Any) -> Iterator[IntakeEvent | None]:  # noqa: ANN401 - handed through
        yield from scan(*what, **how)
        scanned.set()

    class Committing(IntakeListener):
        async def commit(self, events: list[IntakeEvent]) -> None:
            if not self.turns:
                await scanned.wait()
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
            await super().commit(events)

    async def scripted(*_: Any, **__: Any) -> AsyncIterator[set[str]]:  # noqa: ANN401 - none of them is looked at
        yield {"t1.txt"}
        await anyio.sleep_forever()

    monkeypatch.setattr(intake_loop, "changes", scripted)
    monkeypatch.setattr(intake_loop, "scan", scan_once)
    monkeypatch.setattr(intake_loop, "_SLICE_S", 0.0)
    async with running(root, tmp_path, Committing()) as listener:
        assert sorted(listener.turns) == ["t1", "t2"]


async def test_a_name_that_comes_while_another_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is inspected right after that, and not at the next scan."""
    root = tmp_path / "root"
    send, receive = anyio.create_memory_object_stream[set[str]](2)

    class Committing(IntakeListener):
        async def commit(self, events: list[IntakeEvent]) -> None:
            await super().commit(events)
            if self.turns == ["t1"]:
                publish(root, "t2")
                await send.send({"t2.txt"})
                await anyio.wait_all_tasks_blocked()  # the name was added

    async def scripted(*_: Any, **__: Any) -> AsyncIterator[set[str]]:  # noqa: ANN401 - none of them is looked at
        async for names in receive:
            yield names

    monkeypatch.setattr(intake_loop, "changes", scripted)
    monkeypatch.setattr(intake_loop, "next_tick", lambda now, _: now + 3600)
    with send, receive:
        async with running(root, tmp_path, Committing()) as listener:
            publish(root, "t1")
            await send.send({"t1.txt"})
            with anyio.fail_after(PATIENCE_S):
                await listener.until("t2")


async def test_what_was_found_first_is_committed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a scan or an inspection found it: a file may be gone and be there again."""
    found, committed = list[IntakeEvent](), list[IntakeEvent]()
    scanning, both, done = anyio.Event(), anyio.Event(), anyio.Event()

    def find() -> IntakeEvent:
        found.append(event := Gone(TurnKey("aichat", "paliadin", f"t{len(found)}")))
        return event

    def scan_until_found(*_: object, **__: object) -> Iterator[IntakeEvent | None]:
        scanning.set()
        while not found:
            yield None
        yield find()
        both.set()

    def inspect(_: object) -> list[IntakeEvent]:
        return [find()] if scanning.is_set() and not found else []

    class Committing(IntakeListener):
        is_held = True

        async def commit(self, events: list[IntakeEvent]) -> None:
            held, self.is_held = self.is_held, False
            if held:  # as where the outbox is blocked
                await both.wait()
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
            await super().commit(events)
            committed.extend(events)
            if len(committed) > 1:
                done.set()

    monkeypatch.setattr(intake_loop, "changes", silence)
    monkeypatch.setattr(intake_loop, "inspect_due", inspect)
    monkeypatch.setattr(intake_loop, "_SLICE_S", 0.0)
    monkeypatch.setattr(intake_loop, "_REST_S", 0.0)
    monkeypatch.setattr(WatchedRoot, "due_in", lambda _: 0.0)
    variables = {"PALIADIN_RESCAN_S": "0.05"}
    async with running(tmp_path / "root", tmp_path, Committing(), **variables):
        monkeypatch.setattr(intake_loop, "scan", scan_until_found)
        await done.wait()
    assert committed == found


async def test_a_root_that_comes_later(tmp_path: Path) -> None:
    """It is armed by the next scan, and what is in it is accepted."""
    root = tmp_path / "root"
    async with running(root, tmp_path, PALIADIN_RESCAN_S="0.1") as listener:
        root.rename(tmp_path / "away")
        await listener.until("root.missing")
        (tmp_path / "away").rename(root)
        publish(root, "t1")
        await listener.until("t1")


async def silence(*_: Any, **__: Any) -> AsyncIterator[set[str]]:  # noqa: ANN401 - none of them is looked at
    await anyio.sleep_forever()
    yield set()


async def test_without_notifications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none comes, scans find each file, also one that settles by and by."""
    monkeypatch.setattr(intake_loop, "changes", silence)
    root = tmp_path / "root"
    variables = {"PALIADIN_RESCAN_S": "0.1", "PALIADIN_QUIET_S": "0.2"}
    async with running(root, tmp_path, None, **variables) as listener:
        publish(root, "t1")
        publish(root, "t2", TEXT)
        await listener.until("t1")
        await listener.until("t2")


@pytest.mark.parametrize("events", ["inotify", "watchfiles"])
async def test_each_file_is_compared_once_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: str
) -> None:
    """By a scan that begins after notifications do, so that nothing comes between them."""
    depths: list[Depth] = []

    def spying(files: WatchedRoot, depth: Depth) -> Iterator[Any]:
        depths.append(depth)
        return scan(files, depth)

    monkeypatch.setattr(intake_loop, "scan", spying)
    monkeypatch.setattr(intake_loop, "_WATCH_BEGINS_S", PATIENCE_S)
    root = tmp_path / "root"
    async with running(root, tmp_path, PALIADIN_RESCAN_S="0.05", PALIADIN_EVENTS=events) as heard:
        publish(root, "t1")
        await heard.until("t1")
        while len(depths) < 4:  # noqa: ASYNC110 - nothing reports a scan
            await anyio.sleep(0.01)
    assert depths.count(Depth.EVERY_FILE) == 1


@pytest.mark.parametrize("notified", [True, False])
async def test_names_that_take_long_to_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, notified: bool
) -> None:
    """They are listed less often, as long as notifications have each new one."""
    lists: list[bool] = []

    def spying(files: WatchedRoot, depth: Depth) -> Iterator[Any]:
        if depth < Depth.NAMES:
            lists.append(depth is Depth.MOVED)
        return scan(files, depth)

    async def failing(*_: Any, **__: Any) -> AsyncIterator[set[str]]:  # noqa: ANN401 - none of them is looked at
        raise WatchFailed("OSError")
        yield set()

    monkeypatch.setattr(intake_loop, "scan", spying)
    monkeypatch.setattr(intake_loop, "_LISTING_SHARE", 1e-9)  # each takes long
    if not notified:
        monkeypatch.setattr(intake_loop, "changes", failing)
    root = tmp_path / "root"
    async with running(root, tmp_path, PALIADIN_RESCAN_S="0.05"):
        while len(lists) < 4:  # noqa: ASYNC110 - nothing signals a scan
            await anyio.sleep(0.01)
    assert lists[1:] == [not notified] * len(lists[1:])
