"""What happened to the turns of a period, put together from the events.

Events are read in pages, each with a transaction of its own: a reader that held one for long would
keep the daemon's log from being cut back. Times are epoch milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from sys import intern

from msgspec import Struct
from msgspec.json import Decoder

from paliadin_sidecar.outbox import event_rows, queries
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.event_rows import EventRow
from paliadin_sidecar.outbox.records import to_ms, to_ms_or_none

#: So many events are read at a time.
_PAGE = 2000
#: Errors of an attempt before which nothing of it was sent.
_NOT_SENT = frozenset({"connect", "dns", "tls"})


class Outcome(StrEnum):
    """What became of a turn, by the newest of its revisions."""

    DELIVERED = "delivered"  #: the receiver acknowledged an answer
    PENDING = "pending"  #: neither acknowledged nor given up yet
    DEAD = "dead"  #: given up
    FAILED = "failed"  #: no answer came, and the receiver acknowledged that
    VANISHED = "vanished"  #: its file was taken away before it was read


@dataclass(slots=True)
class Turn:
    """A turn, by its file."""

    turn_id: str
    root: str  #: backend and persona
    at: int  #: when its first event was written
    counted: bool  #: whether that was the turn's first, and in the period
    user: str | None = None
    outcome: Outcome = Outcome.VANISHED
    revision: int = 0  #: the newest one
    answered: bool = False  #: whether one of its revisions is an answer
    took_ms: int | None = None  #: from the token to the first complete answer, where it is known


@dataclass(slots=True)
class Delivery:
    """One revision of a turn, on its way to the receiver."""

    turn: Turn
    revision: int
    accepted_at: int
    settle_ms: int  #: from the file's completion to its acceptance
    counted: bool  #: whether it was accepted in the period
    is_answer: bool
    reason: str | None = None  #: why it is no answer, or why it was given up
    why: str | None = None  #: what there is to say beyond that
    attempts: int = 0  #: since it was last replayed
    earlier_attempts: int = 0
    #: Of those that were sent, how many got no answer, as far as it was recorded.
    unanswered: int = 0
    replays: int = 0
    acknowledgements: int = 0
    delivered_ms: int | None = None  #: from completion to acknowledgement; None after a replay
    status: int | None = None  #: of the last attempt, as are the next two
    error: str | None = None
    detail: str | None = None
    said: str | None = None  #: by the receiver, when it refused what was given up

    @property
    def requests(self) -> int:
        """How often it was sent, or tried to."""
        return self.earlier_attempts + self.attempts


@dataclass(frozen=True, slots=True)
class Pause:
    """A time in which the receiver was not well, and turns waited."""

    start: int
    end: int | None  #: None where it lasts
    why: str


class _Fields(Struct):
    # Of an event's fields, those that are counted.
    turn_id: str = ""
    backend: str = ""
    persona: str = ""
    user: str | None = None
    revision: int = 0
    webhook_id: str = ""
    sha256: str | None = None
    reason: str | None = None
    why: str | None = None
    superseded: tuple[str, ...] = ()
    agent_ms: int | None = None
    settle_ms: int = 0
    attempt: int = 0
    attempts: int = 0
    status: int | None = None
    error: str | None = None
    detail: str | None = None
    since_accepted_ms: int = 0
    cause: str | None = None
    paused_ms: float = 0.0


_decode = Decoder(_Fields).decode


@dataclass
class TurnHistory:
    """The turns of a period, what became of them until now, and how the receiver was.

    Args:
        since: the period's first moment.
        until: the first moment after it.
    """

    since: int
    until: int
    turns: dict[int, Turn] = field(default_factory=dict)
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    pauses: list[Pause] = field(default_factory=list)
    #: How many deliveries came to wait at a time, or stopped to.
    changes: list[tuple[int, int]] = field(default_factory=list)
    backlog_before: int = 0  #: how many waited when the period began
    old_files: int = 0  #: files that lay in a root before it was first watched
    unsent_changes: int = 0  #: changes of an answer that were recorded and not sent
    _waiting: set[str] = field(default_factory=set)
    _known: set[str] = field(default_factory=set)
    _paused: tuple[int, str] | None = None

    def add(self, event: EventRow) -> None:
        """Take the next event, in the order in which they were written."""
        _, at, name, turn, raw = event
        match name:
            case "turn.accepted" | "turn.revised" | "turn.failed":
                fields = _decode(raw)
                if fields.webhook_id:
                    self._accepted(at, turn, fields)
                elif self._is_in_period(at):
                    self.unsent_changes += 1
            case "delivery.attempted":
                self._attempted(_decode(raw))
            case "delivery.delivered" | "delivery.dead":
                self._ended(at, _decode(raw))
            case "turn.vanished" | "turn.stalled":
                self._turn(at, turn, _decode(raw), first=name == "turn.vanished")
            case "turn.history":
                self.old_files += self._is_in_period(at)
            case "delivery.replayed":
                self._replayed(at, _decode(raw))
            case "receiver.paused" | "receiver.resumed":
                self._receiver(at, _decode(raw), is_well=name == "receiver.resumed")

    def finish(self, pending: int, paused_at: int | None, paused_for: str | None) -> None:
        """All events were taken.

        Args:
            pending: how many deliveries are undelivered now.
            paused_at: since when the receiver is not well; None where it is.
            paused_for: why.
        """
        self.backlog_before = pending - sum(step for _, step in self.changes)
        if paused_at is not None:
            self.pauses.append(Pause(paused_at, None, paused_for or ""))

    def _is_in_period(self, at: int) -> bool:
        return self.since <= at < self.until

    def _turn(self, at: int, row: int | None, fields: _Fields, *, first: bool) -> Turn:
        assert row is not None
        turn = self.turns.get(row)
        if turn is None:
            root = intern(f"{fields.backend}/{fields.persona}")
            turn = self.turns[row] = Turn(fields.turn_id, root, at, counted=False)
        if first and self._is_in_period(at):
            turn.counted = True
        turn.user = turn.user or fields.user
        return turn

    def _accepted(self, at: int, row: int | None, fields: _Fields) -> None:
        turn = self._turn(at, row, fields, first=fields.revision == 1)
        is_answer = fields.sha256 is not None
        if is_answer and not turn.answered:
            turn.answered, turn.took_ms = True, fields.agent_ms
        turn.revision, turn.outcome = fields.revision, Outcome.PENDING
        self.deliveries[fields.webhook_id] = Delivery(
            turn,
            fields.revision,
            at,
            fields.settle_ms,
            counted=self._is_in_period(at),
            is_answer=is_answer,
            reason=fields.reason,
            why=fields.why,
        )
        for superseded in fields.superseded:
            self._left(at, superseded)
        self._came(at, fields.webhook_id)

    def _attempted(self, fields: _Fields) -> None:
        delivery = self.deliveries.get(fields.webhook_id)
        if delivery is None:
            return  # it was accepted before the first event that is read
        delivery.attempts = fields.attempt
        if fields.status is None and fields.error not in _NOT_SENT:
            delivery.unanswered += 1
        delivery.status, delivery.error = fields.status, fields.error
        delivery.detail = fields.detail

    def _ended(self, at: int, fields: _Fields) -> None:
        self._left(at, fields.webhook_id)
        delivery = self.deliveries.get(fields.webhook_id)
        if delivery is None:
            return
        delivery.attempts = fields.attempts
        if fields.cause is not None:
            outcome, delivery.reason = Outcome.DEAD, fields.cause
        else:
            outcome = Outcome.DELIVERED if delivery.is_answer else Outcome.FAILED
            delivery.acknowledgements += 1
            if delivery.acknowledgements == 1 and not delivery.replays:
                delivery.delivered_ms = fields.since_accepted_ms + delivery.settle_ms
        if delivery.revision == delivery.turn.revision:
            delivery.turn.outcome = outcome

    def _replayed(self, at: int, fields: _Fields) -> None:
        self._came(at, fields.webhook_id)
        delivery = self.deliveries.get(fields.webhook_id)
        if delivery is None:
            return
        delivery.replays += 1
        delivery.earlier_attempts += delivery.attempts
        delivery.attempts = 0
        if delivery.revision == delivery.turn.revision:
            delivery.turn.outcome = Outcome.PENDING

    def _receiver(self, at: int, fields: _Fields, *, is_well: bool) -> None:
        if not is_well:
            self._paused = self._paused or (at, fields.why or "")
            return
        start, why = self._paused or (at - round(fields.paused_ms), "")
        self.pauses.append(Pause(start, at, why))
        self._paused = None

    def _came(self, at: int, webhook_id: str) -> None:
        if webhook_id not in self.deliveries:
            self._known.add(webhook_id)
        if webhook_id not in self._waiting:
            self._waiting.add(webhook_id)
            self._change(at, 1)

    def _left(self, at: int, webhook_id: str) -> None:
        if webhook_id in self._waiting:
            self._waiting.remove(webhook_id)
            self._change(at, -1)
        elif webhook_id not in self.deliveries and webhook_id not in self._known:
            # It has waited since before the first event that is read.
            self._known.add(webhook_id)
            self._change(at, -1)

    def _change(self, at: int, step: int) -> None:
        if self.changes and at < self.changes[-1][0]:
            at = self.changes[-1][0]  # a clock that was set back changes no order
        self.changes.append((at, step))


def read_history(outbox: Outbox, *, since: float, until: float) -> TurnHistory:
    """What happened to the turns of a period, and became of them until now.

    Args:
        outbox: what is read.
        since: the period's first moment, in epoch seconds.
        until: the first moment after it, in epoch seconds.
    """
    history = TurnHistory(to_ms(since), to_ms(until))
    last = event_rows.last_event_before(outbox, since)
    while True:
        while rows := event_rows.event_rows(outbox, last, _PAGE):
            for row in rows:
                history.add(row)
            last = rows[-1][0]
        pending, newest = queries.pending_as_of(outbox)
        if newest <= last:
            break
    for webhook_id, said in queries.said_of_dead(outbox).items():
        if webhook_id in history.deliveries:
            history.deliveries[webhook_id].said = said
    service = queries.service(outbox)
    history.finish(pending, to_ms_or_none(service["paused_at"]), service["paused_for"])
    return history
