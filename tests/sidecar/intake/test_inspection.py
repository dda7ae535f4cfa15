"""One file after the other, in whatever manner it is written."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from support.watched import (
    KEY,
    MAX_BYTES,
    QUIET_S,
    TEXT,
    TRAILER,
    WHOLE,
    Place,
    append,
    descriptors,
    make,
    texts,
)
from support.writer import Writer

from paliadin_sidecar.errors import Unreadable
from paliadin_sidecar.intake.completion import EMPTY_S, HELD_S, LINKS_S, STALLED_S
from paliadin_sidecar.intake.events import (
    Gone,
    Stalled,
    Vanished,
)
from paliadin_sidecar.intake.fingerprint import COARSE_S, Fingerprint
from paliadin_sidecar.intake.turnfile import TurnFile
from paliadin_sidecar.outbox.records import Arrival, TurnKey

if TYPE_CHECKING:
    from collections.abc import Callable


def test_renamed(heard: Place) -> None:
    """A file that is renamed into place settles at once, with all that is known of it."""
    heard.publish()
    info = (heard / "t.txt").stat()
    assert heard.notice("a.tmp", "t.txt") == []
    assert heard.look() == [
        Arrival(
            KEY,
            str(Fingerprint.of(info)),
            datetime.fromtimestamp(info.st_mtime_ns / 1e9, UTC),
            len(WHOLE),
            data=WHOLE.encode(),
            sha256=hashlib.sha256(WHOLE.encode()).hexdigest(),
        )
    ]
    assert heard.files.due_in() is None


def test_written_in_one_go(heard: Place) -> None:
    """One open, write and close is as good as a rename."""
    (heard / "t.txt").write_text(WHOLE)
    heard.notice("t.txt")
    assert texts(heard.look()) == [WHOLE]


def test_a_slow_writer(heard: Place) -> None:
    """Who keeps the file open is waited for, whatever stands in it meanwhile."""
    with Writer(heard / "t.txt") as writer:
        heard.notice("t.txt")
        for line in WHOLE.splitlines():
            assert heard.wait(1) == []
            writer.write(line)
            heard.notice("t.txt")
        assert heard.wait(20) == []
    assert texts(heard.wait(0.5)) == [WHOLE]


def test_a_writer_that_stalls(heard: Place) -> None:
    """Who keeps it open for minutes is reported once, and still waited for."""
    with Writer(heard / "t.txt") as writer:
        heard.notice("t.txt")
        assert heard.wait(STALLED_S - 0.5) == []
        assert heard.wait(1) == [Stalled(KEY, "open_for_writing", "")]
        writer.write("Yes.")
        heard.notice("t.txt")
        assert heard.wait(STALLED_S) == []
        for line in TRAILER.splitlines():
            writer.write(line)
    assert texts(heard.wait(1)) == [WHOLE]


def test_a_whole_answer_that_stays_open(heard: Place) -> None:
    """A child that inherited the descriptor holds an answer back for two minutes, and no longer."""
    with Writer(heard / "t.txt") as writer:
        for line in WHOLE.splitlines():
            writer.write(line)
        heard.notice("t.txt")
        assert heard.wait(HELD_S - 1) == []
        assert heard.files.describe()["waiting"] == []
        stalled, settled = heard.wait(2)
        assert stalled == Stalled(KEY, "open_for_writing", "pushed")
        assert texts([settled]) == [WHOLE]
        assert heard.every_file() == []
        writer.write("And more.")
        writer.write("Never ended.")
        heard.notice("t.txt")
        assert [
            f for f in [*heard.every_file(), *heard.wait(HELD_S)] if isinstance(f, Arrival)
        ] == []
    assert len(texts(heard.wait(QUIET_S + 1))) == 1


def test_a_trailer_in_one_piece(heard: Place) -> None:
    """Text whose trailer another process appends is pushed with it, and once."""
    (heard / "t.txt").write_text(TEXT)
    heard.notice("t.txt")
    assert heard.wait(QUIET_S - 1) == []
    append(heard / "t.txt", TRAILER)
    heard.notice("t.txt")
    assert texts(heard.wait(1 if heard.hears else QUIET_S)) == [WHOLE]
    assert heard.wait(60) == []


def test_a_trailer_line_by_line(heard: Place) -> None:
    """A trailer that comes line by line, each with its own open, is waited for to its end."""
    (heard / "t.txt").write_text(TEXT)
    heard.notice("t.txt")
    for line in TRAILER.splitlines(keepends=True):
        assert heard.wait(QUIET_S - 1) == []
        append(heard / "t.txt", line)
        heard.notice("t.txt")
    assert texts(heard.wait(QUIET_S)) == [WHOLE]
    assert heard.wait(60) == []


def test_a_trailer_that_comes_late(heard: Place) -> None:
    """A trailer that follows when nobody waits any more is a second arrival."""
    (heard / "t.txt").write_text(TEXT)
    heard.notice("t.txt")
    assert texts(heard.wait(QUIET_S)) == [TEXT]
    append(heard / "t.txt", TRAILER)
    heard.notice("t.txt")
    assert texts([*heard.look(), *heard.every_file()]) == [WHOLE]


def test_no_trailer(heard: Place) -> None:
    """A file without an end mark settles when it has rested, and not before."""
    (heard / "t.txt").write_text(TEXT)
    heard.notice("t.txt")
    assert heard.wait(QUIET_S - 0.25) == []
    assert texts(heard.wait(0.5)) == [TEXT]


def test_empty_at_first(heard: Place) -> None:
    """A file that is empty for long is looked at again when it is filled."""
    (heard / "t.txt").touch()
    heard.notice("t.txt")
    assert heard.wait(EMPTY_S / 2) == []
    append(heard / "t.txt", WHOLE)
    heard.notice("t.txt")
    assert texts([*heard.wait(1), *heard.every_file()]) == [WHOLE]


def test_empty_and_replaced(heard: Place) -> None:
    """An empty file that a whole one is renamed over is looked at again, event or not."""
    (heard / "t.txt").touch()
    heard.notice("t.txt")
    assert heard.wait(EMPTY_S / 2) == []
    heard.publish()
    heard.notice("a.tmp", "t.txt")
    assert texts(heard.wait(1)) == [WHOLE]


def test_empty_for_good(heard: Place) -> None:
    """A file that stays empty has failed after ten minutes."""
    (heard / "t.txt").touch()
    heard.notice("t.txt")
    assert heard.wait(EMPTY_S - 1) == []
    assert texts(heard.wait(1)) == ["empty"]
    assert heard.every_file() == []


def test_published_by_a_link(heard: Place) -> None:
    """A file that is linked into place settles when its first name is gone."""
    (heard / "a.tmp").write_text(WHOLE)
    os.link(heard / "a.tmp", heard / "t.txt")
    heard.notice("t.txt")
    assert heard.wait(LINKS_S / 2) == []
    (heard / "a.tmp").unlink()
    assert texts(heard.wait(LINKS_S / 2)) == [WHOLE]


def test_many_events(place: Place) -> None:
    """However often a name is called, what is there settles once."""
    place.publish()
    for _ in range(100):
        place.notice("t.txt")
    assert texts(place.wait(10)) == [WHOLE]
    for _ in range(3):
        place.notice("t.txt")
        assert place.wait(10) == []


def test_a_file_that_always_changes(place: Place, looks: list[float]) -> None:
    """One that changes between each look and its reading is looked at less and less often."""
    place.publish()
    place.notice("t.txt")
    numbers = count()
    change = lambda: (place / "t.txt").write_text(f"{next(numbers)}{TRAILER}")  # noqa: E731 - one expression, handed on twice
    place.acts = [change] * 1000
    assert place.wait(600) == []
    assert len(looks) < 650
    place.acts = []
    assert len(texts(place.wait(1))) == 1


def test_a_file_that_cannot_be_opened_is_tried_less_often(
    place: Place, looks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that stays costs one look in ten seconds in the end; an event asks at once."""
    refused = OSError(errno.EIO, "no")

    def fails(*_: object, **__: object) -> NoReturn:
        looks.append(place.now)
        raise Unreadable("t.txt", refused)

    place.publish()
    with monkeypatch.context() as patched:
        patched.setattr(TurnFile, "__init__", fails)
        place.notice("t.txt")
        assert place.wait(3600) == [Stalled(KEY, "unreadable", "EIO")]
        assert len(looks) < 370
    place.notice("t.txt")
    assert texts(place.look()) == [WHOLE]


