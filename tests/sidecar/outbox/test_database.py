from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import tempfile
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import pytest
from support.noise import noise
from support.users import ORDINARY, root_only, without_privilege

import paliadin_sidecar.outbox.database
import paliadin_sidecar.outbox.statements
from paliadin_contract.callback import decode
from paliadin_sidecar.delivery.sender import Outcome
from paliadin_sidecar.errors import (
    Busy,
    Damaged,
    Full,
    Newer,
    OutboxError,
    OverBudget,
    Unwritable,
)
from paliadin_sidecar.host.users import user_name
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.fairness import Shares
from paliadin_sidecar.outbox.outbox import Outbox
from paliadin_sidecar.outbox.records import Arrival, Delivery, Event, TurnKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from paliadin_contract.callback import Reason

P = ParamSpec("P")
T = TypeVar("T")

#: 2026-11-22, 08:00 UTC.
NOW = 1_795_334_400.0
#: As it is promised, not as it is written in the code.
LATE_S = 600.0
KEY = TurnKey("aichat", "paliadin", "t")
ABOUT_KEY = {"turn_id": "t", "backend": "aichat", "persona": "paliadin"}
ROOT = ("aichat", "paliadin", "/tmp/aichat/paliadin")


class Box:
    """An outbox on the disk, whose clock is ours; each call is a transaction of its own."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.now = NOW
        self.path = path
        self.set_s = 0.0  # by which somebody set the date
        self.outbox = Outbox(
            path,
            host="mriver",
            wall=lambda: self.now,
            steady=lambda: self.now - self.set_s,
            create=create,
        )
        self._seen = 0

    def set_date(self, by_s: float) -> None:
        self.now += by_s
        self.set_s += by_s

    def __call__(
        self, method: Callable[Concatenate[Outbox, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        (found,) = self.outbox.transaction([partial(method, self.outbox, *args, **kwargs)])
        return found

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """The events since this was last asked for."""
        found = self(Outbox.events, self._seen)
        self._seen = found[-1].id if found else self._seen
        return [(event.name, event.fields) for event in found]

    def due(self, *busy: int, limit: int = 9, max_retries: int = 9) -> list[Delivery]:
        return self(Outbox.fetch_due, busy, limit=limit, max_retries=max_retries)[0]

    def due_in(self) -> float | None:
        return self(Outbox.fetch_due, (), limit=9, max_retries=9)[1]

    def states(self, turn_id: str = "t") -> list[tuple[int, str]]:
        (timeline,) = self(Outbox.timelines, turn_id)
        return [(one["revision"], one["state"]) for one in timeline["deliveries"]]

    def retry(
        self,
        due: Delivery,
        delay_s: float = 0.0,
        *,
        status: int | None = 503,
        error: str | None = None,
        **kwargs: Any,  # noqa: ANN401 - handed on
    ) -> None:
        """Record one more attempt, after which it is tried again."""
        outcome = Outcome(status, error, ms=12.34)
        self(Outbox.record_retry, counted(due, self.now), outcome, delay_s, **kwargs)

    def acknowledge(self, due: Delivery, status: int = 204) -> None:
        """Record one more attempt, after which the receiver has it."""
        self(Outbox.record_delivered, counted(due, self.now), Outcome(status, None, ms=12.34))

    def give_up(self, due: Delivery, cause: str) -> None:
        """Record one more attempt, after which it is given up."""
        self(Outbox.record_dead, counted(due, self.now), Outcome(400, None, ms=12.34), cause)

    def deliver(self) -> None:
        """The one that is due is acknowledged."""
        (due,) = self.due()
        self.acknowledge(due)


def counted(due: Delivery, now: float = NOW) -> Delivery:
    """The delivery with one more attempt."""
    return replace(due, attempts=due.attempts + 1, first_attempt_at=due.first_attempt_at or now)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path / FILENAME, create=True)
    yield box
    box.outbox.close()


def sha256(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def answer(
    content: bytes | str = "Yes.",
    key: TurnKey = KEY,
    *,
    fingerprint: str = "1:4:0",
    at: float = NOW - 1,
    has_text: bool = True,
) -> Arrival:
    data = content.encode() if isinstance(content, str) else content
    return Arrival(
        key,
        fingerprint,
        datetime.fromtimestamp(at, UTC),
        len(data),
        data=data,
        sha256=sha256(data),
        has_text=has_text,
    )


def failure(reason: Reason, key: TurnKey = KEY) -> Arrival:
    at = datetime.fromtimestamp(NOW - 1, UTC)
    return Arrival(key, "1:0:0", at, 7, reason=reason)


def webhook_id(revision: int, mark: str, turn_id: str = "t") -> str:
    return f"aichat_paliadin_{turn_id}_{revision}_{mark[:16]}"


def key(turn_id: str) -> TurnKey:
    return replace(KEY, turn_id=turn_id)


# --- an answer ------------------------------------------------------------------------------


def test_accept(box: Box) -> None:
    """An answer is kept with its id, its frozen body and its event, and is due at once."""
    taken = box(Outbox.accept, answer("Grüße"))
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
    box(Outbox.accept, answer(at=NOW + 60))
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
    box(Outbox.accept, answer(content))
    data = json.loads(box.due()[0].body)["data"]
    assert (data["response"], data["lossy"]) == (response, lossy)
    assert (data["bytes"], data["sha256"]) == (len(content), sha256(content))


def test_the_same_again(box: Box) -> None:
    """The same content is no news: it is looked at, and nothing is told or sent."""
    box(Outbox.accept, answer())
    box.events()
    assert box(Outbox.accept, answer(fingerprint="2:4:1")) is None
    assert box.events() == []
    assert box.states() == [(1, "pending")]
    assert box(Outbox.present_files, "aichat", "paliadin") == {"t": "2:4:1"}


def test_turns_of_one_id(box: Box) -> None:
    """Turns are told apart by backend and persona too."""
    for other in (replace(KEY, backend="legacy"), replace(KEY, persona="hugo"), KEY):
        assert box(Outbox.accept, answer(key=other))
    assert len(box(Outbox.timelines, "t")) == 3


def test_a_revision(box: Box) -> None:
    """New content of an answered turn counts up."""
    box(Outbox.accept, answer())
    box.deliver()
    box.events()
    assert box(Outbox.accept, answer("No."))
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
    box(Outbox.accept, answer("A"))
    box(Outbox.accept, answer("B"))
    box.events()
    box(Outbox.accept, answer("C"))
    assert box.events()[0][1]["superseded"] == [webhook_id(2, sha256("B"))]
    assert box.states() == [(1, "superseded"), (2, "superseded"), (3, "pending")]
    assert [due.webhook_id for due in box.due()] == [webhook_id(3, sha256("C"))]


def test_there_and_back(box: Box) -> None:
    """Content that comes back is a new revision: the receiver has replaced it meanwhile."""
    for content in "ABA":
        assert box(Outbox.accept, answer(content))
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
    """A change is pushed until ten minutes after the first answer, and then only told."""
    box(Outbox.accept, answer("A"))
    box.events()
    box.now += after_s
    assert bool(box(Outbox.accept, answer("B"))) is pushed
    ((name, fields),) = box.events()
    assert (name, fields["pushed"]) == ("turn.revised", pushed)
    if not pushed:
        about = {"bytes": 1, "sha256": sha256("B"), "pushed": False, "why": "late"}
        assert fields == ABOUT_KEY | about
        assert box.states() == [(1, "pending")]
        # Neither is it told twice, nor is the answer sent again that the receiver has.
        assert not box(Outbox.accept, answer("B"))
        assert not box(Outbox.accept, answer("A"))
        assert box.events() == []


@pytest.mark.parametrize("set_s", [3600, -3600, 40 * 365 * 86_400])
def test_late_by_no_date(box: Box, set_s: float) -> None:
    """Ten minutes are ten minutes, whoever sets the clock meanwhile."""
    box(Outbox.accept, answer("A"))
    box.set_date(set_s)
    box.now += LATE_S
    assert box(Outbox.accept, answer("B"))
    box.set_date(-set_s)
    box.now += 0.001
    assert not box(Outbox.accept, answer("C"))


def test_times_follow_a_clock_that_is_set(box: Box) -> None:
    """What waits goes on waiting as long as it would have, and is as old as it was."""
    box(Outbox.accept, answer())
    (due,) = box.due()
    box.retry(due, 30.0)
    for set_s in (3600, -7200):
        box.set_date(set_s)
        assert box.due() == []
        assert box.due_in() == 30
        assert box(Outbox.oldest_pending_s) == 0
    box.now += 30
    (again,) = box.due()
    assert again.first_attempt_at == again.accepted_at == box.now - 30
    assert box(Outbox.oldest_pending_s) == 30


def test_a_clock_that_is_set_in_vain(box: Box) -> None:
    """A transaction that does not take effect leaves the clock's step to the next one."""
    box(Outbox.accept, answer("A"))
    box.set_date(3600)
    with pytest.raises(ZeroDivisionError):
        box(lambda _: 1 / 0)
    assert box(Outbox.accept, answer("B"))


