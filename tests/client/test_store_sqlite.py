"""A store in SQLite: its files, the processes that share it, and what is done to both."""

# ruff: noqa: ASYNC240 - its files are few, small and local

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import AsyncExitStack, ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio
import pytest
from support.pushes import push
from support.waiting import PATIENCE_S

from paliadin_client.errors import ConfigError, StoreFailed
from paliadin_client.store import claims, sqlite_changes
from paliadin_client.store.claims import Claims
from paliadin_client.store.protocol import KEEP_IDS_S, Verdict, Window
from paliadin_client.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio
TESTS = Path(__file__).parents[1]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as made:
        yield made


@pytest.fixture(autouse=True)
def looked_for_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a file was removed is noticed at once, and not a tenth of a second later."""
    for module in ("claims", "sqlite_thread"):
        monkeypatch.setattr(f"paliadin_client.store.{module}._CHECK_S", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inbox.sqlite3"


@pytest.fixture
async def store(path: Path, stack: AsyncExitStack) -> SqliteStore:
    return opened(path, stack)


def opened(path: Path, stack: AsyncExitStack) -> SqliteStore:
    made = SqliteStore(path)
    stack.push_async_callback(made.aclose)
    return made


async def received(store: SqliteStore, turn: str = "turn-1", revision: int = 1) -> Verdict:
    async with store.receive(push(turn, revision=revision)) as receipt:
        return receipt.verdict


class Process:
    """Another process with the same database; killed at the end."""

    def __init__(self, path: Path, *program: str) -> None:
        program = program or ("-m", "support.store_process")
        self._process = subprocess.Popen(
            [sys.executable, *program, str(path)],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE_S)

    def ask(self, order: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        return self.read()

    def read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def wait(self) -> int:
        return self._process.wait(PATIENCE_S)


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_no_file(path: str) -> None:
    """A path that names no file would forget at once: it is refused where the inbox is made."""
    with pytest.raises(ConfigError, match="names no file"):
        SqliteStore(path)


@pytest.mark.parametrize("path", [".", "/", "a\0b", b"x", "\ud800"], ids=ascii)
def test_no_possible_file(path: str) -> None:
    """What can be no path is reported like a file that cannot be made, and left as it was."""
    before = Path().stat().st_mode
    with pytest.raises(ConfigError, match="the inbox's database"):
        SqliteStore(path)
    assert Path().stat().st_mode == before


async def test_for_its_user_alone(path: Path, stack: AsyncExitStack) -> None:
    """All of its files are readable by their user alone, also where one was not before."""
    path.touch(mode=0o644)
    path.chmod(0o644)
    mask = os.umask(0)
    try:
        assert await received(opened(path, stack)) is Verdict.NEW
    finally:
        os.umask(mask)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    names = {path.name, *(f"{path.name}-{what}" for what in ("wal", "shm", "claims"))}
    assert modes == dict.fromkeys(names, 0o600)


async def test_outlives_the_process(path: Path, stack: AsyncExitStack) -> None:
    """What is acknowledged is on the disk, and known to who opens the database again."""
    with Process(path) as process:
        assert process.ask("take turn-1") == "NEW"
        assert process.ask("end") == "done"
        assert process.ask("take turn-2") == "NEW"
        assert process.ask("die") == ""
    again = opened(path, stack)
    assert await received(again, "turn-1") is Verdict.KNOWN
    assert await received(again, "turn-2") is Verdict.NEW
    assert set(await again.find(["turn-1", "turn-2"])) == {"turn-1", "turn-2"}


async def test_kept_as_long_as_a_turn_can_come_again(path: Path, stack: AsyncExitStack) -> None:
    """An id goes after 90 days, when no sidecar sends it any more, and the body long before."""
    now = 1_800_000_000.0
    store = SqliteStore(path, now=lambda: now)
    stack.push_async_callback(store.aclose)
    assert await received(store) is Verdict.NEW
    now += KEEP_IDS_S
    await store.prune()
    assert await store.find(["turn-1"]) == {}
    assert await received(store) is Verdict.KNOWN
    assert await received(store, "turn-2") is Verdict.NEW
    now += 1
    await store.prune()
    assert await received(store) is Verdict.NEW
    assert await received(store, "turn-2") is Verdict.KNOWN


@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
@pytest.mark.parametrize("what", ["removed", "emptied", "replaced", "claims removed"])
async def test_removed_while_in_use(
    path: Path, store: SqliteStore, what: str, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Removed under the running app, it is made again, and the log names it."""
    if when == "while it is open":
        assert await received(store) is Verdict.NEW
    else:
        other = SqliteStore(path)
        assert await received(other) is Verdict.NEW
        await other.aclose()
    if what == "removed":
        for file in path.parent.iterdir():
            file.unlink()
    elif what == "emptied":
        os.truncate(path, 0)
    elif what == "replaced":
        path.rename(path.with_name("older"))
    else:
        path.with_name(f"{path.name}-claims").unlink()
    lost = what != "claims removed"
    assert await received(store) is (Verdict.NEW if lost else Verdict.KNOWN)
    assert await received(store) is Verdict.KNOWN
    logged = [record.getMessage() for record in caplog.records]
    assert [str(path) in line and "dedupe.renewed" in line for line in logged] == [True] * lost


