from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pytest
from support.tokens import unsigned_token
from support.users import ORDINARY, without_privilege
from support.writer import Writer

from paliadin_sidecar.errors import Unreadable
from paliadin_sidecar.intake import roots as watch
from paliadin_sidecar.intake import tokens, tracking
from paliadin_sidecar.intake.completion import EMPTY_S, HELD_S, LINKS_S, STALLED_S
from paliadin_sidecar.intake.events import (
    Arrived,
    Flooded,
    Gone,
    Hint,
    IntakeEvent,
    Stalled,
    Vanished,
)
from paliadin_sidecar.intake.fingerprint import COARSE_S, Fingerprint
from paliadin_sidecar.intake.history import find_history
from paliadin_sidecar.intake.inspection import inspect_due
from paliadin_sidecar.intake.roots import Root
from paliadin_sidecar.intake.rules import IntakeRules
from paliadin_sidecar.intake.scan import scan
from paliadin_sidecar.intake.tracking import WatchedRoot
from paliadin_sidecar.intake.turnfile import TurnFile
from paliadin_sidecar.outbox.records import Arrival, TurnKey
from paliadin_sidecar.settings import RootSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

QUIET_S, MAX_BYTES = 5.0, 4 * 1024 * 1024
TEXT = "Yes.\n"
TRAILER = "\n[paliadin-meta]\nused_tools: a\nrows_seen: 1\nclassifier_tag: b\n"
WHOLE = TEXT + TRAILER
KEY = TurnKey("aichat", "paliadin", "t")


class Place:
    """One root with real files, an intake on it, and clocks that are ours."""

    def __init__(self, path: Path, *, owner: int | None = None, most_held: int = 256) -> None:
        self.path = path
        self.spec = RootSpec("aichat", "paliadin", path)
        owner = os.geteuid() if owner is None else owner
        self.root = Root(path, owner)
        assert self.root.check() == "armed"
        self.now = 4096.0
        #: Far enough from the files' times that none of them is young.
        self.wall = time.time() + 60
        #: What happens while a file is read: at the first time, the second, …
        self.acts: list[Callable[[], object]] = []
        rules = IntakeRules(
            owner=owner,
            quiet_s=QUIET_S,
            max_bytes=MAX_BYTES,
            max_open_files=most_held,
            monotonic=lambda: self.now,
            wall=self._wall,
        )
        self.files = WatchedRoot(self.spec, self.root, rules)
        self.hears = True

    def rules(self, **changes: Any) -> None:  # noqa: ANN401 - of any attribute
        """From now on others hold, as after a start with other variables."""
        self.files.rules = replace(self.files.rules, **changes)

    def _wall(self) -> float:
        # Dates are asked for between a look and the reading that follows it.
        if self.acts:
            self.acts.pop(0)()
        return self.wall

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def publish(self, name: str = "t.txt", content: str | bytes = WHOLE) -> None:
        """Write beside it and rename."""
        temp = self / "a.tmp"
        temp.write_bytes(content.encode() if isinstance(content, str) else content)
        temp.rename(self / name)

    def notice(self, *names: str) -> list[IntakeEvent]:
        """Something happened to these: an event says so, or a scan must find it."""
        if self.hears:
            return list(self.files.notice(names))
        return self.scan()

    def look(self) -> list[IntakeEvent]:
        return inspect_due(self.files)

    def scan(self, *, every_file: bool = False) -> list[IntakeEvent]:
        return [one for one in scan(self.files, every_file=every_file) if one is not None]

    def history(self) -> list[Arrival]:
        return [one for one in find_history(self.files) if one is not None]

    def wait(self, seconds: float) -> list[IntakeEvent]:
        """What is found while time passes."""
        found: list[IntakeEvent] = []
        end = self.now + seconds
        while (due_in := self.files.due_in()) is not None and self.now + due_in <= end:
            self.now += due_in
            found += self.look()
        self.now = end
        return found

    def every_file(self) -> list[IntakeEvent]:
        return [*self.scan(every_file=True), *self.look()]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = make(tmp_path / "root")
    yield place
    place.files.close()