def test_a_process_that_is_held_between_two_clocks(box: Box) -> None:
    """Who is stopped between reading one clock and the other reads both again."""
    box(Outbox.accept, answer("A"))
    wall, held = box.outbox.wall, [700.0]

    def held_once() -> float:
        box.now += held.pop() if held else 0.0
        return wall()

    box.outbox.wall = held_once
    assert box(Outbox.fetch_due, (), limit=9, max_retries=9)[0][0].accepted_at == box.now - 700


def test_late_counts_from_the_first_answer(box: Box) -> None:
    """Revisions do not prolong the ten minutes."""
    box(Outbox.accept, answer("A"))
    box.now += LATE_S / 2
    assert box(Outbox.accept, answer("B"))
    box.now += LATE_S / 2 + 1
    assert not box(Outbox.accept, answer("C"))


def test_a_bare_trailer(box: Box) -> None:
    """A trailer whose text is gone is only told, before an answer and after it."""
    bare = answer("[paliadin-meta]\n", has_text=False)
    about = {"bytes": 16, "sha256": bare.sha256, "pushed": False, "why": "no_text"}
    assert not box(Outbox.accept, bare)
    assert box.events() == [("turn.vanished", ABOUT_KEY | about)]
    assert not box(Outbox.accept, bare)
    assert box.events() == []
    assert box(Outbox.accept, answer("A"))
    box.events()
    assert not box(Outbox.accept, bare)
    assert box.events() == [("turn.revised", ABOUT_KEY | about)]
    assert not box(Outbox.accept, answer("A"))
    assert box.events() == []
    assert box.states() == [(1, "pending")]


# --- a failure ------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["too_large", "empty", "untrusted"])
def test_failure(box: Box, reason: Reason) -> None:
    """A turn that cannot become an answer is told to whoever waits, under an id of its own."""
    assert box(Outbox.accept, failure(reason))
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
    box(Outbox.accept, failure("empty"))
    assert not box(Outbox.accept, failure("empty"))
    assert box(Outbox.accept, failure("untrusted"))
    box.events()
    box.now += 10 * LATE_S  # only after an answer is anything late
    assert box(Outbox.accept, answer())
    ((name, fields),) = box.events()
    assert (name, fields["revision"], fields["pushed"]) == ("turn.revised", 3, True)
    assert fields["superseded"] == [webhook_id(2, "untrusted")]
    assert box.states() == [(1, "superseded"), (2, "superseded"), (3, "pending")]


def test_a_failure_after_an_answer(box: Box) -> None:
    """What becomes of the file later takes no answer back: it is only told."""
    box(Outbox.accept, answer())
    box.events()
    assert not box(Outbox.accept, failure("too_large"))
    about = {"bytes": 7, "sha256": None, "pushed": False, "why": "too_large"}
    assert box.events() == [("turn.revised", ABOUT_KEY | about)]
    assert box.states() == [(1, "pending")]


# --- who waits ------------------------------------------------------------------------------

USER = "5f3c0000-aaaa-bbbb-cccc-000000000000"


def test_hint(box: Box) -> None:
    """What the token said is in the body; of the user, the log sees eight characters."""
    box(Outbox.record_hint, KEY, "submitted", USER)
    box(Outbox.accept, answer())
    data = json.loads(box.due()[0].body)["data"]
    assert (data["submitted_turn_id"], data["user_id"]) == ("submitted", USER)
    ((_, fields),) = box.events()
    assert (fields["submitted_turn_id"], fields["user"]) == ("submitted", "5f3c0000")
    assert USER not in str(box(Outbox.timelines, "t")) + str(box(Outbox.deliveries, None, 0, 9))


