"""What was accepted is judged again where the rules are others."""

from __future__ import annotations

import os

import pytest
from support.watched import (
    MAX_BYTES,
    TRAILER,
    WHOLE,
    Place,
    texts,
)

from paliadin_sidecar.outbox.records import Arrival


@pytest.mark.parametrize("again", ["meanwhile", "at the next start"])
def test_a_second_name_that_goes_late(place: Place, again: str) -> None:
    """A file that failed for its second name is an answer once that is gone."""
    place.publish()
    os.link(place / "t.txt", place / "second.tmp")
    place.notice("t.txt")
    (failed,) = place.wait(60)
    assert texts([failed]) == ["untrusted"]
    assert isinstance(failed, Arrival)
    assert place.every_file() == []
    (place / "second.tmp").unlink()
    if again == "at the next start":
        place = Place(place.path)
        place.files.remember({"t": failed.fingerprint})
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
    taken = {f.key.turn_id: f for f in [*foreign, *place.look()] if isinstance(f, Arrival)}
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
