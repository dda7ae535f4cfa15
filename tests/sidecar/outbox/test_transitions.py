from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from paliadin_sidecar.outbox import acceptance, event_rows, queries, transitions

if TYPE_CHECKING:
    from collections.abc import Callable

    from paliadin_sidecar.outbox.records import Delivery

from support.outbox_box import (
    ABOUT_KEY,
    KEY,
    NOW,
    ROOT,
    USER,
    Box,
    answer,
    failure,
    key,
    sha256,
    webhook_id,
)


def about(box: Box) -> dict[str, Any]:
    """The fields of each event of the one delivery."""
    (row,) = box(queries.deliveries, None, 0, 9)
    return ABOUT_KEY | {name: row[name] for name in ("revision", "webhook_id", "bytes", "sha256")}


def test_delivered(box: Box) -> None:
    """An acknowledgement settles it, with one event for the attempt and one for its end."""
    box(acceptance.record_hint, KEY, "submitted", USER)
    box(acceptance.accept, answer())
    box.events()
    box.now += 2.5
    (due,) = box.due()
    box.acknowledge(due)
    fields = about(box) | {"submitted_turn_id": "submitted", "user": "5f3c0000"}
    assert box.events() == [
        ("delivery.attempted", fields | {"attempt": 1, "status": 204, "duration_ms": 12.3}),
        ("delivery.delivered", fields | {"attempts": 1, "since_accepted_ms": 2500}),
    ]
    assert box.states() == [(1, "delivered")]
    assert box.due() == []


def test_delivered_before_it_was_accepted(box: Box) -> None:
    """A clock that was set back makes no negative duration."""
    box(acceptance.accept, answer())
    box.now -= 60
    box.deliver()
    assert box.events()[-1][1]["since_accepted_ms"] == 0


def test_retry(box: Box) -> None:
    """A failed attempt is recorded with its error, and with when the next one comes."""
    box(acceptance.accept, answer())
    box.events()
    (due,) = box.due()
    box.retry(due, 0.123456, status=None, error="timeout")
    assert box.events() == [
        (
            "delivery.attempted",
            about(box) | {"attempt": 1, "error": "timeout", "duration_ms": 12.3},
        ),
        ("delivery.retry_scheduled", about(box) | {"attempt": 1, "delay_ms": 123.5}),
    ]
    assert box.states() == [(1, "pending")]


def test_refused(box: Box) -> None:
    """A refusal is recorded before the retry that follows."""
    box(acceptance.accept, answer())
    box.events()
    (due,) = box.due()
    box.retry(replace(due, refusals=1, refused_at=NOW), 1, status=400, refused=True)
    assert box.events()[1:] == [
        ("delivery.refused", about(box) | {"status": 400, "refusals": 1}),
        ("delivery.retry_scheduled", about(box) | {"attempt": 1, "delay_ms": 1000.0}),
    ]


def test_dead(box: Box) -> None:
    """What is given up stays, with its cause, for an operator to see."""
    box(acceptance.accept, answer())
    box.now += 5
    box.give_up(box.due()[0], "refused")
    assert box.events()[-1] == (
        "delivery.dead",
        about(box) | {"cause": "refused", "attempts": 1},
    )
    assert box.states() == [(1, "dead")]
    assert box.due() == []
    assert box(queries.deliveries, "dead", 0, 9)[0]["reason"] == "refused"
    assert box(queries.dead_since, NOW + 5) == 1
    assert box(queries.dead_since, NOW + 5.001) == 0


def test_superseded_while_under_way(box: Box) -> None:
    """An attempt of an older revision may end in any way: it is recorded, and changes nothing."""
    ends: list[Callable[[Delivery], None]] = [
        lambda due: box.retry(due, 1, status=400, refused=True),
        lambda due: box.give_up(due, "poison"),
    ]
    for n, end in enumerate(ends):
        turn = key(f"t{n}")
        box(acceptance.accept, answer("A", turn))
        (due,) = box.due()
        box(acceptance.accept, answer("B", turn))
        box.events()
        end(due)
        assert [name for name, _ in box.events()] == ["delivery.attempted"]
        assert box.states(turn.turn_id) == [(1, "superseded"), (2, "pending")]
        box.deliver()


def test_acknowledged_although_superseded(box: Box) -> None:
    """An older revision that was acknowledged after all is delivered; the newer one still goes."""
    box(acceptance.accept, answer("A"))
    (due,) = box.due()
    box(acceptance.accept, answer("B"))
    box.acknowledge(due)
    assert box.states() == [(1, "delivered"), (2, "pending")]


def test_the_evidence_against_a_turn(box: Box) -> None:
    """It is kept with the attempts, and a replay begins without it."""
    box(acceptance.accept, answer())
    (due,) = box.due()
    assert due.evidence == 0
    box.retry(replace(due, evidence=1.5), status=400)
    (due,) = box.due()
    assert due.evidence == 1.5
    box.give_up(due, "refused")
    box(transitions.replay, turn_id="t")
    (due,) = box.due()
    assert (due.evidence, due.reported_attempt, due.reported_at) == (0, 0, None)


def fail_again(box: Box, times: int, *, reported: bool, keep: int | None = None) -> None:
    for _ in range(times):
        (due,) = box.due()
        box.retry(due, reported=reported, keep=keep)


def test_what_is_not_told_is_counted(box: Box) -> None:
    """The next event says how many attempts got none."""
    box(acceptance.accept, answer())
    fail_again(box, 2, reported=True)
    box.events()
    fail_again(box, 3, reported=False, keep=2)
    assert box.events() == []
    fail_again(box, 1, reported=True, keep=2)
    ((name, fields),) = box.events()
    assert (name, fields["attempt"], fields["untold"]) == ("delivery.attempted", 6, 3)


