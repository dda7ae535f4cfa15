from __future__ import annotations

from contextlib import closing

from support.outbox_box import KEY, NOW, USER, Box, answer, failure, key, sha256, webhook_id

from paliadin_sidecar.outbox import acceptance, event_rows, queries


def test_roots(box: Box) -> None:
    """What a scan found is kept; the same again writes nothing."""
    roots = [{"path": "/tmp/paliadin", "state": "armed"}]
    with closing(Box(box.path).outbox) as other:
        before = other.changed_elsewhere()
        box(queries.set_roots, roots)
        assert queries.service(other)["roots"] == roots
        after = other.changed_elsewhere()
        assert after != before
        box(queries.set_roots, roots)
        assert other.changed_elsewhere() == after


def test_counts(box: Box) -> None:
    """Deliveries are counted by state, and it is known since when one waits."""
    assert box(queries.counts) == {}
    assert box(queries.oldest_pending_s) is None
    box(acceptance.accept, answer(key=key("a")))
    box.deliver()
    for name in "bc":
        box.now += 1
        box(acceptance.accept, answer(key=key(name)))
    assert box(queries.counts) == {"delivered": 1, "pending": 2}
    box.now += 5
    assert box(queries.oldest_pending_s) == 6


def test_deliveries(box: Box) -> None:
    """Deliveries are listed, the newest first, by state and time and up to a number."""
    box(acceptance.record_hint, KEY, "submitted", USER)
    box(acceptance.accept, answer())
    box.retry(box.due()[0], 2)
    box.now += 1
    box(acceptance.accept, failure("empty", key("b")))
    box.deliver()
    rows = box(queries.deliveries, None, 0, 9)
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
    assert box(queries.deliveries, "pending", 0, 9) == rows[1:]
    assert box(queries.deliveries, None, NOW + 1, 9) == rows[:1]
    assert box(queries.deliveries, None, 0, 1) == rows[:1]


def test_timeline(box: Box) -> None:
    """A turn's timeline holds its deliveries and events, and no other turn's."""
    box(acceptance.record_hint, KEY, "submitted", USER)
    box(acceptance.accept, answer(key=key("other")))
    box(acceptance.accept, answer())
    row = box(queries.deliveries, None, 0, 1)[0]
    event = box(event_rows.events, 1)[0]
    assert box(queries.timelines, "submitted") == box(queries.timelines, "t")
    (timeline,) = box(queries.timelines, "t")
    names = ("turn_id", "backend", "persona", "submitted_turn_id", "user")
    row = {k: v for k, v in row.items() if not k.startswith("last_")}  # the events have it
    row["said"] = None
    assert timeline == {
        **{name: row[name] for name in names},
        "deliveries": [{"id": 2} | {k: v for k, v in row.items() if k not in names}],
        "events": [event],
    }