def test_the_first_hint_counts(box: Box) -> None:
    """A second token of a turn changes nothing."""
    box(Outbox.record_hint, KEY, "t", USER)
    box(Outbox.record_hint, KEY, "other", "other")
    box(Outbox.accept, answer())
    data = json.loads(box.due()[0].body)["data"]
    assert (data["submitted_turn_id"], data["user_id"]) == ("t", USER)
    assert "submitted_turn_id" not in box.events()[0][1]  # it says nothing new


def test_a_late_hint(box: Box) -> None:
    """A body is frozen: a token that is seen later is for the next revision."""
    box(Outbox.accept, answer())
    before = box.due()[0].body
    box(Outbox.record_hint, KEY, "submitted", USER)
    assert box.due()[0].body == before
    box(Outbox.accept, answer("No."))
    assert json.loads(box.due()[0].body)["data"]["submitted_turn_id"] == "submitted"


# --- files ----------------------------------------------------------------------------------


def test_lying(box: Box) -> None:
    """It is known which files lie where, until they are gone, and again when they are back."""
    for name in "ab":
        box(Outbox.accept, answer(key=key(name), fingerprint=f"of {name}"))
    box(Outbox.accept, answer(key=replace(KEY, backend="legacy")))
    box(Outbox.record_hint, key("c"), "c", "u")
    assert box(Outbox.present_files, "aichat", "paliadin") == {"a": "of a", "b": "of b"}
    box(Outbox.mark_gone, key("a"))
    box(Outbox.mark_gone, key("never seen"))
    assert box(Outbox.present_files, "aichat", "paliadin") == {"b": "of b"}
    box(Outbox.accept, answer(key=key("a"), fingerprint="new"))
    assert box(Outbox.present_files, "aichat", "paliadin") == {"a": "new", "b": "of b"}
    assert box(Outbox.timelines, "never seen") == []


def test_vanished(box: Box) -> None:
    """A file that went before it was opened is told, unless its turn was taken before."""
    box(Outbox.mark_vanished, KEY)
    assert box.events() == [("turn.vanished", ABOUT_KEY)]
    box(Outbox.accept, answer())
    box.events()
    box(Outbox.mark_vanished, KEY)
    assert box.events() == []
    assert box(Outbox.present_files, "aichat", "paliadin") == {}


def test_note(box: Box) -> None:
    """An event may tell of a turn without changing it."""
    box(Outbox.record_hint, KEY, "submitted", USER)
    box(
        lambda outbox: outbox.record_turn_event(
            "turn.stalled", KEY, why="open_for_writing", detail=""
        )
    )
    about = {"submitted_turn_id": "submitted", "user": "5f3c0000"}
    why = {"why": "open_for_writing", "detail": ""}
    assert box.events() == [("turn.stalled", ABOUT_KEY | about | why)]
    assert box.states() == []


# --- history --------------------------------------------------------------------------------


def test_meet(box: Box) -> None:
    """Old files of a root that is met for the first time are recorded, and not sent."""
    assert not box(Outbox.is_known_root, *ROOT)
    box(Outbox.register_root, *ROOT, [answer(), failure("untrusted", key("b"))])
    assert box(Outbox.is_known_root, *ROOT)
    assert box.events() == [
        ("turn.history", {**ABOUT_KEY, "bytes": 4, "sha256": sha256("Yes.")}),
        ("turn.history", {**ABOUT_KEY, "turn_id": "b", "bytes": 7, "sha256": None}),
    ]
    assert box.due() == []
    assert box.states() == [(0, "history")]
    assert box(Outbox.present_files, "aichat", "paliadin") == {"t": "1:4:0", "b": "1:0:0"}


def test_meet_again(box: Box) -> None:
    """A root is met once: what lies there later is not history."""
    box(Outbox.register_root, *ROOT, [])
    box(Outbox.register_root, *ROOT, [answer()])
    assert box.events() == []
    for other in (("legacy", *ROOT[1:]), ("aichat", "hugo", ROOT[2]), (*ROOT[:2], "/elsewhere")):
        assert not box(Outbox.is_known_root, *other)


def test_history_that_moves(box: Box) -> None:
    """A file of history that gets new content is an answer like any other."""
    box(Outbox.register_root, *ROOT, [answer("old")])
    box.events()
    assert not box(Outbox.accept, answer("old", fingerprint="other"))
    assert box.events() == []
    assert box(Outbox.accept, answer("new"))
    assert [(name, fields["revision"]) for name, fields in box.events()] == [("turn.accepted", 1)]
    assert box.states() == [(0, "history"), (1, "pending")]


def test_successor(tmp_path: Path) -> None:
    """An outbox that follows a lost one knows no history, at its next start neither."""
    path = tmp_path / FILENAME
    for create, successor in ((True, True), (True, False), (False, False)):
        with Outbox(path, create=create, successor=successor) as outbox:
            assert outbox.is_known_root(*ROOT)


# --- what is due ----------------------------------------------------------------------------


def test_due_in_order(box: Box) -> None:
    """What was tried before comes first, by its time; then the oldest and the newest in turn."""
    for name in "abcd":
        box(Outbox.accept, answer(key=key(name)))
    for due in box.due():
        if (name := due.webhook_id.split("_")[2]) in "ab":
            box.retry(due, {"a": 2, "b": 1}[name])
    box.now += 2
    for limit, max_retries, names in (
        (9, 9, "bacd"),
        (9, 1, "bcd"),
        (2, 1, "bc"),
        (2, 2, "ba"),
        (3, 0, "cd"),
        (0, 0, ""),
    ):
        found = box.due(limit=limit, max_retries=max_retries)
        assert "".join(due.webhook_id.split("_")[2] for due in found) == names


def test_roots_take_turns(box: Box) -> None:
    """What one root has waiting stands before nothing of another, of either kind of attempt."""
    for n in range(20):
        box(Outbox.accept, answer(key=key(f"a{n}")))
    other = TurnKey("legacy", "paliadin", "b0"), TurnKey("aichat", "other", "c0")
    for one in other:
        box(Outbox.accept, answer(key=one))
    found = box.due(limit=3)
    assert sorted(due.root for due in found) == [
        "aichat/other",
        "aichat/paliadin",
        "legacy/paliadin",
    ]
    for due in box.due(limit=99):
        box.retry(due, 0)
    again = box.due(limit=3, max_retries=3)
    assert sorted(due.id for due in again) == sorted(due.id for due in found)
    shares = Shares()
    for due in again:
        shares.retries.started(due.root)
    (after,) = box(
        Outbox.fetch_due, [due.turn for due in again], limit=1, max_retries=1, shares=shares
    )[0]
    assert after.root == "aichat/paliadin"
    assert shares.retries.starts == 3  # what is due is no start


