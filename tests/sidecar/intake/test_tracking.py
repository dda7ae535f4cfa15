"""What is observed, how much of it, and how a flood is reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.tokens import unsigned_token
from support.watched import (
    QUIET_S,
    TEXT,
    WHOLE,
    Place,
    append,
    descriptors,
    make,
    settled,
    texts,
)
from support.writer import Writer

from paliadin_sidecar.intake import tokens, tracking
from paliadin_sidecar.intake.completion import STALLED_S
from paliadin_sidecar.intake.events import (
    Flooded,
    Hint,
    IntakeEvent,
    Vanished,
)
from paliadin_sidecar.intake.scan import Depth
from paliadin_sidecar.outbox.records import Arrival, TurnKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
    place.scan(Depth.EVERY_FILE)
    assert settled(place.look()) == ["own"]


def test_a_flood_is_told_by_its_number(place: Place) -> None:
    """Most of a flood is not reported one by one; each is in the end, if it stays for that long."""
    for n in range(1000):
        (place / f"x{n}.txt").symlink_to("nowhere")
    place.scan(Depth.EVERY_FILE)
    found = place.wait(59)
    flooded = [f for f in found if isinstance(f, Flooded)]
    assert [f.kinds["untrusted"] for f in flooded] == [900]
    failed = [f for f in found if isinstance(f, Arrival)]
    assert 100 + 59 * 10 - 10 <= len(failed) <= 100 + 59 * 10
    found = place.wait(60)
    assert len(failed) + len([f for f in found if isinstance(f, Arrival)]) == 1000
    assert place.every_file() == []  # what was judged is not judged again
    assert place.files.due_in() is None


def test_names_that_come_and_go(place: Place) -> None:
    """A flood of files that vanish is reported by its number too, and leaves nothing behind."""
    for n in range(500):
        place.notice(f"x{n}.txt")
    found = place.wait(1)
    vanished = [f for f in found if isinstance(f, Vanished)]
    assert len(vanished) <= 110
    (flooded,) = [f for f in found if isinstance(f, Flooded)]
    assert flooded.kinds == {"vanished": 400}
    place.wait(120)
    assert place.files.due_in() is None


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
        most = max(most, len(kept.tracked), len(kept.tokens.seen))
        found += place.wait(QUIET_S)
    assert most == 5
    assert len(settled(found)) == 20
    assert {f.key.turn_id for f in found if isinstance(f, Hint)} == {f"x{n}" for n in range(20)}


def test_more_files_than_may_be_held(tmp_path: Path) -> None:
    """With many files under observation few stay open, and each settles all the same."""
    place = make(tmp_path / "root", max_held=3)
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
    settled = {f.key.turn_id for f in found if isinstance(f, Arrival)}
    assert settled == set(names) - {"t9"}
    place.files.close()


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
    place.scan(Depth.EVERY_FILE)
    assert [f.key.turn_id for f in place.wait(60) if isinstance(f, Arrival)] == ["t"]


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
    place.scan(Depth.EVERY_FILE)
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
