from __future__ import annotations

from contextlib import closing

from support.outbox_box import NOW, Box

from paliadin_sidecar.outbox import event_rows
from paliadin_sidecar.outbox.records import Event


def test_events(box: Box) -> None:
    """Events come in order, from one on, and it is remembered which were printed."""
    for n in range(5):
        box.now += 1
        box(event_rows.record_service_event, "service.started", {"n": n})
    found = box(event_rows.events, 0)
    assert found[0] == Event(1, NOW + 1, "service.started", {"n": 0})
    assert [event.id for event in found] == [1, 2, 3, 4, 5]
    assert [event.id for event in box(event_rows.events, 2, limit=2)] == [3, 4]
    assert box.outbox.last_event == 5
    assert box(event_rows.printed) == 0
    box(event_rows.set_printed, 4)
    with closing(Box(box.path).outbox) as outbox:
        assert event_rows.printed(outbox) == 4