@pytest.mark.slow
def test_many_files_that_are_held(place: Place, looks: list[float]) -> None:
    """However many are held open, they are looked at no more often than a core can bear."""
    with ExitStack() as held:
        for n in range(200):
            held.enter_context((place / f"t{n}.txt").open("w"))
        place.scan()
        place.wait(1)
        del looks[:]
        place.wait(60)
        assert len(looks) <= 60_000 * 1.1


def test_a_writer_s_end_is_seen_soon(place: Place) -> None:
    """Of one file, that is: patience is for what stays."""
    with Writer(place / "t.txt") as writer:
        for line in WHOLE.splitlines():
            writer.write(line)
        place.notice("t.txt")
        place.wait(60)
    assert texts(place.wait(0.04)) == [WHOLE]


def test_replaced(heard: Place) -> None:
    """New content under an old name is a second arrival."""
    heard.publish()
    heard.notice("t.txt")
    assert texts(heard.look()) == [WHOLE]
    heard.publish(content=f"No.{TRAILER}")
    heard.notice("a.tmp", "t.txt")
    assert texts([*heard.look(), *heard.every_file()]) == [f"No.{TRAILER}"]


def test_a_revision_that_is_empty_at_first(heard: Place) -> None:
    """A file that was taken and is under observation again is looked at when its name moves."""
    heard.publish()
    heard.notice("t.txt")
    heard.look()
    heard.publish(content="")
    assert heard.every_file() == []
    heard.publish(content=f"No.{TRAILER}")
    heard.notice("a.tmp", "t.txt")
    assert texts(heard.wait(1)) == [f"No.{TRAILER}"]


