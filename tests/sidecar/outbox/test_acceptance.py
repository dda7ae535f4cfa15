from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.noise import noise

from paliadin_contract.callback import decode
from paliadin_sidecar.errors import (
    Damaged,
    OverBudget,
)
from paliadin_sidecar.outbox import acceptance, event_rows, maintenance, queries, transitions
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.records import Delivery, Retention

if TYPE_CHECKING:
    from pathlib import Path

    from paliadin_contract.callback import Reason
from support.outbox_box import (
    ABOUT_KEY,
    KEY,
    LATE_S,
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


def test_accept(box: Box) -> None:
    """An answer is kept with its id, its frozen body and its event, and is due at once."""
    taken = box(acceptance.accept, answer("Grüße"))
    id_, digest = webhook_id(1, sha256("Grüße")), sha256("Grüße")
    assert box.events() == [
        (
            "turn.accepted",
            {
                **ABOUT_KEY,
                "revision": 1,
                "webhook_id": id_,
                "bytes": 7,
                "sha256": digest,
                "pushed": True,
                "settle_ms": 1000,
            },
        )
    ]
    (due,) = box.due()
    assert due == taken  # who is given it at once needs not ask for it
    assert due == Delivery(
        id=due.id,
        turn=due.turn,
        webhook_id=id_,
        body=due.body,
        accepted_at=NOW,
        root="aichat/paliadin",
        subject={**ABOUT_KEY, "revision": 1, "webhook_id": id_, "bytes": 7, "sha256": digest},
    )
    assert json.loads(due.body) == {
        "type": "turn.completed",
        "timestamp": "2026-11-22T07:59:59Z",
        "data": {
            "turn_id": "t",
            "submitted_turn_id": None,
            "revision": 1,
            "backend": "aichat",
            "persona": "paliadin",
            "host": "mriver",
            "user_id": None,
            "response": "Grüße",
            "bytes": 7,
            "sha256": digest,
            "lossy": False,
            "completed_at": "2026-11-22T07:59:59Z",
        },
    }
    decode(due.body)


def test_a_time_that_is_not_past_yet(box: Box) -> None:
    """A file from the future took no time to settle."""
    box(acceptance.accept, answer(at=NOW + 60))
    assert box.events()[0][1]["settle_ms"] == 0


@pytest.mark.parametrize(
    ("content", "response", "lossy"),
    [
        (b"Gr\xfc\xdfe", "Gr\ufffd\ufffde", True),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd", True),
        ("\ufffd\ufeff\0".encode(), "\ufffd\ufeff\0", False),
    ],
)
def test_lossy(box: Box, content: bytes, response: str, *, lossy: bool) -> None:
    """What is no UTF-8 is replaced and said so; what is, is kept as it is."""
    box(acceptance.accept, answer(content))
    data = json.loads(box.due()[0].body)["data"]
    assert (data["response"], data["lossy"]) == (response, lossy)
    assert (data["bytes"], data["sha256"]) == (len(content), sha256(content))


def test_the_same_again(box: Box) -> None:
    """The same content is nothing new: no event is written and nothing is sent."""
    box(acceptance.accept, answer())
    box.events()
    assert box(acceptance.accept, answer(fingerprint="2:4:1")) is None
    assert box.events() == []
    assert box.states() == [(1, "pending")]
    assert box(acceptance.present_files, "aichat", "paliadin") == {"t": "2:4:1"}


def test_turns_of_one_id(box: Box) -> None:
    """Turns of one id differ by backend and persona."""
    for other in (replace(KEY, backend="legacy"), replace(KEY, persona="hugo"), KEY):
        assert box(acceptance.accept, answer(key=other))
    assert len(box(queries.timelines, "t")) == 3


def test_a_revision(box: Box) -> None:
    """New content of an answered turn counts up."""
    box(acceptance.accept, answer())
    box.deliver()
    box.events()
    assert box(acceptance.accept, answer("No."))
    assert box.events() == [
        (
            "turn.revised",
            {
                **ABOUT_KEY,
                "revision": 2,
                "webhook_id": webhook_id(2, sha256("No.")),
                "bytes": 3,
                "sha256": sha256("No."),
                "pushed": True,
                "settle_ms": 1000,
            },
        )
    ]
    assert box.states() == [(1, "delivered"), (2, "pending")]
    assert json.loads(box.due()[0].body)["data"]["revision"] == 2


def test_superseded(box: Box) -> None:
    """A revision that was not delivered yet is skipped once a newer one is there."""
    box(acceptance.accept, answer("A"))
    box(acceptance.accept, answer("B"))
    box.events()
    box(acceptance.accept, answer("C"))
    assert box.events()[0][1]["superseded"] == [webhook_id(2, sha256("B"))]
    assert box.states() == [(1, "superseded"), (2, "superseded"), (3, "pending")]
    assert [due.webhook_id for due in box.due()] == [webhook_id(3, sha256("C"))]


def test_there_and_back(box: Box) -> None:
    """Content that comes back is a new revision: the receiver has replaced it meanwhile."""
    for content in "ABA":
        assert box(acceptance.accept, answer(content))
        box.deliver()
    assert [fields.get("webhook_id") for _, fields in box.events()][::3] == [
        webhook_id(1, sha256("A")),
        webhook_id(2, sha256("B")),
        webhook_id(3, sha256("A")),
    ]


@pytest.mark.parametrize(
    ("after_s", "pushed"), [(LATE_S, True), (LATE_S + 0.001, False), (86_400.0, False)]
)
def test_late(box: Box, after_s: float, *, pushed: bool) -> None:
    """A change is pushed until ten minutes after the first answer, and later only recorded."""
    box(acceptance.accept, answer("A"))
    box.events()
    box.now += after_s
    assert bool(box(acceptance.accept, answer("B"))) is pushed
    ((name, fields),) = box.events()
    assert (name, fields["pushed"]) == ("turn.revised", pushed)
    if not pushed:
        about = {"bytes": 1, "sha256": sha256("B"), "pushed": False, "why": "late"}
        assert fields == ABOUT_KEY | about
        assert box.states() == [(1, "pending")]
        # Neither is there a second event, nor is the answer sent again that the receiver has.
        assert not box(acceptance.accept, answer("B"))
        assert not box(acceptance.accept, answer("A"))
        assert box.events() == []


def test_late_counts_from_the_first_answer(box: Box) -> None:
    """Revisions do not prolong the ten minutes."""
    box(acceptance.accept, answer("A"))
    box.now += LATE_S / 2
    assert box(acceptance.accept, answer("B"))
    box.now += LATE_S / 2 + 1
    assert not box(acceptance.accept, answer("C"))


def test_a_bare_trailer(box: Box) -> None:
    """A trailer whose text is gone is only recorded, before an answer and after it."""
    bare = answer("[paliadin-meta]\n", has_text=False)
    about = {"bytes": 16, "sha256": bare.sha256, "pushed": False, "why": "no_text"}
    assert not box(acceptance.accept, bare)
    assert box.events() == [("turn.vanished", ABOUT_KEY | about)]
    assert not box(acceptance.accept, bare)
    assert box.events() == []
    assert box(acceptance.accept, answer("A"))
    box.events()
    assert not box(acceptance.accept, bare)
    assert box.events() == [("turn.revised", ABOUT_KEY | about)]
    assert not box(acceptance.accept, answer("A"))
    assert box.events() == []
    assert box.states() == [(1, "pending")]


@pytest.mark.parametrize("reason", ["too_large", "empty", "untrusted"])
def test_failure(box: Box, reason: Reason) -> None:
    """A turn that cannot become an answer is sent to whoever waits, under an id of its own."""
    assert box(acceptance.accept, failure(reason))
    assert box.events() == [
        (
            "turn.failed",
            {
                **ABOUT_KEY,
                "revision": 1,
                "webhook_id": webhook_id(1, reason),
                "bytes": 7,
                "sha256": None,
                "reason": reason,
                "settle_ms": 1000,
            },
        )
    ]
    (due,) = box.due()
    assert json.loads(due.body) == {
        "type": "turn.failed",
        "timestamp": "2026-11-22T07:59:59Z",
        "data": {
            "turn_id": "t",
            "submitted_turn_id": None,
            "revision": 1,
            "backend": "aichat",
            "persona": "paliadin",
            "host": "mriver",
            "user_id": None,
            "reason": reason,
            "bytes": 7,
            "completed_at": "2026-11-22T07:59:59Z",
        },
    }
    decode(due.body)
    box.deliver()
    assert box.states() == [(1, "failed")]


def test_a_failure_and_then_an_answer(box: Box) -> None:
    """A good file may follow: it is the next revision, and supersedes what nobody has read."""
    box(acceptance.accept, failure("empty"))
    assert not box(acceptance.accept, failure("empty"))
    assert box(acceptance.accept, failure("untrusted"))
    box.events()
    box.now += 10 * LATE_S  # only after an answer is anything late
    assert box(acceptance.accept, answer())
    ((name, fields),) = box.events()
    assert (name, fields["revision"], fields["pushed"]) == ("turn.revised", 3, True)
    assert fields["superseded"] == [webhook_id(2, "untrusted")]
    assert box.states() == [(1, "superseded"), (2, "superseded"), (3, "pending")]


def test_a_failure_after_an_answer(box: Box) -> None:
    """What becomes of the file later takes no answer back: it is only recorded."""
    box(acceptance.accept, answer())
    box.events()
    assert not box(acceptance.accept, failure("too_large"))
    about = {"bytes": 7, "sha256": None, "pushed": False, "why": "too_large"}
    assert box.events() == [("turn.revised", ABOUT_KEY | about)]
    assert box.states() == [(1, "pending")]


def test_hint(box: Box) -> None:
    """What the token said is in the body; of the user, the log sees eight characters."""
    box(acceptance.record_hint, KEY, "submitted", USER)
    box(acceptance.accept, answer())
    data = json.loads(box.due()[0].body)["data"]
    assert (data["submitted_turn_id"], data["user_id"]) == ("submitted", USER)
    ((_, fields),) = box.events()
    assert (fields["submitted_turn_id"], fields["user"]) == ("submitted", "5f3c0000")
    assert USER not in str(box(queries.timelines, "t")) + str(box(queries.deliveries, None, 0, 9))


def test_the_first_hint_counts(box: Box) -> None:
    """A second token of a turn changes nothing."""
    box(acceptance.record_hint, KEY, "t", USER)
    box(acceptance.record_hint, KEY, "other", "other")
    box(acceptance.accept, answer())
    data = json.loads(box.due()[0].body)["data"]
    assert (data["submitted_turn_id"], data["user_id"]) == ("t", USER)
    assert "submitted_turn_id" not in box.events()[0][1]  # it says nothing new


def test_a_late_hint(box: Box) -> None:
    """A body is frozen: a token that is seen later is for the next revision."""
    box(acceptance.accept, answer())
    before = box.due()[0].body
    box(acceptance.record_hint, KEY, "submitted", USER)
    assert box.due()[0].body == before
    box(acceptance.accept, answer("No."))
    assert json.loads(box.due()[0].body)["data"]["submitted_turn_id"] == "submitted"


def test_how_long_the_agent_took(box: Box) -> None:
    """From the token to the complete file, for a turn's first answer."""
    box.now = NOW - 31
    box(acceptance.record_hint, KEY, "submitted", USER)
    box.now = NOW
    box(acceptance.accept, answer())
    box(acceptance.accept, answer("No."))
    first, second = (fields for _, fields in box.events())
    assert (first["agent_ms"], first["settle_ms"]) == (30_000, 1000)
    assert "agent_ms" not in second


def test_a_token_that_was_found_too_late_tells_no_time(box: Box) -> None:
    """After its answer, as by the scan of a start; or when another file of the turn was known."""
    box(acceptance.record_hint, KEY, "submitted", USER)
    box(acceptance.accept, answer(at=NOW - 1))
    box(acceptance.register_root, ROOT, [answer("old", key("h"))])
    box(acceptance.record_hint, key("h"), "submitted-h", USER)
    box.now += 60
    box(acceptance.accept, answer("new", key("h"), at=box.now))
    assert all("agent_ms" not in fields for _, fields in box.events())


def test_present_files(box: Box) -> None:
    """It is known which files are where, until they are gone, and again when they are back."""
    for name in "ab":
        box(acceptance.accept, answer(key=key(name), fingerprint=f"of {name}"))
    box(acceptance.accept, answer(key=replace(KEY, backend="legacy")))
    box(acceptance.record_hint, key("c"), "c", "u")
    assert box(acceptance.present_files, "aichat", "paliadin") == {"a": "of a", "b": "of b"}
    box(acceptance.mark_gone, key("a"))
    box(acceptance.mark_gone, key("never seen"))
    assert box(acceptance.present_files, "aichat", "paliadin") == {"b": "of b"}
    box(acceptance.accept, answer(key=key("a"), fingerprint="new"))
    assert box(acceptance.present_files, "aichat", "paliadin") == {"a": "new", "b": "of b"}
    assert box(queries.timelines, "never seen") == []


def test_vanished(box: Box) -> None:
    """A file that went before it was opened gets an event, unless its turn was accepted before."""
    box(acceptance.mark_vanished, KEY)
    assert box.events() == [("turn.vanished", ABOUT_KEY)]
    box(acceptance.accept, answer())
    box.events()
    box(acceptance.mark_vanished, KEY)
    assert box.events() == []
    assert box(acceptance.present_files, "aichat", "paliadin") == {}


def test_an_event_of_a_turn(box: Box) -> None:
    """A turn may get an event that changes no state of it."""
    box(acceptance.record_hint, KEY, "submitted", USER)
    box(
        lambda outbox: acceptance.record_turn_event(
            outbox, "turn.stalled", KEY, why="open_for_writing", detail=""
        )
    )
    about = {"submitted_turn_id": "submitted", "user": "5f3c0000"}
    why = {"why": "open_for_writing", "detail": ""}
    assert box.events() == [("turn.stalled", ABOUT_KEY | about | why)]
    assert box.states() == []


def test_a_root_is_registered(box: Box) -> None:
    """Old files of a root that is met for the first time are recorded, and not sent."""
    assert not box(acceptance.is_known_root, ROOT)
    box(acceptance.register_root, ROOT, [answer(), failure("untrusted", key("b"))])
    assert box(acceptance.is_known_root, ROOT)
    assert box.events() == [
        ("turn.history", {**ABOUT_KEY, "bytes": 4, "sha256": sha256("Yes.")}),
        ("turn.history", {**ABOUT_KEY, "turn_id": "b", "bytes": 7, "sha256": None}),
    ]
    assert box.due() == []
    assert box.states() == [(0, "history")]
    assert box(acceptance.present_files, "aichat", "paliadin") == {"t": "1:4:0", "b": "1:0:0"}


def test_a_root_is_registered_once(box: Box) -> None:
    """A root is registered once: what comes there later is not history."""
    box(acceptance.register_root, ROOT, [])
    box(acceptance.register_root, ROOT, [answer()])
    assert box.events() == []
    for other in ({"backend": "legacy"}, {"persona": "hugo"}, {"path": "/elsewhere"}):
        assert not box(acceptance.is_known_root, ROOT | other)


def test_a_registration_that_was_cut_short(box: Box) -> None:
    """What it recorded is recorded once; what was accepted meanwhile stays what it is."""
    box(acceptance.record_history, [answer(), answer(key=key("b"))])
    assert not box(acceptance.is_known_root, ROOT)
    assert len(box.events()) == 2
    assert box(acceptance.accept, answer("new", key("b"), fingerprint="new"))
    box.events()
    again = [answer(fingerprint="other"), answer(key=key("b")), answer(key=key("c"))]
    box(acceptance.register_root, ROOT, again)
    (event,) = box.events()
    assert event[1]["turn_id"] == "c"
    found = box(acceptance.present_files, "aichat", "paliadin")
    assert found == {"t": "other", "b": "new", "c": "1:4:0"}
    assert box(acceptance.accept, answer(key=key("b")))  # it was changed, and changed back


def test_history_that_moves(box: Box) -> None:
    """A file of history that gets new content is an answer like any other."""
    box(acceptance.register_root, ROOT, [answer("old")])
    box.events()
    assert not box(acceptance.accept, answer("old", fingerprint="other"))
    assert box.events() == []
    assert box(acceptance.accept, answer("new"))
    assert [(name, fields["revision"]) for name, fields in box.events()] == [("turn.accepted", 1)]
    assert box.states() == [(0, "history"), (1, "pending")]


def test_successor(tmp_path: Path) -> None:
    """An outbox that follows a lost one knows no history, at its next start neither."""
    path = tmp_path / FILENAME
    for create, successor in ((True, True), (True, False), (False, False)):
        with Outbox(path, create=create, successor=successor) as outbox:
            assert acceptance.is_known_root(outbox, ROOT)


def stored(box: Box) -> int:
    with closing(sqlite3.connect(box.path)) as database:
        found: int = database.execute(
            "SELECT coalesce(sum(length(bytes)), 0) FROM body"
        ).fetchone()[0]
        return found


def test_a_body_costs_about_what_its_file_costs(box: Box) -> None:
    """4 MiB of NUL are 24 MiB as JSON and next to nothing as a sparse file, and here."""
    for n in range(3):
        box(acceptance.accept, answer(bytes(4 * 1024 * 1024) + b"%d" % n, key(f"t{n}")))
    assert stored(box) < 3 * 4096
    (due,) = box.due(limit=1)
    assert due.body.count(rb"\u0000") == 4 * 1024 * 1024
    box(acceptance.accept, answer(noise(10_000), key("text")))
    assert stored(box) > 10_000


def test_the_same_bytes_at_every_attempt(box: Box) -> None:
    """However often it is unpacked, and over a restart."""
    box(acceptance.accept, answer("ä\0" * 50_000))
    (first,) = box.due()
    box.retry(first, 1.0)
    box.outbox.close()
    again = Box(box.path)
    again.now += 2
    assert [due.body for due in again.due()] == [first.body]
    again.outbox.close()


def test_a_body_that_is_damaged(box: Box) -> None:
    """It is never sent."""
    box(acceptance.accept, answer(noise(1000)))
    box(lambda outbox: outbox.connection.execute("UPDATE body SET bytes = substr(bytes, 2)"))
    with pytest.raises(Damaged, match="the body of delivery 1"):
        box.due()


def budget(box: Box, more: int) -> int:
    """So many bytes more than it takes now."""
    box.outbox.max_bytes = box(Outbox.used_bytes) + more
    return box.outbox.max_bytes


def test_beyond_its_budget_what_the_receiver_has_goes_first(box: Box) -> None:
    """The oldest of it, and only as much as is needed; what is undelivered stays whole."""
    box(acceptance.accept, answer(noise(50_000), key("superseded")))
    box(acceptance.accept, answer("new", key("superseded")))
    for n in range(3):
        box(acceptance.accept, answer(noise(50_000), key(f"d{n}")))
    for due in box.due():
        box.acknowledge(due)
    box(acceptance.accept, answer(noise(50_000), key("pending")))
    budget(box, -1)
    assert box(acceptance.accept, answer(noise(50_000), key("new")))
    assert {due.webhook_id.split("_")[2] for due in box.due()} == {"pending", "new"}
    assert box(transitions.replay, turn_id="d0") == (0, ["d0"])
    assert box(Outbox.used_bytes) <= budget(box, 0)


def test_beyond_its_budget_new_ones_wait_and_undelivered_ones_stay(box: Box) -> None:
    """Nothing is half done, and the first acknowledgement makes room."""
    for n in range(3):
        box(acceptance.accept, answer(noise(50_000), key(f"t{n}")))
    most = budget(box, -1)
    for _ in range(2):
        with pytest.raises(OverBudget, match=f"PALIADIN_MAX_OUTBOX={most}"):
            box(acceptance.accept, answer("one more", key("late")))
    assert box(queries.timelines, "late") == []
    assert len(box.due()) == 3
    box.acknowledge(box.due()[0])
    assert box(acceptance.accept, answer("one more", key("late")))
    assert len(box.due()) == 3


def test_beyond_its_budget_the_oldest_turns_go_after_the_bodies(box: Box) -> None:
    """Those whose files have gone, once a change of them is late; a new answer is accepted."""
    box.outbox.retention = Retention(0)
    for n in range(300):
        box(acceptance.accept, answer("Yes.", key(f"t{n}")))
        box.deliver()
    box.now += LATE_S + 1
    for n in range(299):
        box(acceptance.mark_gone, key(f"t{n}"))
    box(event_rows.set_printed, box(event_rows.newest_id))
    limit = budget(box, -1)
    with pytest.raises(OverBudget) as blocked:
        box(acceptance.accept, answer("one more", key("late")))
    assert blocked.value.detail == (
        "the audit of turns whose files are still there, or did ten minutes ago, takes all of "
        f"PALIADIN_MAX_OUTBOX={limit}, so new answers wait"
    )
    box.now += LATE_S + 1
    assert box(acceptance.accept, answer("one more", key("late")))
    assert not box(queries.timelines, "t0")
    assert box(queries.timelines, "t200")
    while box(maintenance.make_room):
        pass
    assert box(queries.timelines, "t299")
    assert not box(acceptance.accept, answer("Yes.", key("t299"), fingerprint="2:4:0"))


def test_what_is_undelivered_is_named_only_where_something_is(box: Box) -> None:
    """Who reads it looks for the right thing: the receiver, or the directories."""
    box(acceptance.accept, answer())
    budget(box, -1)
    with pytest.raises(OverBudget, match="what is undelivered and the audit of turns"):
        box(acceptance.accept, answer("one more", key("late")))


def test_what_is_known_costs_no_budget(box: Box) -> None:
    """Looking again at what is undelivered is no reason to wait."""
    box(acceptance.accept, answer())
    budget(box, -1)
    assert not box(acceptance.accept, answer(fingerprint="2:4:0"))
    assert not box(acceptance.accept, answer(b"\n", has_text=False))


def test_upkeep_keeps_to_the_budget(box: Box) -> None:
    """Also where nothing new comes."""
    box(acceptance.accept, answer(noise(50_000)))
    box.deliver()
    assert not box(maintenance.prune)
    budget(box, -1)
    assert box(maintenance.prune)
    assert stored(box) == 0