def test_a_replayed_flood(box: Box) -> None:
    """What an operator sends again, however old, holds no new answer."""
    for n in range(20):
        box(Outbox.accept, answer(key=key(f"old{n}")))
    for due in box.due(limit=20):
        box.acknowledge(due)
    assert box(Outbox.replay) == (20, 0)
    box(Outbox.accept, answer(key=key("new")))
    assert "new" in [due.webhook_id.split("_")[2] for due in box.due(limit=2)]


@pytest.mark.parametrize("query", ["first_attempts", "retries", "next_attempts"])
def test_what_is_due_is_found_by_an_index(box: Box, query: str) -> None:
    """No row is read that is not pending, nor all that are."""
    statement = getattr(paliadin_sidecar.outbox.statements.sql, query)
    values = {"busy": "[]", "max_size": None, "limit": 1, "now": 0}
    with closing(sqlite3.connect(box.path)) as db:
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert [step for step in plan if "USING INDEX delivery_" in step]
    # Roots, what is under way, and the few ids that were found.
    scanned = {step for step in plan if step.startswith("SCAN")}
    assert {step.split()[1] for step in scanned} <= {
        "r",
        "json_each",
        "(subquery-5)",
        "(subquery-8)",
    }


def test_not_due_yet(box: Box) -> None:
    """A retry is due when its delay is over, and it is known when that will be."""
    assert box.due_in() is None
    box(Outbox.accept, answer())
    assert box.due_in() is None
    box.retry(box.due()[0], 1.5)
    assert box.due() == []
    assert box.due_in() == 1.5
    box.now += 1.499
    assert box.due() == []
    assert box.due_in() == 0.001
    box.now += 0.001
    assert [due.attempts for due in box.due()] == [1]
    assert box.due_in() is None


def test_busy(box: Box) -> None:
    """A turn that is under way has nothing due, its newer revision neither."""
    for name in "ab":
        box(Outbox.accept, answer(key=key(name)))
    first, second = box.due()
    box(Outbox.accept, answer("No.", key("a")))
    assert [due.turn for due in box.due(first.turn)] == [second.turn]
    assert box.due(first.turn, second.turn) == []
    box.retry(second, 0)
    assert box.due(first.turn, second.turn) == []
    assert [due.webhook_id for due in box.due(second.turn)] == [webhook_id(2, sha256("No."), "a")]


@pytest.mark.parametrize("back_s", [1, 3600, 10 * 365 * 86_400])
def test_a_clock_that_was_set_back(box: Box, back_s: float) -> None:
    """A clock that jumps back makes a turn due at once, and not when it was to be."""
    box(Outbox.accept, answer())
    box.retry(box.due()[0], 60)
    box.now -= back_s
    assert len(box.due()) == 1


def test_a_clock_that_was_set_back_while_the_disk_was_full(box: Box) -> None:
    """What was not committed is done again."""
    box(Outbox.accept, answer())
    box.retry(box.due()[0], 60)
    box.due()
    box.now -= 10

    def cut_short(outbox: Outbox) -> None:
        outbox.fetch_due((), limit=9, max_retries=9)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        box(cut_short)
    assert len(box.due()) == 1


def test_a_clock_that_is_set_within_a_transaction(box: Box) -> None:
    """An attempt and its delay are dated alike, so that no turn waits for the hour between them."""
    box(Outbox.accept, answer())
    (due,) = box.due()
    tried = replace(due, attempts=1, first_attempt_at=box.now)

    def put_off(outbox: Outbox) -> None:
        box.set_date(3600)
        outbox.record_retry(tried, Outcome(503, None, ms=1.0), 1)

    box(put_off)
    box.set_date(-3600)
    box.now += 2
    assert len(box.due()) == 1


def test_what_was_tried_is_kept(box: Box) -> None:
    """Attempts and refusals outlive a restart: the policy sees them all."""
    box(Outbox.accept, answer())
    (due,) = box.due()
    tried = replace(due, attempts=3, first_attempt_at=NOW + 0.25, refusals=2, refused_at=NOW + 0.5)
    box(Outbox.record_retry, tried, Outcome(400, None, ms=1.0), 0, refused=True)
    with closing(Box(box.path).outbox) as outbox:
        outbox.wall = lambda: NOW + 1
        kept = replace(tried, reported_attempt=3, reported_at=NOW)
        assert outbox.fetch_due((), limit=9, max_retries=9) == ([kept], None)


# --- what becomes of it ---------------------------------------------------------------------


def about(box: Box) -> dict[str, Any]:
    """The fields of each event of the one delivery."""
    (row,) = box(Outbox.deliveries, None, 0, 9)
    return ABOUT_KEY | {name: row[name] for name in ("revision", "webhook_id", "bytes", "sha256")}


def test_delivered(box: Box) -> None:
    """An acknowledgement settles it, with one event for the attempt and one for its end."""
    box(Outbox.record_hint, KEY, "submitted", USER)
    box(Outbox.accept, answer())
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
    box(Outbox.accept, answer())
    box.now -= 60
    box.deliver()
    assert box.events()[-1][1]["since_accepted_ms"] == 0


def test_retry(box: Box) -> None:
    """A failed attempt is told with its error, and with when the next one comes."""
    box(Outbox.accept, answer())
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
    """A refusal is told before the retry that follows."""
    box(Outbox.accept, answer())
    box.events()
    (due,) = box.due()
    box.retry(replace(due, refusals=1, refused_at=NOW), 1, status=400, refused=True)
    assert box.events()[1:] == [
        ("delivery.refused", about(box) | {"status": 400, "refusals": 1}),
        ("delivery.retry_scheduled", about(box) | {"attempt": 1, "delay_ms": 1000.0}),
    ]


def test_dead(box: Box) -> None:
    """What is given up stays, with its cause, for an operator to see."""
    box(Outbox.accept, answer())
    box.now += 5
    box.give_up(box.due()[0], "refused")
    assert box.events()[-1] == (
        "delivery.dead",
        about(box) | {"cause": "refused", "attempts": 1},
    )
    assert box.states() == [(1, "dead")]
    assert box.due() == []
    assert box(Outbox.deliveries, "dead", 0, 9)[0]["reason"] == "refused"
    assert box(Outbox.dead_since, NOW + 5) == 1
    assert box(Outbox.dead_since, NOW + 5.001) == 0


