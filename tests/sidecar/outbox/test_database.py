from __future__ import annotations

import errno
import os
import re
import sqlite3
import subprocess
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.noise import noise
from support.users import root_only

from paliadin_sidecar.errors import (
    Damaged,
    DiskFails,
    Full,
    Newer,
    Unwritable,
)
from paliadin_sidecar.outbox import acceptance, database, event_rows, queries, queue, transitions
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.records import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

from support.outbox_box import LATE_S, Box, answer, key, sha256, webhook_id

ROOM = Path(database.__file__).parent


@pytest.mark.parametrize("set_s", [3600, -3600, 40 * 365 * 86_400])
def test_late_by_no_date(box: Box, set_s: float) -> None:
    """Ten minutes are ten minutes, whoever sets the clock meanwhile."""
    box(acceptance.accept, answer("A"))
    box.set_date(set_s)
    box.now += LATE_S
    assert box(acceptance.accept, answer("B"))
    box.set_date(-set_s)
    box.now += 0.001
    assert not box(acceptance.accept, answer("C"))


def test_times_follow_a_clock_that_is_set(box: Box) -> None:
    """What waits goes on waiting as long as it would have, and is as old as it was."""
    box(acceptance.accept, answer())
    (due,) = box.due()
    box.retry(due, 30.0)
    for set_s in (3600, -7200):
        box.set_date(set_s)
        assert box.due() == []
        assert box.due_in() == 30
        assert box(queries.oldest_pending_s) == 0
    box.now += 30
    (again,) = box.due()
    assert again.first_attempt_at == again.accepted_at == box.now - 30
    assert box(queries.oldest_pending_s) == 30


def test_a_clock_that_is_set_in_vain(box: Box) -> None:
    """A transaction that does not take effect leaves the clock's step to the next one."""
    box(acceptance.accept, answer("A"))
    box.set_date(3600)
    with pytest.raises(ZeroDivisionError):
        box(lambda _: 1 / 0)
    assert box(acceptance.accept, answer("B"))


def test_a_process_that_is_held_between_two_clocks(box: Box) -> None:
    """Who is stopped between reading one clock and the other reads both again."""
    box(acceptance.accept, answer("A"))
    wall, held = box.outbox.wall, [700.0]

    def held_once() -> float:
        box.now += held.pop() if held else 0.0
        return wall()

    box.outbox.wall = held_once
    assert box(queue.fetch_due, (), limit=9, max_retries=9)[0][0].accepted_at == box.now - 700


def test_open(tmp_path: Path) -> None:
    """A database is made once, survives the loss of power, and is found again."""
    path = tmp_path / "with ? # % and ü" / FILENAME
    path.parent.mkdir()
    for _ in range(2):
        with Outbox(path, create=True) as outbox:
            event_rows.record_service_event(outbox, "service.started", {})
            assert outbox.pragma("synchronous") == 2
            assert outbox.pragma("user_version") == 1
            outbox.files.check()
    with Outbox(path) as outbox:
        assert [event.id for event in event_rows.events(outbox, 0)] == [1, 2]
    assert [p.name for p in path.parent.iterdir()] == [FILENAME]


def test_open_nothing(tmp_path: Path) -> None:
    """Who only asks makes no database."""
    with pytest.raises(FileNotFoundError):
        Outbox(tmp_path / FILENAME)
    assert list(tmp_path.iterdir()) == []


def test_newer(tmp_path: Path) -> None:
    """A later version's database is left alone, with a message that names both versions."""
    path = tmp_path / FILENAME
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")
    for create in (True, False):
        with pytest.raises(Newer) as caught:
            Outbox(path, create=create)
        assert str(caught.value) == (f"{path}: is of version 2, this program knows 1")


@pytest.mark.parametrize(
    ("content", "create", "detail"),
    [
        (b"this is no database" * 100, True, "is damaged, or its disk is (SQLITE_NOTADB)"),
        (b"SQLite format 3\0" + b"\xff" * 5000, True, "is damaged, or its disk is (SQLITE_"),
    ],
)
def test_damaged(tmp_path: Path, content: bytes, detail: str, *, create: bool) -> None:
    """What is no database of ours is reported, and not written to."""
    path = tmp_path / FILENAME
    path.write_bytes(content)
    with pytest.raises(Damaged) as caught:
        Outbox(path, create=create)
    assert str(caught.value).startswith(f"{path}: {detail}")
    assert path.read_bytes()[:100] == content[:100]


