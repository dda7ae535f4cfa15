"""Old files of a root that was never watched."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
from support.watched import (
    KEY,
    MAX_BYTES,
    QUIET_S,
    WHOLE,
    Place,
    append,
    texts,
)
from support.writer import Writer

from paliadin_sidecar.intake.fingerprint import Fingerprint
from paliadin_sidecar.outbox.records import Arrival


def old(place: Place, name: str, age_s: float = 901) -> None:
    os.utime(place / name, (place.wall - age_s, place.wall - age_s), follow_symlinks=False)


def test_history(place: Place) -> None:
    """Old files are recorded with their size and digest, and neither kept nor taken up later."""
    place.publish()
    old(place, "t.txt")
    info = (place / "t.txt").stat()
    assert place.history() == [
        Arrival(
            KEY,
            str(Fingerprint.of(info)),
            datetime.fromtimestamp(info.st_mtime_ns / 1e9, UTC),
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
    assert len(place.look()) == 2 - is_history  # without another listing
    assert place.every_file() == []


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