def test_superseded_while_under_way(box: Box) -> None:
    """An attempt of an older revision may end in any way: it is told, and changes nothing."""
    ends: list[Callable[[Delivery], None]] = [
        lambda due: box.retry(due, 1, status=400, refused=True),
        lambda due: box.give_up(due, "poison"),
    ]
    for n, end in enumerate(ends):
        turn = key(f"t{n}")
        box(Outbox.accept, answer("A", turn))
        (due,) = box.due()
        box(Outbox.accept, answer("B", turn))
        box.events()
        end(due)
        assert [name for name, _ in box.events()] == ["delivery.attempted"]
        assert box.states(turn.turn_id) == [(1, "superseded"), (2, "pending")]
        box.deliver()


def test_acknowledged_although_superseded(box: Box) -> None:
    """An older revision that was acknowledged after all is delivered; the newer one still goes."""
    box(Outbox.accept, answer("A"))
    (due,) = box.due()
    box(Outbox.accept, answer("B"))
    box.acknowledge(due)
    assert box.states() == [(1, "delivered"), (2, "pending")]


def test_what_the_receiver_asked_for_outlives_a_restart(box: Box) -> None:
    """A pause that is longer than any of ours was its own wish, and holds all turns."""
    assert box(Outbox.retry_after_s, 60.0) == 0
    box(Outbox.accept, answer(key=key("a")))
    box.retry(box.due()[0], 60.0)
    assert box(Outbox.retry_after_s, 60.0) == 0
    box(Outbox.accept, answer(key=key("b")))
    box.retry(box.due()[0], 1800.0)
    assert box(Outbox.retry_after_s, 60.0) == 1800
    box.now += 1801
    assert box(Outbox.retry_after_s, 60.0) == 0


def test_the_evidence_against_a_turn(box: Box) -> None:
    """It is kept with the attempts, and a replay begins without it."""
    box(Outbox.accept, answer())
    (due,) = box.due()
    assert due.evidence == 0
    box.retry(replace(due, evidence=1.5), status=400)
    (due,) = box.due()
    assert due.evidence == 1.5
    box.give_up(due, "refused")
    box(Outbox.replay, turn_id="t")
    (due,) = box.due()
    assert (due.evidence, due.reported_attempt, due.reported_at) == (0, 0, None)


def fail_again(box: Box, times: int, *, reported: bool, keep: int | None = None) -> None:
    for _ in range(times):
        (due,) = box.due()
        box.retry(due, reported=reported, keep=keep)


def test_what_is_not_told_is_counted(box: Box) -> None:
    """The next event says how many attempts got none."""
    box(Outbox.accept, answer())
    fail_again(box, 2, reported=True)
    box.events()
    fail_again(box, 3, reported=False, keep=2)
    assert box.events() == []
    fail_again(box, 1, reported=True, keep=2)
    ((name, fields),) = box.events()
    assert (name, fields["attempt"], fields["untold"]) == ("delivery.attempted", 6, 3)


def test_an_outage_leaves_as_many_rows_however_long_it_lasts(box: Box) -> None:
    """Events of attempts after the first few take each other's place, once they were printed."""
    box(Outbox.accept, answer())
    fail_again(box, 2, reported=True)
    rows = []
    for _ in range(60):
        box.now += 60
        fail_again(box, 10, reported=False, keep=2)
        fail_again(box, 1, reported=True, keep=2)
        box(Outbox.set_printed, box(Outbox.newest_event))
        rows.append(len(box(Outbox.events, 0)))
    assert rows[-1] == rows[10]
    kept = [e.fields["attempt"] for e in box(Outbox.events, 0) if e.name == "delivery.attempted"]
    assert kept[:2] == [1, 2]
    assert kept[-1] == 2 + 60 * 11


def test_an_event_that_was_not_printed_stays(box: Box) -> None:
    """A line that nobody could read yet is not lost."""
    box(Outbox.accept, answer())
    for _ in range(20):
        box.now += 60
        fail_again(box, 1, reported=True, keep=0)
    assert len(box(Outbox.events, 0)) == 1 + 20


def test_pause(box: Box) -> None:
    """A pause is remembered over a restart, until it ends."""
    box(Outbox.pause, "status_404")
    assert box.events() == [("receiver.paused", {"why": "status_404"})]
    with closing(Box(box.path).outbox) as outbox:
        assert outbox.service()["paused_at"] == NOW
        assert outbox.service()["paused_for"] == "status_404"
    for paused_s, ms in ((1.2345, 1234.5), (-5, 0)):
        box(Outbox.resume, paused_s=paused_s)
        assert box.events() == [("receiver.resumed", {"paused_ms": ms})]
        assert box(Outbox.service)["paused_at"] is None


# --- replay ---------------------------------------------------------------------------------


def test_replay(box: Box) -> None:
    """What was delivered goes out again, with the same id and the same bytes."""
    box(Outbox.record_hint, KEY, "submitted", USER)
    box(Outbox.accept, answer())
    (before,) = box.due()
    box.deliver()
    box.events()
    box.now += 5
    assert box(Outbox.replay, turn_id="t") == (1, 0)
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
    assert box(Outbox.replay, turn_id="t") == (0, 0)


def test_replay_of_the_dead(box: Box) -> None:
    """What was given up begins anew, without its past; a failure keeps its reason."""
    box(Outbox.accept, answer(key=key("a")))
    box.give_up(box.due()[0], "poison")
    box(Outbox.accept, failure("empty", key("b")))
    box.deliver()
    assert box(Outbox.replay, dead=True) == (1, 0)
    (due,) = box.due()
    assert (due.attempts, due.first_attempt_at, due.refusals) == (0, None, 0)
    assert box(Outbox.replay) == (1, 0)
    rows = {row["turn_id"]: row for row in box(Outbox.deliveries, "pending", 0, 9)}
    assert {name: row["reason"] for name, row in rows.items()} == {"a": None, "b": "empty"}


def test_replay_since(box: Box) -> None:
    """Only what was accepted since then goes out again."""
    for name in "abc":
        box(Outbox.accept, answer(key=key(name)))
        box.deliver()
        box.now += 10
    assert box(Outbox.replay, since=NOW + 10) == (2, 0)
    assert box(Outbox.replay, since=NOW + 10) == (0, 0)


def test_replay_of_whom(box: Box) -> None:
    """A turn is found under its own id and under the one it was submitted as, each of them."""
    box(Outbox.record_hint, key("a"), "submitted", "u")
    box(Outbox.record_hint, key("b"), "submitted", "u")
    for name in ("a", "b", "submitted"):
        box(Outbox.accept, answer(key=key(name)))
        box.deliver()
    assert box(Outbox.replay, turn_id="unknown") == (0, 0)
    assert box(Outbox.replay, turn_id="b") == (1, 0)
    assert box(Outbox.replay, turn_id="submitted") == (2, 0)