def test_rewritten_while_it_is_read(heard: Place) -> None:
    """A file that is written anew while we read it is read anew: no half of it settles."""
    heard.publish()
    heard.notice("t.txt")
    heard.acts = [lambda: (heard / "t.txt").write_text(f"No, never.{TRAILER}")]
    assert texts(heard.wait(0.5)) == [f"No, never.{TRAILER}"]
    assert heard.every_file() == []


def test_opened_while_it_is_read(heard: Place) -> None:
    """A file that a writer opens while we read it is waited for."""
    with ExitStack() as writing:
        heard.publish()
        heard.notice("t.txt")
        heard.acts = [lambda: writing.enter_context(Writer(heard / "t.txt"))]
        assert heard.wait(1) == []
    assert texts(heard.wait(0.5)) == [WHOLE]


def test_replaced_while_it_is_read(heard: Place) -> None:
    """What was opened is read to its end; what took its name is an arrival of its own."""
    heard.publish()
    heard.notice("t.txt")
    heard.acts = [lambda: heard.publish(content=f"No.{TRAILER}")]
    assert texts(heard.look()) == [WHOLE]
    heard.notice("t.txt")
    assert texts([*heard.look(), *heard.every_file()]) == [f"No.{TRAILER}"]


def test_unlinked_while_it_is_read(heard: Place) -> None:
    """A poller that deletes the file under our hands costs nothing."""
    heard.publish()
    heard.notice("t.txt")
    heard.acts = [(heard / "t.txt").unlink]
    assert texts(heard.look()) == [WHOLE]
    assert heard.notice("t.txt") + heard.look() == [Gone(KEY)]