def make(path: Path, *, most_held: int = 256) -> Place:
    path.mkdir(mode=0o700)
    return Place(path, most_held=most_held)


@pytest.fixture(params=["events", "scans"])
def heard(place: Place, request: pytest.FixtureRequest) -> Place:
    """A place whose events come, and one where they are all lost."""
    place.hears = request.param == "events"
    return place


def append(path: Path, text: str) -> None:
    """As another process does it: open, write, close."""
    subprocess.run(["/bin/sh", "-c", 'cat >>"$1"', "sh", path], input=text.encode(), check=True)


def texts(findings: list[IntakeEvent]) -> list[str]:
    """The contents that settled, or why they are none; nothing else may be among them."""
    found = []
    for finding in findings:
        assert isinstance(finding, Arrived), finding
        arrival = finding.arrival
        found.append(arrival.reason or (arrival.data or b"").decode())
    return found


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- in whatever manner it is written -------------------------------------------------------


def test_renamed(heard: Place) -> None:
    """A file that is renamed into place settles at once, with all that is known of it."""
    heard.publish()
    info = (heard / "t.txt").stat()
    assert heard.notice("a.tmp", "t.txt") == []
    assert heard.look() == [
        Arrived(
            Arrival(
                KEY,
                str(Fingerprint.of(info)),
                datetime.fromtimestamp(info.st_mtime, UTC),
                len(WHOLE),
                data=WHOLE.encode(),
                sha256=hashlib.sha256(WHOLE.encode()).hexdigest(),
            )
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
            f for f in [*heard.every_file(), *heard.wait(HELD_S)] if isinstance(f, Arrived)
        ] == []
    assert len(texts(heard.wait(QUIET_S + 1))) == 1


def test_a_file_that_waits_long_is_in_the_state(place: Place) -> None:
    """While it waits, what is found says which, why and since when; then no more."""
    at = place.wall
    with Writer(place / "t.txt") as writer:
        writer.write("Yes.")
        place.notice("t.txt")
        place.wait(STALLED_S + 1)
        found = place.files.describe()
        waits = {"turn_id": "t", "why": "open_for_writing", "detail": "", "since": at}
        assert (found["waiting"], found["waiting_files"]) == ([waits], 1)
        assert place.files.describe() == found  # what does not change is not written
    place.wait(QUIET_S + 1)
    found = place.files.describe()
    assert (found["waiting"], found["waiting_files"]) == ([], 0)


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


# --- how often it is looked at --------------------------------------------------------------


@pytest.fixture
def looks(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When any file was looked at, or tried to be opened."""
    found: list[float] = []

    def counted(real: Callable[..., T]) -> Callable[..., T]:
        def call(*args: object, **kwargs: object) -> T:
            found.append(place.now)
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(TurnFile, "inspect", counted(TurnFile.inspect))
    monkeypatch.setattr(TurnFile, "__init__", counted(TurnFile.__init__))
    return found


def test_a_file_that_always_changes(place: Place, looks: list[float]) -> None:
    """One that changes between each look and its reading is looked at less and less often."""
    place.publish()
    place.notice("t.txt")
    numbers = count()
    change = lambda: (place / "t.txt").write_text(f"{next(numbers)}{TRAILER}")  # noqa: E731
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


# --- what becomes of a name -----------------------------------------------------------------


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
    """A name that goes before it is opened is told, and forgotten."""
    heard.publish()
    heard.notice("t.txt")
    (heard / "t.txt").unlink()
    assert heard.look() == [Vanished(KEY)]
    assert heard.every_file() == []


def test_gone(heard: Place) -> None:
    """A file that was taken and goes is told once; one that comes back is looked at."""
    heard.publish()
    heard.notice("t.txt")
    heard.look()
    (heard / "t.txt").unlink()
    assert [*heard.notice("t.txt"), *heard.look(), *heard.every_file()] == [Gone(KEY)]
    heard.publish()
    heard.notice("t.txt")
    assert texts(heard.look()) == [WHOLE]


# --- a bare trailer, and what it took the place of ------------------------------------------


def test_a_trailer_after_a_poller(heard: Place) -> None:
    """Text that was deleted before its trailer was appended is pushed before that is told."""
    (heard / "t.txt").write_text(TEXT)
    heard.notice("t.txt")
    assert heard.wait(1) == []
    (heard / "t.txt").unlink()
    append(heard / "t.txt", TRAILER)
    heard.notice("t.txt")
    found = heard.wait(1)
    assert texts(found) == [TEXT, TRAILER]
    assert [f.arrival.has_text for f in found if isinstance(f, Arrived)] == [True, False]
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


# --- what is no answer ----------------------------------------------------------------------


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
    """A file over the limit fails without being read; its size is told."""
    heard.publish(content=b"x" * (MAX_BYTES - len(TRAILER) + 1) + TRAILER.encode())
    heard.notice("t.txt")
    (found,) = heard.look()
    assert isinstance(found, Arrived)
    assert (found.arrival.reason, found.arrival.size) == ("too_large", MAX_BYTES + 1)
    assert (found.arrival.data, found.arrival.sha256) == (None, None)


@pytest.fixture
def ordinary() -> Iterator[Place]:
    """A place of an ordinary user's."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "root"
        path.mkdir(mode=0o700)
        os.chown(path, ORDINARY, -1)
        Path(name).chmod(0o755)
        place = Place(path, owner=ORDINARY)
        with without_privilege():
            yield place
            path.chmod(0o700)
            place.files.close()


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


# --- tokens ---------------------------------------------------------------------------------

TOKEN = unsigned_token(jti="submitted", sub="user")
HINT = Hint(KEY, "submitted", "user")


def test_a_token_before_the_answer(heard: Place) -> None:
    """A token is read when it is seen, and not again."""
    (heard / "t.jwt").write_text(TOKEN)
    assert heard.notice("t.jwt") == [HINT]
    assert heard.notice("t.jwt") == []
    (heard / "t.jwt").unlink()
    heard.publish()
    assert heard.notice("t.txt") == []
    assert texts(heard.look()) == [WHOLE]


def test_a_token_with_the_answer(heard: Place) -> None:
    """A token that nobody announced is read before the answer is taken."""
    heard.publish()
    heard.notice("t.txt")
    (heard / "t.jwt").write_text(TOKEN)
    hint, *rest = heard.look()
    assert hint == HINT
    assert texts(rest) == [WHOLE]


def test_a_token_after_the_answer(heard: Place) -> None:
    """A token that comes after the answer is read all the same."""
    heard.publish()
    heard.notice("t.txt")
    assert texts(heard.look()) == [WHOLE]
    (heard / "t.jwt").write_text(TOKEN)
    assert heard.notice("t.jwt") == [HINT]


def test_half_a_token(heard: Place) -> None:
    """A token that is half written tells nothing, and is read again when it is whole."""
    with Writer(heard / "t.jwt") as writer:
        assert heard.notice("t.jwt") == []
        writer.write(TOKEN)
        assert heard.notice("t.jwt") == []
    assert [*heard.notice("t.jwt"), *heard.every_file()] == [HINT]


def test_a_token_that_is_gone(heard: Place) -> None:
    """A token that went before it was read is no error."""
    (heard / "t.jwt").write_text(TOKEN)
    (heard / "t.jwt").unlink()
    assert heard.notice("t.jwt") == []
    assert heard.wait(60) == []


def test_a_token_for_the_next_time(heard: Place) -> None:
    """Once a scan saw that a token went, a new one of the same name is read again."""
    (heard / "t.jwt").write_text(TOKEN)
    heard.notice("t.jwt")
    (heard / "t.jwt").unlink()
    heard.every_file()
    (heard / "t.jwt").write_text(unsigned_token(jti="other", sub="user"))
    assert heard.notice("t.jwt") == [Hint(KEY, "other", "user")]


# --- scans ----------------------------------------------------------------------------------


def test_names_of_others(place: Place) -> None:
    """Names that are no turn's are counted and left alone, wherever they are heard of."""
    names = ["a.b.txt", "-x.txt", "notes.md", "t.txt~", "x" * 65 + ".txt"]
    for name in names:
        (place / name).touch()
    os.close(os.open(os.fsencode(place.path) + b"/\xff.txt", os.O_WRONLY | os.O_CREAT))
    place.publish()
    assert place.notice(*names, "below/t.txt") == []
    assert place.notice("") == []
    assert place.files.due_in() is None
    assert place.scan() == []
    assert texts(place.look()) == [WHOLE]
    assert place.files.describe() == {
        "backend": "aichat",
        "persona": "paliadin",
        "path": str(place.path),
        "state": "armed",
        "why": "",
        "since": place.root.since,
        "turn_files": 1,
        "waiting": [],
        "waiting_files": 0,
        "foreign_files": 6,
    }


def test_what_the_outbox_knows(place: Place) -> None:
    """After a start, files that were taken before are looked at only where they moved."""
    for name in ("same", "changed"):
        place.publish(f"{name}.txt")
    same = (place / "same.txt").stat()
    lying = {
        "same": str(Fingerprint.of(same)),
        "changed": "1:2:3",
        "gone": "4:5:6",
    }
    place.files.remember(lying)
    gone = Gone(TurnKey("aichat", "paliadin", "gone"))
    assert place.scan() == [gone]
    assert place.files.due_in() is None
    (changed,) = place.every_file()
    assert isinstance(changed, Arrived)
    assert changed.arrival.key.turn_id == "changed"


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
    assert isinstance(taken, Arrived)
    path.write_text("No!!" + TRAILER)  # of the same file, size and time
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))
    place = Place(killed.path)
    place.files.remember({"t": taken.arrival.fingerprint})
    assert texts(place.every_file()) == ["No!!" + TRAILER]