def test_replay_of_the_newest(box: Box) -> None:
    """Of several revisions the newest goes out, and none while it is still under way."""
    box(Outbox.accept, answer("A"))
    box.deliver()
    box(Outbox.accept, answer("B"))
    assert box(Outbox.replay) == (0, 0)
    box.deliver()
    assert box(Outbox.replay) == (1, 0)
    assert [due.webhook_id for due in box.due()] == [webhook_id(2, sha256("B"))]


def test_replay_of_history(box: Box) -> None:
    """What was never sent cannot be sent again."""
    box(Outbox.register_root, *ROOT, [answer()])
    assert box(Outbox.replay, turn_id="t") == (0, 0)


def test_replay_without_body(box: Box) -> None:
    """Where the body was let go the turn stays as it is, and is counted."""
    for name in "ab":
        box(Outbox.accept, answer(key=key(name)))
        box.deliver()
    box.outbox.connection.execute("DELETE FROM body WHERE delivery = 1")
    assert box(Outbox.replay) == (1, 1)
    assert box.states("a") == [(1, "delivered")]
    assert box.states("b") == [(1, "pending")]


# --- what is asked --------------------------------------------------------------------------


def test_events(box: Box) -> None:
    """Events come in order, from one on, and it is remembered which were printed."""
    for n in range(5):
        box.now += 1
        box(Outbox.record_service_event, "service.started", {"n": n})
    found = box(Outbox.events, 0)
    assert found[0] == Event(1, NOW + 1, "service.started", {"n": 0})
    assert [event.id for event in found] == [1, 2, 3, 4, 5]
    assert [event.id for event in box(Outbox.events, 2, limit=2)] == [3, 4]
    assert box.outbox.last_event == 5
    assert box(Outbox.printed) == 0
    box(Outbox.set_printed, 4)
    with closing(Box(box.path).outbox) as outbox:
        assert outbox.printed() == 4


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


def test_no_answer_in_a_repr() -> None:
    """Neither an arrival nor a delivery shows what it holds."""
    arrival = answer("geheim")
    due = Delivery(id=1, turn=1, webhook_id="id", body=b"geheim", accepted_at=NOW)
    assert "geheim" not in repr(arrival) + repr(due)


# --- opening it -----------------------------------------------------------------------------


def test_open(tmp_path: Path) -> None:
    """A database is made once, survives the loss of power, and is found again."""
    path = tmp_path / "with ? # % and ü" / FILENAME
    path.parent.mkdir()
    for _ in range(2):
        with Outbox(path, create=True) as outbox:
            outbox.record_service_event("service.started", {})
            assert outbox.pragma("synchronous") == 2
            assert outbox.pragma("user_version") == 1
            outbox.check_identity()
    with Outbox(path) as outbox:
        assert [event.id for event in outbox.events(0)] == [1, 2]
    assert [p.name for p in path.parent.iterdir()] == [FILENAME]


def test_open_nothing(tmp_path: Path) -> None:
    """Who only asks makes no database."""
    with pytest.raises(FileNotFoundError):
        Outbox(tmp_path / FILENAME)
    assert list(tmp_path.iterdir()) == []


def test_newer(tmp_path: Path) -> None:
    """A later version's database is left alone, with a message that names both versions."""
    path = tmp_path / FILENAME
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")
    for create in (True, False):
        with pytest.raises(Newer) as caught:
            Outbox(path, create=create)
        assert str(caught.value) == (f"{path}: is of version 2, this program knows 1")


@pytest.mark.parametrize(
    ("content", "create", "detail"),
    [
        (b"this is no database" * 100, True, "is damaged, or its disk is (SQLITE_NOTADB)"),
        (b"SQLite format 3\0" + b"\xff" * 5000, True, "is damaged, or its disk is (SQLITE_"),
    ],
)
def test_damaged(tmp_path: Path, content: bytes, detail: str, *, create: bool) -> None:
    """What is no database of ours is told, and not written to."""
    path = tmp_path / FILENAME
    path.write_bytes(content)
    with pytest.raises(Damaged) as caught:
        Outbox(path, create=create)
    assert str(caught.value).startswith(f"{path}: {detail}")
    assert path.read_bytes()[:100] == content[:100]


def test_another_s_database(tmp_path: Path) -> None:
    """A database without a version that holds something is no outbox."""
    with closing(sqlite3.connect(tmp_path / FILENAME)) as database:
        database.execute("CREATE TABLE other (column)")
    with pytest.raises(Damaged, match="is no outbox"):
        Outbox(tmp_path / FILENAME)


def test_one_whose_making_was_cut_short(tmp_path: Path) -> None:
    """An empty file, as a full disk leaves it, holds nothing: it counts as none, and is made."""
    (tmp_path / FILENAME).touch()
    with pytest.raises(FileNotFoundError):
        Outbox(tmp_path / FILENAME)
    with Outbox(tmp_path / FILENAME, create=True) as outbox:
        assert outbox.counts() == {}


def test_damaged_later(box: Box) -> None:
    """Damage that shows only when a page is read is told then."""
    box(Outbox.accept, answer("x" * 10_000))
    box.outbox.close()
    content = box.path.read_bytes()
    box.path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(Damaged, match="SQLITE_CORRUPT"), Outbox(box.path) as outbox:
        outbox.transaction([outbox.counts])


def test_truncated(box: Box) -> None:
    """A database that lost its end is damaged."""
    box(Outbox.accept, answer("x" * 10_000))
    box.outbox.close()
    with box.path.open("r+b") as file:
        file.truncate(8192)
    with pytest.raises(Damaged), Outbox(box.path) as outbox:
        outbox.transaction([outbox.counts])