def test_unlinked_after_it_was_opened(heard: Place) -> None:
    """What we had opened settles although its name went long before it had ended."""
    with Writer(heard / "t.txt") as writer:
        heard.notice("t.txt")
        assert heard.look() == []
        (heard / "t.txt").unlink()
        heard.notice("t.txt")
        for line in WHOLE.splitlines():
            writer.write(line)
        assert heard.wait(1) == []
    assert texts(heard.wait(0.5)) == [WHOLE]
    assert heard.every_file() == [Gone(KEY)]


def test_vanished(heard: Place) -> None:
    """A name that goes before it is opened is reported, and forgotten."""
    heard.publish()
    heard.notice("t.txt")
    (heard / "t.txt").unlink()
    assert heard.look() == [Vanished(KEY)]
    assert heard.every_file() == []


def test_gone(heard: Place) -> None:
    """A file that was accepted and goes is reported once; one that comes back is inspected."""
    heard.publish()
    heard.notice("t.txt")
    heard.look()
    (heard / "t.txt").unlink()
    assert [*heard.notice("t.txt"), *heard.look(), *heard.every_file()] == [Gone(KEY)]
    heard.publish()
    heard.notice("t.txt")
    assert texts(heard.look()) == [WHOLE]


def test_a_trailer_after_a_poller(heard: Place) -> None:
    """Text that was deleted before its trailer was appended is pushed before that is reported."""
    (heard / "t.txt").write_text(TEXT)
    heard.notice("t.txt")
    assert heard.wait(1) == []
    (heard / "t.txt").unlink()
    append(heard / "t.txt", TRAILER)
    heard.notice("t.txt")
    found = heard.wait(1)
    assert texts(found) == [TEXT, TRAILER]
    assert [f.has_text for f in found if isinstance(f, Arrival)] == [True, False]
    assert heard.every_file() == []


def test_a_trailer_over_a_file_that_is_held(place: Place, looks: list[float]) -> None:
    """A bare trailer is renamed over text that is still open: it is looked at with patience.

    Its writer's end is seen soon, and the text then comes first.
    """
    with Writer(place / "t.txt") as writer:
        for line in TEXT.splitlines():
            writer.write(line)
        place.notice("t.txt")
        assert place.wait(1) == []
        place.publish(content=TRAILER)
        place.notice("t.txt")
        assert place.wait(1) == []
        del looks[:]
        assert place.wait(STALLED_S) == [Stalled(KEY, "open_for_writing", "")]
        assert len(looks) <= 2 * STALLED_S / 0.032 + 10
        del looks[:]
        assert place.wait(600) == []
        assert len(looks) <= 2 * 600 + 10
    assert texts(place.wait(1)) == [TEXT, TRAILER]


def test_a_trailer_after_a_poller_line_by_line(heard: Place) -> None:
    """While such a trailer is being written the text that it lost settles by itself."""
    (heard / "t.txt").write_text(TEXT)
    heard.notice("t.txt")
    assert heard.wait(1) == []
    (heard / "t.txt").unlink()
    with Writer(heard / "t.txt") as writer:
        heard.notice("t.txt")
        assert texts(heard.wait(QUIET_S)) == [TEXT]
        for line in TRAILER.splitlines():
            writer.write(line)
        heard.notice("t.txt")
        assert heard.wait(QUIET_S) == []
    assert texts(heard.wait(0.5)) == [TRAILER]


def test_a_new_answer_after_a_poller(heard: Place) -> None:
    """Text that a whole answer took the place of before it settled is not pushed."""
    (heard / "t.txt").write_text(TEXT)
    heard.notice("t.txt")
    assert heard.wait(1) == []
    heard.publish()
    heard.notice("t.txt")
    assert texts(heard.wait(60)) == [WHOLE]