def test_an_outage_leaves_as_many_rows_however_long_it_lasts(box: Box) -> None:
    """Events of attempts after the first few take each other's place, once they were printed."""
    box(acceptance.accept, answer())
    fail_again(box, 2, reported=True)
    rows = []
    for _ in range(60):
        box.now += 60
        fail_again(box, 10, reported=False, keep=2)
        fail_again(box, 1, reported=True, keep=2)
        box(event_rows.set_printed, box(event_rows.newest_id))
        rows.append(len(box(event_rows.events, 0)))
    assert rows[-1] == rows[10]
    kept = [
        e.fields["attempt"] for e in box(event_rows.events, 0) if e.name == "delivery.attempted"
    ]
    assert kept[:2] == [1, 2]
    assert kept[-1] == 2 + 60 * 11


def test_an_event_that_was_not_printed_stays(box: Box) -> None:
    """A line that nobody could read yet is not lost."""
    box(acceptance.accept, answer())
    for _ in range(20):
        box.now += 60
        fail_again(box, 1, reported=True, keep=0)
    assert len(box(event_rows.events, 0)) == 1 + 20


def test_pause(box: Box) -> None:
    """A pause is remembered over a restart, until it ends."""
    box(transitions.pause, "status_404")
    assert box.events() == [("receiver.paused", {"why": "status_404"})]
    with closing(Box(box.path).outbox) as outbox:
        assert queries.service(outbox)["paused_at"] == NOW
        assert queries.service(outbox)["paused_for"] == "status_404"
    for paused_s, ms in ((1.2345, 1234.5), (-5, 0)):
        box(transitions.resume, paused_s=paused_s)
        assert box.events() == [("receiver.resumed", {"paused_ms": ms})]
        assert box(queries.service)["paused_at"] is None


def test_replay(box: Box) -> None:
    """What was delivered goes out again, with the same id and the same bytes."""
    box(acceptance.record_hint, KEY, "submitted", USER)
    box(acceptance.accept, answer())
    (before,) = box.due()
    box.deliver()
    box.events()
    box.now += 5
    assert box(transitions.replay, turn_id="t") == (1, [])
    assert box.events() == [
        (
            "delivery.replayed",
            {
                **ABOUT_KEY,
                "submitted_turn_id": "submitted",
                "user": "5f3c0000",
                "revision": 1,
                "webhook_id": before.webhook_id,
                "bytes": answer().size,
                "sha256": answer().sha256,
            },
        )
    ]
    assert box.due() == [before]
    assert box(transitions.replay, turn_id="t") == (0, [])


def test_replay_of_the_dead(box: Box) -> None:
    """What was given up begins anew, without its past; a failure keeps its reason."""
    box(acceptance.accept, answer(key=key("a")))
    box.give_up(box.due()[0], "poison")
    box(acceptance.accept, failure("empty", key("b")))
    box.deliver()
    assert box(transitions.replay, dead=True) == (1, [])
    (due,) = box.due()
    assert (due.attempts, due.first_attempt_at, due.refusals) == (0, None, 0)
    assert box(transitions.replay) == (1, [])
    rows = {row["turn_id"]: row for row in box(queries.deliveries, "pending", 0, 9)}
    assert {name: row["reason"] for name, row in rows.items()} == {"a": None, "b": "empty"}


def test_replay_since(box: Box) -> None:
    """Only what was accepted since then goes out again."""
    for name in "abc":
        box(acceptance.accept, answer(key=key(name)))
        box.deliver()
        box.now += 10
    assert box(transitions.replay, since=NOW + 10) == (2, [])
    assert box(transitions.replay, since=NOW + 10) == (0, [])


def test_replay_of_what_was_acknowledged_since(box: Box) -> None:
    """A receiver restored from a backup lacks what it acknowledged later, however old that is."""
    box(acceptance.accept, answer(key=key("waited")))
    box.now += 3600
    box.deliver()
    assert box(transitions.replay, since=NOW + 3600.5) == (0, [])
    assert box(transitions.replay, since=NOW + 3599) == (1, [])


def test_replay_of_whom(box: Box) -> None:
    """A turn is found under its own id and under the one it was submitted as, each of them."""
    box(acceptance.record_hint, key("a"), "submitted", "u")
    box(acceptance.record_hint, key("b"), "submitted", "u")
    for name in ("a", "b", "submitted"):
        box(acceptance.accept, answer(key=key(name)))
        box.deliver()
    assert box(transitions.replay, turn_id="unknown") == (0, [])
    assert box(transitions.replay, turn_id="b") == (1, [])
    assert box(transitions.replay, turn_id="submitted") == (2, [])


def test_replay_of_the_newest(box: Box) -> None:
    """Of several revisions the newest goes out, and none while it is still under way."""
    box(acceptance.accept, answer("A"))
    box.deliver()
    box(acceptance.accept, answer("B"))
    assert box(transitions.replay) == (0, [])
    box.deliver()
    assert box(transitions.replay) == (1, [])
    assert [due.webhook_id for due in box.due()] == [webhook_id(2, sha256("B"))]


def test_replay_of_history(box: Box) -> None:
    """What was never sent cannot be sent again."""
    box(acceptance.register_root, ROOT, [answer()])
    assert box(transitions.replay, turn_id="t") == (0, [])


def test_replay_without_body(box: Box) -> None:
    """Where the body was purged the turn stays as it is, and is counted."""
    for name in "ab":
        box(acceptance.accept, answer(key=key(name)))
        box.deliver()
    box.outbox.connection.execute("DELETE FROM body WHERE delivery = 1")
    assert box(transitions.replay) == (1, ["a"])
    assert box.states("a") == [(1, "delivered")]
    assert box.states("b") == [(1, "pending")]