async def test_removed_while_two_use_it(path: Path, stack: AsyncExitStack) -> None:
    """Removed under two processes, both go on with the same new one."""
    first, second = opened(path, stack), opened(path, stack)
    assert await received(first, "turn-1") is Verdict.NEW
    assert await received(second, "turn-2") is Verdict.NEW
    path.unlink()
    assert await received(first, "turn-3") is Verdict.NEW
    assert await received(second, "turn-3") is Verdict.KNOWN
    await second.aclose()
    assert await received(second, "turn-4") is Verdict.NEW
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM webhook_ids").fetchone() == (2,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_removed_while_a_push_is_stored(path: Path, store: SqliteStore) -> None:
    """What is acknowledged is in the database that the path names."""
    async with store.receive(push("turn-1")):
        path.unlink()
    assert await received(store) is Verdict.KNOWN


async def test_directory_removed_while_in_use(tmp_path: Path, stack: AsyncExitStack) -> None:
    """Where its directory is gone the error names it, and all is well when that is back."""
    directory = tmp_path / "state"
    directory.mkdir()
    store = opened(directory / "inbox.sqlite3", stack)
    assert await received(store) is Verdict.NEW
    shutil.rmtree(directory)
    with pytest.raises(StoreFailed, match=r"inbox\.sqlite3: No such file"):
        await received(store)
    with pytest.raises(StoreFailed, match=r"inbox\.sqlite3: No such file"):
        await store.find(["turn-1"])
    directory.mkdir()
    assert await received(store) is Verdict.NEW
    assert await received(store) is Verdict.KNOWN