def test_two_files_that_never_settled(heard: Place) -> None:
    """Of files that took each other's place only the last is kept beside the present one."""
    before = descriptors()
    for text in ("one", "two"):
        (heard / "b.tmp").write_text(text)
        (heard / "b.tmp").rename(heard / "t.txt")
        heard.notice("t.txt")
        assert heard.look() == []
    append(heard / "b.tmp", TRAILER)
    (heard / "b.tmp").rename(heard / "t.txt")
    heard.notice("t.txt")
    assert texts(heard.wait(1)) == ["two", TRAILER]
    assert descriptors() == before


@pytest.mark.parametrize(
    "make", [Path.mkdir, lambda path: path.symlink_to("nowhere")], ids=["folder", "link"]
)
def test_a_failure_in_the_place_of_text(heard: Place, make: Callable[[Path], None]) -> None:
    """What no file can be after it costs the text nothing, not while it is being written either."""
    with Writer(heard / "t.txt") as writer:
        writer.write("Yes.")
        heard.notice("t.txt")
        assert heard.wait(1) == []
        (heard / "t.txt").unlink()
        make(heard / "t.txt")
        heard.notice("t.txt")
        assert heard.wait(1) == []
    assert texts(heard.wait(0.5)) == [TEXT, "untrusted"]


def test_a_large_text_after_a_poller(heard: Place) -> None:
    """A text that is as large as the limit is kept like any other."""
    (heard / "t.txt").write_bytes(b"x" * MAX_BYTES)
    heard.notice("t.txt")
    assert heard.wait(1) == []
    (heard / "t.txt").unlink()
    append(heard / "t.txt", TRAILER)
    heard.notice("t.txt")
    assert texts(heard.wait(60)) == ["x" * MAX_BYTES, TRAILER]


@pytest.mark.parametrize("content", ["", "x" * (MAX_BYTES + 1)], ids=["empty", "too large"])
def test_nothing_worth_keeping(heard: Place, content: str) -> None:
    """What was no answer itself is not kept when another file takes its place."""
    (heard / "t.txt").write_text(content)
    heard.notice("t.txt")
    assert heard.wait(1) == []
    (heard / "t.txt").unlink()
    append(heard / "t.txt", TRAILER)
    heard.notice("t.txt")
    assert texts(heard.wait(60)) == [TRAILER]


def test_untrusted(heard: Place) -> None:
    """A link fails at once, and only once; a good file may follow."""
    (heard / "t.txt").symlink_to(__file__)
    heard.notice("t.txt")
    assert texts(heard.look()) == ["untrusted"]
    heard.notice("t.txt")
    assert [*heard.look(), *heard.every_file()] == []
    heard.publish()
    heard.notice("t.txt")
    assert texts([*heard.look(), *heard.every_file()]) == [WHOLE]


def test_too_large(heard: Place) -> None:
    """A file over the limit fails without being read; its size is in the event."""
    heard.publish(content=b"x" * (MAX_BYTES - len(TRAILER) + 1) + TRAILER.encode())
    heard.notice("t.txt")
    (found,) = heard.look()
    assert isinstance(found, Arrival)
    assert (found.reason, found.size) == ("too_large", MAX_BYTES + 1)
    assert (found.data, found.sha256) == (None, None)


def test_unreadable(ordinary: Place) -> None:
    """A file that may not be read is reported once, and tried again until it may."""
    ordinary.publish()
    (ordinary / "t.txt").chmod(0)
    ordinary.notice("t.txt")
    assert ordinary.wait(0.75) == [Stalled(KEY, "unreadable", "EACCES")]
    assert ordinary.wait(60) == []
    (ordinary / "t.txt").chmod(0o600)
    assert texts(ordinary.wait(10)) == [WHOLE]