def test_a_failed_opening_leaves_nothing_open(tmp_path: Path) -> None:
    """Whoever cannot open a database does not keep its file open either."""
    for content, error in ((b"", FileNotFoundError), (b"this is no database" * 100, Damaged)):
        (tmp_path / FILENAME).write_bytes(content)
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(error):
            Outbox(tmp_path / FILENAME)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def theirs() -> Iterator[Path]:
    """An outbox in a directory that an ordinary user may only look at."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / FILENAME
        Outbox(path, create=True).close()
        path.chmod(0o444)
        path.parent.chmod(0o555)
        yield path
        path.parent.chmod(0o755)


def test_unwritable(theirs: Path) -> None:
    """Without the right to write, the error names the user who lacks it."""
    with without_privilege():
        for path, create in ((theirs, False), (theirs.with_name("other.db"), True)):
            with pytest.raises(Unwritable) as caught:
                Outbox(path, create=create)
            assert str(caught.value).startswith(
                f"{path}: cannot be written by user {user_name(ORDINARY)} ("
            )


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    """A directory where the database should be is an error of the outbox, like any other."""
    with pytest.raises(Unwritable):
        Outbox(tmp_path, create=True)


def holder(path: Path) -> sqlite3.Connection:
    """Another one who writes, until it is closed."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a lock."""
    monkeypatch.setattr(paliadin_sidecar.outbox.database, "_BUSY_TIMEOUT_S", 0.0)


@pytest.mark.usefixtures("impatient")
def test_busy_database(tmp_path: Path) -> None:
    """A lock that another process holds is no damage: it can be tried again."""
    box = Box(tmp_path / FILENAME, create=True)
    with closing(holder(box.path)):
        with pytest.raises(Busy) as caught:
            box(Outbox.record_service_event, "service.started", {})
        assert str(caught.value) == f"{box.path}: another process holds its lock (SQLITE_BUSY)"
    box(Outbox.record_service_event, "service.started", {})
    assert len(box.events()) == 1
    box.outbox.close()


def test_other_errors(box: Box) -> None:
    """An error without a name of its own is one of the outbox all the same."""
    with pytest.raises(OutboxError) as caught:
        box(lambda outbox: outbox.connection.execute("SELECT no_such_column"))
    assert type(caught.value) is OutboxError
    assert str(caught.value) == f"{box.path}: cannot be used (SQLITE_ERROR)"


# --- the file under it ----------------------------------------------------------------------


def unlink(path: Path) -> None:
    path.unlink()


def replace_with_another(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(0)


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("harm", [unlink, replace_with_another, truncate])
def test_identity(box: Box, harm: Callable[[Path], None], suffix: str) -> None:
    """A file that was taken away under us is noticed: nobody would find what we commit."""
    box.outbox.check_identity()
    harm(box.path.with_name(f"{FILENAME}{suffix}"))
    for act in (box.outbox.check_identity, lambda: box(Outbox.counts)):
        with pytest.raises(Damaged) as caught:
            act()
        assert str(caught.value) == (
            f"{box.path}: was removed, replaced or truncated while it was in use"
        )


def test_a_log_that_is_not_there_yet(box: Box) -> None:
    """A database that was closed well has no log until the first commit: that is no harm."""
    box.outbox.close()
    with Outbox(box.path) as outbox:
        outbox.check_identity()
        outbox.transaction([outbox.counts])
        outbox.transaction([partial(outbox.record_service_event, "service.started", {})])
        outbox.check_identity()
        unlink(box.path.with_name(f"{FILENAME}-wal"))
        with pytest.raises(Damaged):
            outbox.check_identity()


def emptied(path: Path) -> int:
    """`PRAGMA wal_checkpoint(TRUNCATE)`, as typed in a shell; the log's size after it."""
    with closing(sqlite3.connect(path)) as shell:
        assert shell.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    return path.with_name(f"{FILENAME}-wal").stat().st_size


def test_a_log_that_a_checkpoint_emptied(box: Box) -> None:
    """All of it is in the database then, and the outbox goes on, also where it is idle."""
    box(Outbox.accept, answer())
    for _ in range(2):
        assert emptied(box.path) == 0
        box.outbox.check_identity()
        log = box.path.with_name(f"{FILENAME}-wal")
        before = log.stat().st_mtime_ns
        assert box(Outbox.counts) == {"pending": 1}
        assert log.stat().st_mtime_ns == before  # an idle host's disk may sleep
        box(Outbox.record_service_event, "service.started", {})
    truncate(log)
    with pytest.raises(Damaged):
        box(Outbox.accept, answer(key=key("other")))


def test_changed_elsewhere(box: Box) -> None:
    """What another process writes shows in a number; what we write ourselves does not."""
    before = box(Outbox.changed_elsewhere)
    box(Outbox.accept, answer())
    box.deliver()
    assert box(Outbox.changed_elsewhere) == before
    with closing(Box(box.path).outbox) as command:
        command.transaction([command.replay])
    assert box(Outbox.changed_elsewhere) != before
    assert len(box.due()) == 1


# --- transactions ---------------------------------------------------------------------------


class Oops(Exception):
    pass


def fail() -> None:
    raise Oops


@pytest.mark.parametrize("error", [Oops, KeyboardInterrupt])
def test_all_or_nothing(box: Box, error: type[BaseException]) -> None:
    """If one step fails none took effect, and the outbox goes on."""

    def fail() -> None:
        raise error

    step = partial(box.outbox.record_service_event, "service.started", {})
    steps: list[Callable[[], None]] = [step, fail]
    with pytest.raises(error):
        box.outbox.transaction(steps)
    assert box.events() == []
    assert box.outbox.last_event == 0
    box.outbox.transaction([step])
    assert box.events() == [("service.started", {})]


def test_a_disk_that_is_full(box: Box) -> None:
    """Without room nothing is half done; once there is room, it goes on."""
    box(Outbox.accept, answer())
    pages = box.outbox.pragma("page_count")
    box.outbox.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Full) as caught:
        box(Outbox.accept, answer(noise(100_000), key("other")))
    assert str(caught.value) == f"{box.path}: there is no room on its disk"
    assert box(Outbox.timelines, "other") == []
    assert len(box.due()) == 1
    box.outbox.connection.execute("PRAGMA max_page_count = 1000000")
    assert box(Outbox.accept, answer(noise(100_000), key("other")))


@contextmanager
def mounted(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path],
        check=True,
        capture_output=True,
    )
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@root_only
def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    """On a file system without room for it an answer is not taken; what is there can be sent."""
    try:
        with mounted(tmp_path / "disk", "400k"):
            path = tmp_path / "disk" / FILENAME
            with closing(Outbox(path, create=True)) as outbox:
                small, large = answer(), answer(noise(1_000_000), key("large"))
                assert outbox.transaction([partial(outbox.accept, small)])[0] is not None
                for _ in range(2):
                    with pytest.raises(Full):
                        outbox.transaction([partial(outbox.accept, large)])
                ((found, _),) = outbox.transaction(
                    [partial(outbox.fetch_due, (), limit=9, max_retries=9)]
                )
                assert [due.webhook_id for due in found] == [webhook_id(1, sha256("Yes."))]
                sent = partial(outbox.record_delivered, found[0], Outcome(204))
                outbox.transaction([sent])
                assert outbox.counts() == {"delivered": 1}
                outbox.check_identity()
    except subprocess.CalledProcessError as exc:
        pytest.skip(f"this root may not mount: {exc.stderr}")