async def test_not_in_the_working_directory_of_today(
    tmp_path: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is where the inbox was made, wherever the process goes."""
    monkeypatch.chdir(tmp_path)
    store = opened(Path("inbox.sqlite3"), stack)
    assert await received(store) is Verdict.NEW
    monkeypatch.chdir("/")
    assert await received(store) is Verdict.KNOWN


async def test_by_a_link(tmp_path: Path, stack: AsyncExitStack) -> None:
    """A link names the same database, and whoever uses either has the same claims."""
    (tmp_path / "link").symlink_to(tmp_path / "inbox.sqlite3")
    one, other = opened(tmp_path / "link", stack), opened(tmp_path / "inbox.sqlite3", stack)
    async with one.receive(push("turn-1")):
        assert await received(other) is Verdict.BUSY


async def test_threads_of_its_own(store: SqliteStore) -> None:
    """It does not wait behind an app that keeps all of its threads busy."""
    everything = anyio.to_thread.current_default_thread_limiter()
    tokens = [object() for _ in range(int(everything.total_tokens))]
    for token in tokens:
        everything.acquire_on_behalf_of_nowait(token)
    try:
        with anyio.fail_after(PATIENCE_S):
            assert await received(store) is Verdict.NEW
    finally:
        for token in tokens:
            everything.release_on_behalf_of(token)


async def test_claim_of_another_process(path: Path, store: SqliteStore) -> None:
    """A turn that another process stores is busy, until it is stored or that process dies."""
    with Process(path) as process, Process(path) as third:
        assert process.ask("take turn-1") == "NEW"
        assert third.ask("take turn-2") == "NEW"
        assert await received(store, "turn-1") is Verdict.BUSY
        assert await received(store, "turn-1", revision=2) is Verdict.BUSY
        assert await received(store, "turn-2") is Verdict.BUSY
        assert process.ask("end") == "done"
        assert await received(store, "turn-1") is Verdict.KNOWN
        assert third.ask("die") == ""
        third.wait()
        assert await received(store, "turn-2") is Verdict.NEW


def test_claims(tmp_path: Path) -> None:
    """All of the names are claimed, or none; nothing lies about afterwards."""
    path = tmp_path / "claims"
    first, second = Claims(path), Claims(path)
    assert first.take("turn-1", "id-1")
    assert not first.take("turn-1", "id-2")
    assert not second.take("turn-2", "id-1")
    assert first.take("turn-2", "id-2")
    first.drop("turn-1", "id-1")
    assert second.take("turn-1", "id-1")
    first.close()
    assert second.take("turn-2", "id-2")
    second.close()
    assert [file.name for file in tmp_path.iterdir()] == ["claims"]
    assert path.stat().st_size == 0


def test_claims_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no lock for one of the names, none of them is claimed."""
    first, second = Claims(tmp_path / "claims"), Claims(tmp_path / "claims")
    set_lock = claims._set_lock

    def fails(file: int, name: str, kind: int) -> None:
        if name == "id-1":
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        set_lock(file, name, kind)

    monkeypatch.setattr(claims, "_set_lock", fails)
    with pytest.raises(OSError, match="No locks"):
        first.take("turn-1", "id-1")
    monkeypatch.undo()
    assert second.take("turn-1", "id-1")


_FORKING = """
import os, sys, threading, anyio
from support.pushes import push
from paliadin_client.store.sqlite import SqliteStore

store = SqliteStore(sys.argv[1])

async def receive(turn):
    async with store.receive(push(turn)) as receipt:
        return receipt.verdict.name

def child():
    turns = ("turn-1", "turn-2", "turn-3")
    thread = threading.Thread(target=lambda: print(*(anyio.run(receive, turn) for turn in turns)))
    thread.start()
    thread.join()
    sys.stdout.flush()

async def parent():
    assert await receive("turn-1") == "NEW"
    async with store.receive(push("turn-2")):
        if (forked := os.fork()) == 0:
            child()
            os._exit(0)
        os.waitpid(forked, 0)
        print(await receive("turn-3"), await receive("turn-4"), flush=True)
        if os.fork():
            os._exit(0)
        print("child", flush=True)
        sys.stdin.read()
        os._exit(0)

anyio.run(parent)
"""


def test_claims_whose_file_was_removed(tmp_path: Path) -> None:
    """Whoever holds a file that was removed claims in the new one, as all others do."""
    path = tmp_path / "claims"
    first = Claims(path)
    assert first.take("turn-1")
    first.drop("turn-1")
    path.unlink()
    second = Claims(path)
    assert second.take("turn-1")
    assert not first.take("turn-1")
    first.close()
    second.close()


async def test_a_fork_carries_nothing_over(path: Path, store: SqliteStore) -> None:
    """A child has a connection of its own, and keeps no claim of a parent that died."""
    with Process(path, "-c", _FORKING) as process:
        said = [process.read() for _ in range(3)]
        assert said == ["KNOWN BUSY NEW", "KNOWN NEW", "child"]
        assert process.wait() == 0
        # The last child still lives.
        assert await received(store, "turn-2") is Verdict.NEW
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_what_gathers_shares_a_commit(store: SqliteStore) -> None:
    """What comes while the thread is busy waits for one commit together."""
    commits: list[str] = []
    go = threading.Event()

    def wait(db: sqlite3.Connection, _: object) -> list[bool]:
        db.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        return [go.wait(PATIENCE_S)]

    turns = [f"turn-{number}" for number in range(8)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store._thread.read, wait, None)
        for turn in turns:
            tasks.start_soon(store.leave_reply, turn, turn.encode())
        await anyio.wait_all_tasks_blocked()
        go.set()
    assert commits == ["COMMIT"]
    found = await store.find(turns)
    assert {turn: each.reply for turn, each in found.items()} == {
        turn: turn.encode() for turn in turns
    }


async def test_one_that_fails_spoils_nothing(store: SqliteStore) -> None:
    """Of those that share a commit, one that cannot be written does not take the others with it."""
    go = threading.Event()

    def wait(_: object, __: object) -> list[bool]:
        return [go.wait(PATIENCE_S)]

    def fail(db: sqlite3.Connection, _: object) -> list[object]:
        return [db.execute("INSERT INTO webhook_ids VALUES (NULL, NULL)")]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store._thread.read, wait, None)
        await anyio.wait_all_tasks_blocked()
        failing = store._thread.begin(fail, None, writes=True)
        tasks.start_soon(store.leave_reply, "turn-1", b"reply")
        await anyio.wait_all_tasks_blocked()
        go.set()
    with pytest.raises(StoreFailed, match="NOT NULL"):
        await failing
    assert (await store.find(["turn-1"]))["turn-1"].reply == b"reply"