def test_a_content_whose_time_was_put_back(heard: Place) -> None:
    """The same size, inode and mtime (`cp -p`, `rsync --inplace`, `touch -r`) hide nothing."""
    (heard / "t.txt").write_text(WHOLE)
    os.utime(heard / "t.txt", ns=(1, 1))
    heard.notice("t.txt")
    assert texts(heard.look()) == [WHOLE]
    (heard / "t.txt").write_text(f"No!.\n{TRAILER}")
    os.utime(heard / "t.txt", ns=(1, 1))
    heard.notice("t.txt")
    assert texts([*heard.look(), *heard.every_file()]) == [f"No!.\n{TRAILER}"]
    assert heard.every_file() == []


def test_whole_seconds_are_believed_later(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where times are whole seconds, a file that was taken is looked at again after two."""
    fine = Fingerprint.of.__func__  # type: ignore[attr-defined]

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


@pytest.mark.parametrize("again", ["meanwhile", "at the next start"])
def test_a_second_name_that_goes_late(place: Place, again: str) -> None:
    """A file that failed for its second name is an answer once that is gone."""
    place.publish()
    os.link(place / "t.txt", place / "second.tmp")
    place.notice("t.txt")
    (failed,) = place.wait(60)
    assert texts([failed]) == ["untrusted"]
    assert isinstance(failed, Arrived)
    assert place.every_file() == []
    (place / "second.tmp").unlink()
    if again == "at the next start":
        place = Place(place.path)
        place.files.remember({"t": failed.arrival.fingerprint})
        assert texts(place.every_file()) == [WHOLE]
        place.files.close()
    else:
        place.scan()  # the directory's time moved
        assert texts(place.look()) == [WHOLE]


def test_other_limits_at_the_next_start(place: Place) -> None:
    """A failure is judged anew where the limit or the owner that it had are others now."""
    large = "x" * MAX_BYTES + TRAILER
    place.publish("large.txt", large)
    place.publish("foreign.txt")
    place.rules(owner=-1)
    place.notice("foreign.txt")
    foreign = place.look()
    place.rules(owner=os.geteuid())
    place.notice("large.txt")
    taken = {
        f.arrival.key.turn_id: f.arrival
        for f in [*foreign, *place.look()]
        if isinstance(f, Arrived)
    }
    assert {name: arrival.reason for name, arrival in taken.items()} == {
        "foreign": "untrusted",
        "large": "too_large",
    }
    place = Place(place.path)
    place.files.remember({n: a.fingerprint for n, a in taken.items()})
    assert texts(place.every_file()) == [WHOLE]
    place.rules(max_bytes=2 * MAX_BYTES)
    assert texts(place.every_file()) == [large]
    place.rules(max_bytes=MAX_BYTES)  # what was taken stays taken
    assert place.every_file() == []
    place.files.close()


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


def test_more_files_than_may_be_held(tmp_path: Path) -> None:
    """With many files under observation few stay open, and each settles all the same."""
    place = make(tmp_path / "root", most_held=3)
    before = descriptors()
    names = [f"t{n}" for n in range(10)]
    for name in names:
        (place / f"{name}.txt").write_text(TEXT)
    place.scan()
    assert place.wait(1) == []
    assert descriptors() <= before + 3
    (place / "t9.txt").unlink()
    found = place.wait(QUIET_S)
    assert Vanished(TurnKey("aichat", "paliadin", "t9")) in found
    settled = {f.arrival.key.turn_id for f in found if isinstance(f, Arrived)}
    assert settled == set(names) - {"t9"}
    place.files.close()


def test_a_root_that_is_not_open_yet(tmp_path: Path) -> None:
    """Nothing is found in it, until it is."""
    place = make(tmp_path / "root")
    place.publish()
    place.root.close()
    assert place.every_file() == []
    assert place.history() == []


# --- floods ---------------------------------------------------------------------------------


def settled(findings: list[IntakeEvent]) -> list[str]:
    """The turns that became answers."""
    return [
        f.arrival.key.turn_id
        for f in findings
        if isinstance(f, Arrived) and f.arrival.reason is None
    ]


BAD: dict[str, Callable[[Path], object]] = {
    "untrusted": lambda path: path.symlink_to("nowhere"),
    "empty": lambda path: path.touch(),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_flood_holds_no_answer(place: Place, kind: str) -> None:
    """Thousands of files that are no answers stand behind one that is."""
    for n in range(3000):
        BAD[kind](place / f"x{n}.txt")
    place.publish("own.txt")
    place.scan(every_file=True)
    assert settled(place.look()) == ["own"]


def test_a_flood_is_told_by_its_number(place: Place) -> None:
    """Most of a flood is not told one by one; each is in the end, if it lies there that long."""
    for n in range(1000):
        (place / f"x{n}.txt").symlink_to("nowhere")
    place.scan(every_file=True)
    found = place.wait(59)
    flooded = [f for f in found if isinstance(f, Flooded)]
    assert [f.kinds["untrusted"] for f in flooded] == [900]
    failed = [f for f in found if isinstance(f, Arrived)]
    assert 100 + 59 * 10 - 10 <= len(failed) <= 100 + 59 * 10
    found = place.wait(60)
    assert len(failed) + len([f for f in found if isinstance(f, Arrived)]) == 1000
    assert place.every_file() == []  # what was judged is not judged again
    assert place.files.due_in() is None


def test_names_that_come_and_go(place: Place) -> None:
    """A flood of files that vanish is told by its number too, and leaves nothing behind."""
    for n in range(500):
        place.notice(f"x{n}.txt")
    found = place.wait(1)
    vanished = [f for f in found if isinstance(f, Vanished)]
    assert len(vanished) <= 110
    (flooded,) = [f for f in found if isinstance(f, Flooded)]
    assert flooded.kinds == {"vanished": 400}
    place.wait(120)
    assert place.files.due_in() is None


def test_more_names_than_are_no_flood(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are listed, what is gone of them is found, and their number is told."""
    monkeypatch.setattr(tracking, "MAX_NAMES", 10)
    for n in range(35):
        place.publish(f"x{n}.txt")
    (place / "foreign").touch()
    scanned = place.every_file() + place.wait(1)
    assert len(settled(scanned)) == 35
    assert [f.names for f in scanned if isinstance(f, Flooded)] == [36]
    (place / "x7.txt").unlink()
    (place / "x8.txt").rename(place / "x9.txt")
    gone = [f.key.turn_id for f in place.every_file() if isinstance(f, Gone)]
    assert sorted(gone) == ["x7", "x8"]
    told = place.files.describe()
    assert (told["turn_files"], told["foreign_files"]) == (33, 1)
    assert [f.names for f in place.wait(120) + place.look() if isinstance(f, Flooded)] == [34]


def test_a_name_that_is_given_again_while_it_is_listed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing may miss such a name: it is looked for before it is called gone."""
    place.publish("t.txt")
    assert texts(place.every_file()) == [WHOLE]
    monkeypatch.setattr(watch, "_names_in", lambda _: (name for name in ""))
    assert place.every_file() == []
    (place / "t.txt").unlink()
    assert place.every_file() == [Gone(KEY)]


def test_what_is_remembered_of_a_flood_is_bounded(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More tokens and files than may be remembered are taken nevertheless, later."""
    monkeypatch.setattr(tokens, "_MAX_TOKENS", 5)
    monkeypatch.setattr(tracking, "_MAX_TRACKED", 5)
    for n in range(20):
        (place / f"x{n}.jwt").write_text(unsigned_token(jti=f"j{n}", sub="u"))
        (place / f"x{n}.txt").write_text("half")
    found: list[IntakeEvent] = []
    most = 0
    for _ in range(5):
        found += place.every_file()
        kept = place.files
        most = max(most, len(kept.tracked), len(kept.tokens.judged))
        found += place.wait(QUIET_S)
    assert most == 5
    assert len(settled(found)) == 20
    assert {f.key.turn_id for f in found if isinstance(f, Hint)} == {f"x{n}" for n in range(20)}


def test_files_that_wait_are_not_looked_at_by_each_scan(place: Place, looks: list[float]) -> None:
    """Thousands of empty files and one name that moves: a scan compares, and opens none of them."""
    for n in range(3000):
        (place / f"x{n}.txt").touch()
    place.scan(every_file=True)
    place.wait(1)
    del looks[:]
    for n in range(50):
        (place / f"{n}.moves").touch()
        place.scan()
        place.wait(2)
    assert looks == []
    assert len(place.files.queue.doubtful._heap) < 7000
    (place / "x7.txt").write_text(WHOLE)
    (place / "another.moves").touch()
    found = []
    for _ in range(4):  # each looks at a thousand of them
        found += place.scan() + place.wait(2)
        (place / "another.moves").rename(place / "another.moved")
        (place / "another.moved").rename(place / "another.moves")
    assert texts(found) == [WHOLE]


def test_more_than_are_remembered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond the bound is found by later scans; an answer among it is found at once."""
    monkeypatch.setattr(tracking, "_MAX_DOUBTFUL", 50)
    for n in range(200):
        (place / f"x{n}.txt").symlink_to("nowhere")
    place.publish("own.txt")
    place.scan(every_file=True)
    assert len(place.files.tracked) == 51
    assert settled(place.wait(1)) == ["own"]
    reasons = set()
    for _ in range(5):
        found = [*place.scan(every_file=True), *place.wait(60)]
        reasons |= {f.arrival.reason for f in found if isinstance(f, Arrived)}
    assert reasons == {"untrusted"}
    assert len(place.files.accepted) == 201


def test_a_bad_token_is_read_once(place: Place, looks: list[float]) -> None:
    """Empty ones and rubbish are opened once, until they change; scans do not ask again."""
    for n in range(50):
        (place / f"x{n}.jwt").write_text("rubbish" * (n % 2))
    place.every_file()
    assert looks
    del looks[:]
    for _ in range(3):
        (place / "a.moves").touch()
        place.scan()
        (place / "a.moves").unlink()
        assert place.every_file() == []
    assert looks == []
    (place / "x7.jwt").write_text(TOKEN)
    (hint,) = place.every_file()
    assert isinstance(hint, Hint)


# --- a root that goes -----------------------------------------------------------------------


def test_a_root_that_goes(place: Place) -> None:
    """What was open is read to its end; what was not is looked for when the root is back."""
    (place / "open.txt").write_text(TEXT)
    place.notice("open.txt")
    assert place.look() == []
    (place / "t.txt").write_text(TEXT)
    place.notice("t.txt")
    place.path.rename(place.path.with_name("away"))
    assert place.root.check() == "missing"
    assert texts(place.wait(60)) == [TEXT]
    place.path.with_name("away").rename(place.path)
    assert place.root.check() == "armed"
    place.scan(every_file=True)
    assert [f.arrival.key.turn_id for f in place.wait(60) if isinstance(f, Arrived)] == ["t"]


def test_a_root_that_is_replaced(place: Place) -> None:
    """Files of the old directory that had not settled do, unless the new one has others."""
    for name in ("old", "both"):
        (place / f"{name}.txt").write_text(f"{name}, before")
        place.notice(f"{name}.txt")
    assert place.look() == []
    place.path.rename(place.path.with_name("away"))
    place.path.mkdir(mode=0o700)
    (place / "both.txt").write_text(WHOLE)
    assert place.root.check() == "replaced"
    place.scan(every_file=True)
    assert sorted(texts(place.wait(60))) == sorted([WHOLE, "old, before"])


def test_close(place: Place) -> None:
    """At the end no descriptor stays open."""
    before = descriptors()
    (place / "t.txt").write_text(TEXT)
    place.notice("t.txt")
    place.look()
    (place / "t.txt").unlink()
    append(place / "t.txt", "another")
    place.notice("t.txt")
    place.look()
    assert descriptors() == before + 2
    place.files.close()
    assert descriptors() == before - 1  # the root's own is closed too
    assert place.files.due_in() is None


# --- history --------------------------------------------------------------------------------


def old(place: Place, name: str, age_s: float = 901) -> None:
    os.utime(place / name, (place.wall - age_s, place.wall - age_s), follow_symlinks=False)


def test_history(place: Place) -> None:
    """Old files are told with their size and digest, and neither kept nor taken up later."""
    place.publish()
    old(place, "t.txt")
    info = (place / "t.txt").stat()
    assert place.history() == [
        Arrival(
            KEY,
            str(Fingerprint.of(info)),
            datetime.fromtimestamp(info.st_mtime, UTC),
            len(WHOLE),
            sha256=hashlib.sha256(WHOLE.encode()).hexdigest(),
        )
    ]
    assert place.every_file() == []
    append(place / "t.txt", "more")
    assert len(texts(place.every_file())) == 0
    assert len(texts(place.wait(QUIET_S))) == 1


@pytest.mark.parametrize(("age_s", "is_history"), [(899, False), (900, True), (1e6, True)])
def test_how_old_history_is(place: Place, age_s: float, *, is_history: bool) -> None:
    """A file of fifteen minutes is history; a younger one, or one from the future, is pushed."""
    place.publish()
    old(place, "t.txt", age_s)
    place.publish("future.txt")
    old(place, "future.txt", -1e6)
    assert len(place.history()) == is_history
    assert len(place.every_file()) == 2 - is_history


def test_history_of_what_is_no_answer(place: Place) -> None:
    """Old things that are no answers are history too, with the reason."""
    (place / "empty.txt").touch()
    (place / "large.txt").write_bytes(b"x" * (MAX_BYTES + 1))
    (place / "link.txt").symlink_to(__file__)
    (place / "folder.txt").mkdir()
    (place / "notes.md").touch()
    for name in ("empty.txt", "large.txt", "link.txt", "folder.txt", "notes.md"):
        old(place, name)
    found = {arrival.key.turn_id: arrival.reason for arrival in place.history()}
    assert found == {
        "empty": None,
        "large": "too_large",
        "link": "untrusted",
        "folder": "untrusted",
    }
    assert place.every_file() == []


def test_history_that_is_being_written(place: Place) -> None:
    """An old file that somebody writes is no history."""
    place.publish()
    old(place, "t.txt")
    with Writer(place / "t.txt"):
        assert place.history() == []
    assert texts(place.every_file()) == [WHOLE]


def test_history_that_is_opened_while_it_is_read(place: Place) -> None:
    """Nor is one that a writer opens while we read it."""
    place.publish()
    old(place, "t.txt")
    with ExitStack() as writing:
        place.acts = [
            lambda: None,  # its age is asked for
            lambda: writing.enter_context(Writer(place / "t.txt")),
        ]
        assert place.history() == []
    assert texts(place.every_file()) == [WHOLE]


def test_history_that_may_not_be_read(ordinary: Place) -> None:
    """An old file that cannot be opened is no history yet."""
    ordinary.publish()
    old(ordinary, "t.txt")
    (ordinary / "t.txt").chmod(0)
    assert ordinary.history() == []
    (ordinary / "t.txt").chmod(0o600)
    assert texts(ordinary.every_file()) == [WHOLE]


# --- what no event tells --------------------------------------------------------------------


def rested(place: Place, *names: str) -> None:
    """Take these in turn; then the directory's time says that nothing came or went since."""
    for name in names:
        place.publish(name)
        place.notice(name)
        assert texts(place.look()) == [WHOLE]
    os.utime(place.path, (1_000_000, 1_000_000))
    assert scanned(place) == []


def scanned(place: Place) -> list[str]:
    return texts([*place.scan(), *place.look()])


def test_a_change_without_an_event(place: Place) -> None:
    """The next scan finds it, once, though no name moved."""
    rested(place, "t.txt")
    append(place / "t.txt", f"No.{TRAILER}")
    assert scanned(place) == [f"{WHOLE}No.{TRAILER}"]
    assert scanned(place) == []


def test_a_change_without_an_event_of_what_is_not_recent(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many files, for so long, are looked at in each scan; all others when each file is."""
    monkeypatch.setattr(tracking, "_RECENT_FILES", 2)
    rested(place, "a.txt", "b.txt", "c.txt")
    for name in ("a.txt", "b.txt"):
        append(place / name, name)
    assert scanned(place) == []
    assert texts(place.wait(QUIET_S)) == [f"{WHOLE}b.txt"]
    place.now += 601
    append(place / "c.txt", f"No.{TRAILER}")
    assert scanned(place) == []
    assert sorted(texts([*place.every_file(), *place.wait(QUIET_S)])) == [
        f"{WHOLE}No.{TRAILER}",
        f"{WHOLE}a.txt",
    ]


def test_a_second_name_that_goes_elsewhere(place: Place) -> None:
    """The directory's time does not tell that a name in another one went."""
    (place / "t.txt").write_text(WHOLE)
    other = place.path.with_name("other")
    other.hardlink_to(place / "t.txt")
    place.notice("t.txt")
    assert texts(place.wait(LINKS_S)) == ["untrusted"]
    os.utime(place.path, (1_000_000, 1_000_000))
    assert scanned(place) == []
    other.unlink()
    assert scanned(place) == [WHOLE]