def test_another_s_database(tmp_path: Path) -> None:
    """A database without a version that holds something is no outbox."""
    with closing(sqlite3.connect(tmp_path / FILENAME)) as database:
        database.execute("CREATE TABLE other (column)")
    with pytest.raises(Damaged, match="is no outbox"):
        Outbox(tmp_path / FILENAME)


def test_one_whose_making_was_cut_short(tmp_path: Path) -> None:
    """An empty file, as a full disk leaves it, holds nothing: it counts as none, and is made."""
    (tmp_path / FILENAME).touch()
    with pytest.raises(FileNotFoundError):
        Outbox(tmp_path / FILENAME)
    with Outbox(tmp_path / FILENAME, create=True) as outbox:
        assert queries.counts(outbox) == {}


def test_damaged_later(box: Box) -> None:
    """Damage that shows only when a page is read is reported then."""
    box(acceptance.accept, answer("x" * 10_000))
    box.outbox.close()
    content = box.path.read_bytes()
    box.path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(Damaged, match="SQLITE_CORRUPT"), Outbox(box.path) as outbox:
        outbox.transaction([partial(queries.counts, outbox)])


def test_truncated(box: Box) -> None:
    """A database that lost its end is damaged."""
    box(acceptance.accept, answer("x" * 10_000))
    box.outbox.close()
    with box.path.open("r+b") as file:
        file.truncate(8192)
    with pytest.raises(Damaged), Outbox(box.path) as outbox:
        outbox.transaction([partial(queries.counts, outbox)])


def test_a_failed_opening_leaves_nothing_open(tmp_path: Path) -> None:
    """Whoever cannot open a database does not keep its file open either."""
    for content, error in ((b"", FileNotFoundError), (b"this is no database" * 100, Damaged)):
        (tmp_path / FILENAME).write_bytes(content)
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(error):
            Outbox(tmp_path / FILENAME)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def unlink(path: Path) -> None:
    path.unlink()