def test_a_root_that_is_closed_to_us(ordinary: Place) -> None:
    """Where names may no longer be looked up, what is known is kept and tried again."""
    ordinary.publish("taken.txt")
    (ordinary / "t.txt").write_text(TEXT)
    ordinary.notice("taken.txt", "t.txt")
    assert len(ordinary.look()) == 1
    ordinary.path.chmod(0o600)
    stalled = ordinary.wait(QUIET_S)
    assert stalled == [Stalled(KEY, "unreadable", "EACCES")]
    taken = TurnKey("aichat", "paliadin", "taken")
    assert ordinary.every_file() == [Stalled(taken, "unreadable", "EACCES")]
    ordinary.path.chmod(0o700)
    assert texts(ordinary.wait(QUIET_S)) == [TEXT]


def test_files_of_a_batch(place: Place) -> None:
    """One look takes no more files than a batch may hold; the next one goes on."""
    for n in range(50):
        place.publish(f"t{n}.txt")
    place.scan()
    assert len(place.look()) == 32
    assert place.files.due_in() == 0
    assert len(place.look()) == 18
    assert place.files.due_in() is None


def test_a_batch_of_files_that_wait(place: Place) -> None:
    """Files that have not ended count as well, though nothing comes of them yet."""
    for n in range(40):
        place.publish(f"t{n}.txt", "half")
    place.scan()
    assert place.look() == []
    assert place.files.due_in() == 0
    assert place.look() == []
    assert place.files.due_in() != 0


def test_bytes_of_a_batch(place: Place) -> None:
    """One look takes no more bytes into memory than a batch may hold, give or take a file."""
    for n in range(5):
        place.publish(f"t{n}.txt", "x" * 3_000_000 + TRAILER)
    place.scan()
    assert [len(place.look()) for _ in range(3)] == [3, 2, 0]


# --- what of an arrival is believed later ---------------------------------------------------------


def test_a_young_file(place: Place) -> None:
    """A time that is young proves nothing: such a file is looked at once more, later."""
    place.publish()
    place.wall = (place / "t.txt").stat().st_mtime + 0.01
    place.notice("t.txt")
    assert texts(place.look()) == [WHOLE]
    place.wall += 60
    assert texts(place.every_file()) == [WHOLE]
    assert place.every_file() == []


def test_a_young_file_is_looked_at_by_the_next_start(tmp_path: Path) -> None:
    """Killed in the tick in which it took a file, it finds what followed within the same tick."""
    killed = make(tmp_path / "root")
    path = killed / "t.txt"
    path.write_text("Yes." + TRAILER)
    at = path.stat()
    killed.wall = at.st_mtime + 0.01
    killed.notice("t.txt")
    (taken,) = killed.look()
    assert isinstance(taken, Arrival)
    path.write_text("No!!" + TRAILER)  # of the same file, size and time
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))
    place = Place(killed.path)
    place.files.remember({"t": taken.fingerprint})
    assert texts(place.every_file()) == ["No!!" + TRAILER]


def test_whole_seconds_are_believed_later(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where times are whole seconds, a file that was taken is looked at again after two."""
    fine = Fingerprint.of.__func__  # type: ignore[attr-defined]  # a classmethod has it

    def coarse(cls: type[Fingerprint], info: os.stat_result) -> Fingerprint:
        found: Fingerprint = fine(cls, info)
        times = {n: getattr(found, n) // 10**9 * 10**9 for n in ("modified_ns", "changed_ns")}
        return found._replace(**times)

    monkeypatch.setattr(Fingerprint, "of", classmethod(coarse))
    place.publish()
    place.wall = int((place / "t.txt").stat().st_ctime) + 1.9
    place.notice("t.txt")
    assert texts(place.look()) == [WHOLE]
    place.publish(content=f"No!.\n{TRAILER}")
    assert texts(place.every_file()) == [f"No!.\n{TRAILER}"]
    place.wall += COARSE_S + 60
    assert texts(place.every_file()) == [f"No!.\n{TRAILER}"]
    assert place.every_file() == []