# --- what it may take -----------------------------------------------------------------------


def stored(box: Box) -> int:
    with closing(sqlite3.connect(box.path)) as database:
        found: int = database.execute(
            "SELECT coalesce(sum(length(bytes)), 0) FROM body"
        ).fetchone()[0]
        return found


def test_a_body_costs_about_what_its_file_costs(box: Box) -> None:
    """4 MiB of NUL are 24 MiB as JSON and next to nothing as a sparse file, and here."""
    for n in range(3):
        box(Outbox.accept, answer(bytes(4 * 1024 * 1024) + b"%d" % n, key(f"t{n}")))
    assert stored(box) < 3 * 4096
    (due,) = box.due(limit=1)
    assert due.body.count(rb"\u0000") == 4 * 1024 * 1024
    box(Outbox.accept, answer(noise(10_000), key("text")))
    assert stored(box) > 10_000


def test_the_same_bytes_at_every_attempt(box: Box) -> None:
    """However often it is unpacked, and over a restart."""
    box(Outbox.accept, answer("ä\0" * 50_000))
    (first,) = box.due()
    box.retry(first, 1.0)
    box.outbox.close()
    again = Box(box.path)
    again.now += 2
    assert [due.body for due in again.due()] == [first.body]
    again.outbox.close()


def test_a_body_that_is_damaged(box: Box) -> None:
    """It is never sent."""
    box(Outbox.accept, answer(noise(1000)))
    box(lambda outbox: outbox.connection.execute("UPDATE body SET bytes = substr(bytes, 2)"))
    with pytest.raises(Damaged, match="the body of delivery 1"):
        box.due()


def budget(box: Box, more: int) -> int:
    """So many bytes more than it takes now."""
    box.outbox.max_bytes = box(Outbox.used_bytes) + more
    return box.outbox.max_bytes


def test_beyond_its_budget_what_the_receiver_has_goes_first(box: Box) -> None:
    """The oldest of it, and only as much as is needed; what is undelivered stays whole."""
    box(Outbox.accept, answer(noise(50_000), key("superseded")))
    box(Outbox.accept, answer("new", key("superseded")))
    for n in range(3):
        box(Outbox.accept, answer(noise(50_000), key(f"d{n}")))
    for due in box.due():
        box.acknowledge(due)
    box(Outbox.accept, answer(noise(50_000), key("pending")))
    budget(box, -1)
    assert box(Outbox.accept, answer(noise(50_000), key("new")))
    assert {due.webhook_id.split("_")[2] for due in box.due()} == {"pending", "new"}
    assert box(Outbox.replay, turn_id="d0") == (0, 1)
    assert box(Outbox.used_bytes) <= budget(box, 0)


def test_beyond_its_budget_new_ones_wait_and_undelivered_ones_stay(box: Box) -> None:
    """Nothing is half done, and the first acknowledgement makes room."""
    for n in range(3):
        box(Outbox.accept, answer(noise(50_000), key(f"t{n}")))
    most = budget(box, -1)
    for _ in range(2):
        with pytest.raises(OverBudget, match=f"PALIADIN_MAX_OUTBOX={most}"):
            box(Outbox.accept, answer("one more", key("late")))
    assert box(Outbox.timelines, "late") == []
    assert len(box.due()) == 3
    box.acknowledge(box.due()[0])
    assert box(Outbox.accept, answer("one more", key("late")))
    assert len(box.due()) == 3


def test_what_is_known_costs_no_budget(box: Box) -> None:
    """Looking again at what is undelivered is no reason to wait."""
    box(Outbox.accept, answer())
    budget(box, -1)
    assert not box(Outbox.accept, answer(fingerprint="2:4:0"))
    assert not box(Outbox.accept, answer(b"\n", has_text=False))


def test_upkeep_keeps_to_the_budget(box: Box) -> None:
    """Also where nothing new comes."""
    box(Outbox.accept, answer(noise(50_000)))
    box.deliver()
    assert not box(Outbox.prune)
    budget(box, -1)
    assert box(Outbox.prune)
    assert stored(box) == 0


def test_what_is_in_memory_is_bounded_by_bytes(box: Box) -> None:
    """Large bodies go one after the other, and small ones behind them do not wait."""
    for n in range(3):
        box(Outbox.accept, answer(bytes(4 * 1024 * 1024) + b"%d" % n, key(f"large{n}")))
    for n in range(3):
        box(Outbox.accept, answer(f"{n}", key(f"small{n}")))
    found = box.due()
    large, *small = [due.webhook_id.split("_")[2] for due in found]
    assert (large, sorted(small)) == ("large0", ["small0", "small1", "small2"])
    busy = [due.turn for due in found]
    sizes = [len(due.body) for due in found]
    assert box(Outbox.fetch_due, busy, limit=9, max_retries=9, held=sizes)[0] == []
    (next_large,) = box(Outbox.fetch_due, busy, limit=1, max_retries=1, held=sizes[1:])[0]
    assert next_large.webhook_id.split("_")[2] == "large1"


@pytest.mark.parametrize("attempts", [0, 1])
def test_a_backlog_does_not_make_its_own_delivery_slow(box: Box, attempts: int) -> None:
    """What is due is found in the same number of the database's steps, however many wait."""

    def fail(fresh: Delivery) -> None:
        due = replace(fresh, attempts=attempts, first_attempt_at=box.now)
        box.outbox.record_retry(due, Outcome(503, None, ms=1.0), 0)

    def take(name: str, count: int) -> None:
        for n in range(count):
            box(Outbox.accept, answer(key=key(f"{name}{n}")))
        if attempts:
            fresh = [due for due in box.due(limit=2 * count) if due.attempts == 0]
            box.outbox.transaction([partial(fail, due) for due in fresh])

    def steps() -> int:
        taken = 0

        def step() -> None:
            nonlocal taken
            taken += 1

        box.outbox.connection.set_progress_handler(step, 10)
        assert len(box.due(limit=8, max_retries=8)) == 8
        box.outbox.connection.set_progress_handler(None, 0)
        return taken

    take("few", 20)
    few = steps()
    take("many", 500)
    assert steps() < 2 * few