def replace_with_another(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(0)


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("harm", [unlink, replace_with_another, truncate])
def test_identity(box: Box, harm: Callable[[Path], None], suffix: str) -> None:
    """A file that was taken away under us is noticed: nobody would find what we commit."""
    box.outbox.files.check()
    harm(box.path.with_name(f"{FILENAME}{suffix}"))
    for act in (box.outbox.files.check, lambda: box(queries.counts)):
        with pytest.raises(Damaged) as caught:
            act()
        assert str(caught.value) == (
            f"{box.path}: was removed, replaced or truncated while it was in use"
        )


@pytest.mark.parametrize(
    ("number", "raised"),
    [(errno.EIO, DiskFails), (errno.ESTALE, DiskFails), (errno.EACCES, Unwritable)],
)
def test_a_file_that_cannot_be_looked_at_is_not_gone(
    box: Box, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[Exception]
) -> None:
    """What is called removed is moved aside, and it alone has what is undelivered."""
    stat, path = os.stat, str(box.outbox.path)

    def refused(name: str) -> os.stat_result:
        if name == path:
            raise OSError(number, os.strerror(number), name)
        return stat(name)

    def transaction() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", refused)
            box.outbox.transaction([lambda: None])

    with pytest.raises(raised):
        transaction()


def test_a_log_that_is_not_there_yet(box: Box) -> None:
    """A database that was closed well has no log until the first commit: that is no harm."""
    box.outbox.close()
    with Outbox(box.path) as outbox:
        outbox.files.check()
        outbox.transaction([partial(queries.counts, outbox)])
        outbox.transaction(
            [partial(event_rows.record_service_event, outbox, "service.started", {})]
        )
        outbox.files.check()
        unlink(box.path.with_name(f"{FILENAME}-wal"))
        with pytest.raises(Damaged):
            outbox.files.check()


def emptied(path: Path) -> int:
    """`PRAGMA wal_checkpoint(TRUNCATE)`, as typed in a shell; the log's size after it."""
    with closing(sqlite3.connect(path)) as shell:
        assert shell.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    return path.with_name(f"{FILENAME}-wal").stat().st_size


def test_a_log_that_a_checkpoint_emptied(box: Box) -> None:
    """All of it is in the database then, and the outbox goes on, also where it is idle."""
    box(acceptance.accept, answer())
    for _ in range(2):
        assert emptied(box.path) == 0
        box.outbox.files.check()
        log = box.path.with_name(f"{FILENAME}-wal")
        before = log.stat().st_mtime_ns
        assert box(queries.counts) == {"pending": 1}
        assert log.stat().st_mtime_ns == before  # an idle host's disk may sleep
        box(event_rows.record_service_event, "service.started", {})
    truncate(log)
    with pytest.raises(Damaged):
        box(acceptance.accept, answer(key=key("other")))


def test_changed_elsewhere(box: Box) -> None:
    """What another process writes shows in a number; what we write ourselves does not."""
    before = box(Outbox.changed_elsewhere)
    box(acceptance.accept, answer())
    box.deliver()
    assert box(Outbox.changed_elsewhere) == before
    with closing(Box(box.path).outbox) as command:
        command.transaction([partial(transitions.replay, command)])
    assert box(Outbox.changed_elsewhere) != before
    assert len(box.due()) == 1


class Oops(Exception):
    pass


def fail() -> None:
    raise Oops


@pytest.mark.parametrize("error", [Oops, KeyboardInterrupt])
def test_all_or_nothing(box: Box, error: type[BaseException]) -> None:
    """If one step fails none took effect, and the outbox goes on."""

    def fail() -> None:
        raise error

    step = partial(event_rows.record_service_event, box.outbox, "service.started", {})
    steps: list[Callable[[], None]] = [step, fail]
    with pytest.raises(error):
        box.outbox.transaction(steps)
    assert box.events() == []
    assert box.outbox.last_event == 0
    box.outbox.transaction([step])
    assert box.events() == [("service.started", {})]


def test_a_disk_that_is_full(box: Box) -> None:
    """Without room nothing is half done; once there is room, it goes on."""
    box(acceptance.accept, answer())
    pages = box.outbox.pragma("page_count")
    box.outbox.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Full) as caught:
        box(acceptance.accept, answer(noise(100_000), key("other")))
    assert str(caught.value) == f"{box.path}: there is no room on its disk"
    assert box(queries.timelines, "other") == []
    assert len(box.due()) == 1
    box.outbox.connection.execute("PRAGMA max_page_count = 1000000")
    assert box(acceptance.accept, answer(noise(100_000), key("other")))


@contextmanager
def mounted(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path],
        check=True,
        capture_output=True,
    )
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@root_only
def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    """On a file system without room for it an answer is not taken; what is there can be sent."""
    try:
        with mounted(tmp_path / "disk", "400k"):
            path = tmp_path / "disk" / FILENAME
            with closing(Outbox(path, create=True)) as outbox:
                small, large = answer(), answer(noise(1_000_000), key("large"))
                assert (
                    outbox.transaction([partial(acceptance.accept, outbox, small)])[0] is not None
                )
                for _ in range(2):
                    with pytest.raises(Full):
                        outbox.transaction([partial(acceptance.accept, outbox, large)])
                ((found, _),) = outbox.transaction(
                    [partial(queue.fetch_due, outbox, (), limit=9, max_retries=9)]
                )
                assert [due.webhook_id for due in found] == [webhook_id(1, sha256("Yes."))]
                sent = partial(transitions.record_delivered, outbox, found[0], Outcome(status=204))
                outbox.transaction([sent])
                assert queries.counts(outbox) == {"delivered": 1}
                outbox.files.check()
    except subprocess.CalledProcessError as exc:
        pytest.skip(f"this root may not mount: {exc.stderr}")


def test_every_statement_is_used_and_every_use_has_one() -> None:
    """A name that is wrong would be found only when it is needed."""
    used = set()
    for module in ROOM.glob("*.py"):
        used |= set(re.findall(r"\bsql\.(\w+)", module.read_text()))
    assert used - {"sql"} == set(vars(database.sql))


def test_every_statement_has_a_sentence() -> None:
    """Above its name stands what it does."""
    lines = (ROOM / "outbox.sql").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("-- name: "):
            assert re.fullmatch(r"-- .*[.]", lines[number - 1]), line
