"""What of an arrival is believed later, and what is not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from support.watched import (
    TRAILER,
    WHOLE,
    Place,
    make,
    texts,
)

from paliadin_sidecar.intake.fingerprint import COARSE_S, Fingerprint
from paliadin_sidecar.outbox.records import Arrival

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


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