async def test_cancelled_while_it_is_committed(store: SqliteStore) -> None:
    """Whoever is cancelled waits for the commit: the turn is not free before it is decided."""
    go = threading.Event()

    def wait(_: object, __: object) -> list[bool]:
        return [go.wait(PATIENCE_S)]

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with store.receive(push("turn-1")):
                tasks.start_soon(store._thread.read, wait, None)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
                tasks.start_soon(anyio.to_thread.run_sync, go.set)
    assert await received(store) is Verdict.KNOWN


async def test_busy_database(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that somebody holds for too long is an error, not a forgotten turn."""
    monkeypatch.setattr("paliadin_client.store.sqlite_file._BUSY_S", 0.1)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreFailed, match=r"inbox\.sqlite3: database is locked; another"):
            await received(store)
    assert await received(store) is Verdict.NEW


async def test_full_disk(path: Path, store: SqliteStore) -> None:
    """A push that finds no room is not stored, and is when there is room again."""
    assert await received(store, "turn-1") is Verdict.NEW
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, unlimited[1]))
    try:
        with pytest.raises(StoreFailed, match=r"inbox\.sqlite3: .*disk"):
            async with store.receive(push("turn-2", "x" * 1_000_000)):
                pass
        assert await received(store, "turn-1") is Verdict.KNOWN
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    async with store.receive(push("turn-2", "x" * 1_000_000)) as receipt:
        assert receipt.verdict is Verdict.NEW
    assert await received(store, "turn-1") is Verdict.KNOWN


async def test_a_commit_whose_flush_failed_is_not_believed(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens the database finds it in the log, and flushes that before it is known."""
    assert await received(store) is Verdict.NEW

    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(ConfigError, match=os.strerror(errno.EIO)):
        SqliteStore(path)


async def test_damaged(path: Path, store: SqliteStore) -> None:
    """One that is no database any more is an error that says how to go on."""
    path.write_bytes(b"no database at all, " * 1000)
    with pytest.raises(StoreFailed, match=r"not a database; stop the app, move inbox\.sqlite3, "):
        await received(store)
    with pytest.raises(ConfigError, match="not a database"):
        SqliteStore(path)


def test_of_a_later_version(path: Path) -> None:
    """A database of a later layout is left alone."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="a later version of this package has made it"):
        SqliteStore(path)


async def test_of_the_version_before(path: Path, stack: AsyncExitStack) -> None:
    """What a database of the first layout knows is known, and its other file is no matter."""
    one = push("turn-1", revision=2)
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(
            """
            CREATE TABLE webhook_ids (id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
            CREATE INDEX webhook_ids_at ON webhook_ids (at);
            CREATE TABLE ranks (
                turn TEXT PRIMARY KEY,
                file TEXT NOT NULL,
                answered INTEGER NOT NULL,
                revision INTEGER NOT NULL,
                at REAL NOT NULL
            ) WITHOUT ROWID;
            CREATE INDEX ranks_at ON ranks (at);
            """
        )
        db.execute("INSERT INTO webhook_ids VALUES (?, 1.8e9)", (one.webhook_id,))
        db.execute("INSERT INTO ranks VALUES ('turn-1', 'aichat_paliadin_turn-1', 1, 2, 1.8e9)")
    path.with_name(f"{path.name}.locks").mkdir()
    store = opened(path, stack)
    assert await received(store, "turn-1", revision=2) is Verdict.KNOWN
    assert await received(store, "turn-1", revision=1) is Verdict.OUTRANKED
    assert await received(store, "turn-1", revision=3) is Verdict.NEW
    assert await received(store, "turn-2") is Verdict.NEW


def test_first_opened_by_many(tmp_path: Path) -> None:
    """Processes that start at once make one database."""
    path = tmp_path / "inbox.sqlite3"
    with ExitStack() as stack:
        processes = [stack.enter_context(Process(path)) for _ in range(4)]
        for number, process in enumerate(processes):
            assert process.ask(f"take turn-{number}") == "NEW"
        for process in processes:
            assert process.ask("end") == "done"
            assert process.ask("take turn-0") == "KNOWN"
            assert process.ask("end") == "done"


async def test_hints_of_another_process(path: Path, store: SqliteStore) -> None:
    """What another process commits is noticed at once, also after the database was made anew."""
    hints: list[str | None] = []
    hinted = anyio.Event()

    def on_hint(turn: str | None) -> None:
        nonlocal hinted
        hints.append(turn)
        hinted.set()
        hinted = anyio.Event()

    with Process(path) as process, anyio.fail_after(PATIENCE_S):
        async with store.hints(on_hint):
            await hinted.wait()
            assert hints == [None]
            for turn in ("turn-1", "turn-2"):
                notified = hinted
                assert process.ask(f"take {turn}") == "NEW"
                assert process.ask("end") == "done"
                await notified.wait()
                while turn not in await store.find([turn]):
                    await hinted.wait()
                path.unlink()
                await store.prune()
            assert await received(store, "turn-3") is Verdict.NEW
            assert "turn-3" in hints


async def test_one_look_at_a_time(
    tmp_path: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One timer asks for a database that is away, however much is notified; it ends in time."""
    monkeypatch.setattr(sqlite_changes, "_AWAY_S", 0.3)
    looks: list[int] = []
    look, compare = sqlite_changes.Watch.look, sqlite_changes.Watch._compare
    compared = anyio.Event()

    def counted(watch: sqlite_changes.Watch) -> None:
        looks.append(len(looks))
        look(watch)

    def notified(watch: sqlite_changes.Watch, looked: asyncio.Future[object]) -> None:
        nonlocal compared
        compare(watch, looked)
        compared.set()
        compared = anyio.Event()

    monkeypatch.setattr(sqlite_changes.Watch, "look", counted)
    monkeypatch.setattr(sqlite_changes.Watch, "_compare", notified)
    (folder := tmp_path / "here").mkdir()
    store = opened(folder / "inbox.sqlite3", stack)
    with anyio.fail_after(PATIENCE_S):
        async with store.hints(lambda _: None):
            await compared.wait()
            folder.rename(away := tmp_path / "away")
            for _ in range(4):
                event = compared
                (away / "inbox.sqlite3-claims").read_bytes()  # as another process's touch
                await event.wait()
    left = len(looks)
    # A timer that was left would be due before this one, and the loop calls them in their order.
    await anyio.sleep(2 * sqlite_changes._AWAY_S)
    assert len(looks) == left


async def test_no_watches_left(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel gives no watch, what this process does is notified all the same."""
    monkeypatch.setattr("paliadin_client.store.sqlite_changes._open_inotify", lambda: None)
    hints: list[str | None] = []
    async with store.hints(hints.append):
        assert await received(store) is Verdict.NEW
        assert await store.find(["turn-1"])
    assert hints == [None, "turn-1"]


async def test_a_window_of_a_killed_process(path: Path, stack: AsyncExitStack) -> None:
    """A window that a killed process held is free when its time is over."""
    now = 1_800_000_000.0
    with Process(path) as process:
        assert process.ask("hold turn-1") == "turn-1"
    store = opened(path, stack)
    assert (await store.hold(Window("window", "user", "turn-2"), 30)).turn_id == "turn-1"
    later = SqliteStore(path, now=lambda: now)
    stack.push_async_callback(later.aclose)
    for now in (0.0, 4e9):  # noqa: B007 - the clock that `later` reads
        held = await later.hold(Window("window", "user", "turn-2"), 30)
        assert held.turn_id == "turn-2"
        await later.release(held)
