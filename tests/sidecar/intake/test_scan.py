"""What is found by listing, where no notification named it."""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING

from support.watched import (
    KEY,
    QUIET_S,
    TRAILER,
    WHOLE,
    Place,
    append,
    make,
    settled,
    texts,
)

from paliadin_sidecar.intake import tracking
from paliadin_sidecar.intake.completion import LINKS_S
from paliadin_sidecar.intake.events import (
    Flooded,
    Gone,
    IntakeEvent,
    Vanished,
)
from paliadin_sidecar.intake.fingerprint import Fingerprint
from paliadin_sidecar.intake.scan import Depth, run_slice, scan
from paliadin_sidecar.outbox.records import Arrival, TurnKey

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


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
    present_files = {
        "same": str(Fingerprint.of(same)),
        "changed": "1:2:3",
        "gone": "4:5:6",
    }
    place.files.remember(present_files)
    gone = Gone(TurnKey("aichat", "paliadin", "gone"))
    assert place.scan() == [gone]
    assert place.files.due_in() is None
    (changed,) = place.every_file()
    assert isinstance(changed, Arrival)
    assert changed.key.turn_id == "changed"


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


def test_a_root_that_is_not_open_yet(tmp_path: Path) -> None:
    """Nothing is found in it, until it is."""
    place = make(tmp_path / "root")
    place.publish()
    place.root.close()
    assert place.every_file() == []
    assert place.history() == []


def test_more_names_than_are_no_flood(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are listed, what is gone of them is found, and they are counted."""
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
    described = place.files.describe()
    assert (described["turn_files"], described["foreign_files"]) == (33, 1)
    assert [f.names for f in place.wait(120) + place.look() if isinstance(f, Flooded)] == [34]


def test_a_name_that_is_given_again_while_it_is_listed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing may miss such a name: it is looked for before it is called gone."""
    place.publish("t.txt")
    assert texts(place.every_file()) == [WHOLE]
    monkeypatch.setattr(place.root, "names", lambda **_: iter(()))
    assert place.every_file() == []
    (place / "t.txt").unlink()
    assert place.every_file() == [Gone(KEY)]


def test_files_that_wait_are_not_looked_at_by_each_scan(place: Place, looks: list[float]) -> None:
    """Thousands of empty files and one name that moves: a scan compares, and opens none of them."""
    for n in range(3000):
        (place / f"x{n}.txt").touch()
    place.scan(Depth.EVERY_FILE)
    place.wait(1)
    del looks[:]
    for n in range(50):
        (place / f"{n}.moves").touch()
        place.scan()
        place.wait(2)
    assert looks == []
    assert len(place.files.queue.defective._heap) < 7000
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
    monkeypatch.setattr(tracking, "_MAX_DEFECTIVE", 50)
    for n in range(200):
        (place / f"x{n}.txt").symlink_to("nowhere")
    place.publish("own.txt")
    place.scan(Depth.EVERY_FILE)
    assert len(place.files.tracked) == 51
    assert settled(place.wait(1)) == ["own"]
    reasons = set()
    for _ in range(5):
        found = [*place.scan(Depth.EVERY_FILE), *place.wait(60)]
        reasons |= {f.reason for f in found if isinstance(f, Arrival)}
    assert reasons == {"untrusted"}
    assert len(place.files.accepted) == 201


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
    """So many files, for so long, are compared in each scan; all others when each file is."""
    monkeypatch.setattr(tracking, "_RECENT_FILES", 2)
    rested(place, "a.txt", "b.txt", "c.txt")
    for name in ("a.txt", "b.txt"):
        append(place / name, name)
    assert scanned(place) == []
    assert texts(place.wait(QUIET_S)) == [f"{WHOLE}b.txt"]
    append(place / "c.txt", f"No.{TRAILER}")
    place.files.recently_accepted.clear()
    assert scanned(place) == []
    assert sorted(texts([*place.every_file(), *place.wait(QUIET_S)])) == [
        f"{WHOLE}No.{TRAILER}",
        f"{WHOLE}a.txt",
    ]


def test_files_that_are_not_recent_come_by_turns(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each scan compares its part of them, so that all had their turn within a minute."""
    monkeypatch.setattr(tracking, "_RECENT_FILES", 0)
    names = [f"t{n:02}.txt" for n in range(60)]
    rested(place, *names)
    compared: list[str] = []
    has_moved = place.files.has_moved

    def spying(name: str) -> bool:
        compared.append(name)
        return has_moved(name)

    monkeypatch.setattr(place.files, "has_moved", spying)
    found = []
    place.now += 60.0
    scanned(place)
    for name in names:
        append(place / name, f"No.{TRAILER}")
    for _ in range(31):
        compared.clear()
        place.now += 2.0
        found += scanned(place)
        assert len(compared) <= 4
    assert found == [f"{WHOLE}No.{TRAILER}"] * len(names)


def test_a_second_name_that_goes_elsewhere(place: Place) -> None:
    """The directory's time does not show that a name in another one went."""
    (place / "t.txt").write_text(WHOLE)
    other = place.path.with_name("other")
    other.hardlink_to(place / "t.txt")
    place.notice("t.txt")
    assert texts(place.wait(LINKS_S)) == ["untrusted"]
    os.utime(place.path, (1_000_000, 1_000_000))
    assert scanned(place) == []
    other.unlink()
    assert scanned(place) == [WHOLE]


def test_a_slice_ends_when_its_time_is_up() -> None:
    """What it found is handed over then, and the next slice goes on from there."""
    times = count()
    steps = iter(["a", None, "b", None, None, "c", None, "d"])
    found = [run_slice(steps, 2, lambda: next(times)) for _ in range(3)]
    assert found == [(["a", "b"], True), (["c"], True), (["d"], False)]


def test_files_that_are_inspected_between_two_steps(place: Place) -> None:
    """A scan meets no other state than the one that each file is in at that moment."""
    for n in range(200):
        place.publish(f"t{n}.txt")
    found: list[IntakeEvent] = []
    for n, event in enumerate(scan(place.files, Depth.EVERY_FILE)):
        assert event is None
        found += place.look()
        if n == 1:
            (place / "t3.txt").unlink()
    found += place.wait(1)
    assert len(settled(found)) + len([f for f in found if isinstance(f, Vanished)]) == 200
    gone = {f.key.turn_id for f in place.every_file() if isinstance(f, Gone)}
    assert gone <= {"t3"}
    assert place.every_file() == []
