from __future__ import annotations

from contextlib import closing

from support.outbox_box import KEY, NOW, USER, Box, answer, failure, key, sha256, webhook_id

from paliadin_sidecar.outbox.outbox import Outbox


def test_roots(box: Box) -> None:
    """What a scan found is kept; the same again writes nothing."""
    roots = [{"path": "/tmp/paliadin", "state": "armed"}]
    with closing(Box(box.path).outbox) as other:
        before = other.changed_elsewhere()
        box(Outbox.set_roots, roots)
        assert other.service()["roots"] == roots
        after = other.changed_elsewhere()
        assert after != before
        box(Outbox.set_roots, roots)
        assert other.changed_elsewhere() == after


def test_counts(box: Box) -> None:
    """Deliveries are counted by state, and it is known since when one waits."""
    assert box(Outbox.counts) == {}
    assert box(Outbox.oldest_pending_s) is None
    box(Outbox.accept, answer(key=key("a")))
    box.deliver()
    for name in "bc":
        box.now += 1
        box(Outbox.accept, answer(key=key(name)))
    assert box(Outbox.counts) == {"delivered": 1, "pending": 2}
    box.now += 5
    assert box(Outbox.oldest_pending_s) == 6


def test_deliveries(box: Box) -> None:
    """Deliveries are listed, the newest first, by state and time and up to a number."""
    box(Outbox.record_hint, KEY, "submitted", USER)
    box(Outbox.accept, answer())
    box.retry(box.due()[0], 2)
    box.now += 1
    box(Outbox.accept, failure("empty", key("b")))
    box.deliver()
    rows = box(Outbox.deliveries, None, 0, 9)
    assert rows == [
        {
            "turn_id": "b",
            "backend": "aichat",
            "persona": "paliadin",
            "submitted_turn_id": None,
            "user": None,
            "revision": 1,
            "state": "failed",
            "reason": "empty",
            "bytes": 7,
            "sha256": None,
            "webhook_id": webhook_id(1, "empty", "b"),
            "attempts": 1,
            "last_status": 204,
            "last_error": None,
            "last_detail": None,
            "accepted_at": NOW + 1,
            "next_attempt_at": None,
            "settled_at": NOW + 1,
        },
        {
            "turn_id": "t",
            "backend": "aichat",
            "persona": "paliadin",
            "submitted_turn_id": "submitted",
            "user": "5f3c0000",
            "revision": 1,
            "state": "pending",
            "reason": None,
            "bytes": 4,
            "sha256": sha256("Yes."),
            "webhook_id": webhook_id(1, sha256("Yes.")),
            "attempts": 1,
            "last_status": 503,
            "last_error": None,
            "last_detail": None,
            "accepted_at": NOW,
            "next_attempt_at": NOW + 2,
            "settled_at": None,
        },
    ]
    assert box(Outbox.deliveries, "pending", 0, 9) == rows[1:]
    assert box(Outbox.deliveries, None, NOW + 1, 9) == rows[:1]
    assert box(Outbox.deliveries, None, 0, 1) == rows[:1]


def test_timeline(box: Box) -> None:
    """A turn's timeline holds its deliveries and events, and no other turn's."""
    box(Outbox.record_hint, KEY, "submitted", USER)
    box(Outbox.accept, answer(key=key("other")))
    box(Outbox.accept, answer())
    row = box(Outbox.deliveries, None, 0, 1)[0]
    event = box(Outbox.events, 1)[0]
    assert box(Outbox.timelines, "submitted") == box(Outbox.timelines, "t")
    (timeline,) = box(Outbox.timelines, "t")
    names = ("turn_id", "backend", "persona", "submitted_turn_id", "user")
    row = {k: v for k, v in row.items() if not k.startswith("last_")}  # the events have it
    assert timeline == {
        **{name: row[name] for name in names},
        "deliveries": [{"id": 2} | {k: v for k, v in row.items() if k not in names}],
        "events": [{"id": 2, "at": NOW, "event": "turn.accepted", **event.fields}],
    }
