"""An outbox on the disk, whose clock is the test's."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from paliadin_sidecar.outbox import event_rows, queries, queue, transitions
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.records import Arrival, Delivery, Outcome, TurnKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from paliadin_contract.callback import Reason

P = ParamSpec("P")
T = TypeVar("T")
#: 2026-11-22, 08:00 UTC.
NOW = 1_795_334_400.0
#: As it is promised, not as it is written in the code.
LATE_S = 600.0
KEY = TurnKey("aichat", "paliadin", "t")
ABOUT_KEY = {"turn_id": "t", "backend": "aichat", "persona": "paliadin"}
USER = "5f3c0000-aaaa-bbbb-cccc-000000000000"
ROOT = {"backend": "aichat", "persona": "paliadin", "path": "/tmp/aichat/paliadin"}


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
        found = self(event_rows.events, self._seen)
        self._seen = found[-1].id if found else self._seen
        return [(event.name, event.fields) for event in found]

    def due(self, *busy: int, limit: int = 9, max_retries: int = 9) -> list[Delivery]:
        return self(queue.fetch_due, busy, limit=limit, max_retries=max_retries)[0]

    def due_in(self) -> float | None:
        return self(queue.fetch_due, (), limit=9, max_retries=9)[1]

    def states(self, turn_id: str = "t") -> list[tuple[int, str]]:
        (timeline,) = self(queries.timelines, turn_id)
        return [(one["revision"], one["state"]) for one in timeline["deliveries"]]

    def retry(
        self,
        due: Delivery,
        delay_s: float = 0.0,
        *,
        status: int | None = 503,
        error: str | None = None,
        detail: str | None = None,
        **kwargs: Any,  # noqa: ANN401 - handed on
    ) -> None:
        """Record one more attempt, after which it is tried again."""
        outcome = Outcome(status=status, error=error, detail=detail, ms=12.34)
        self(transitions.record_retry, counted(due, self.now), outcome, delay_s, **kwargs)

    def acknowledge(self, due: Delivery, status: int = 204) -> None:
        """Record one more attempt, after which the receiver has it."""
        self(transitions.record_delivered, counted(due, self.now), Outcome(status=status, ms=12.34))

    def give_up(self, due: Delivery, cause: str) -> None:
        """Record one more attempt, after which it is given up."""
        self(transitions.record_dead, counted(due, self.now), Outcome(status=400, ms=12.34), cause)

    def deliver(self) -> None:
        """The one that is due is acknowledged."""
        (due,) = self.due()
        self.acknowledge(due)


def counted(due: Delivery, now: float = NOW) -> Delivery:
    """The delivery with one more attempt."""
    return replace(due, attempts=due.attempts + 1, first_attempt_at=due.first_attempt_at or now)


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


def failure(reason: Reason, key: TurnKey = KEY, *, at: float = NOW - 1, why: str = "") -> Arrival:
    return Arrival(key, "1:0:0", datetime.fromtimestamp(at, UTC), 7, reason=reason, why=why)


def webhook_id(revision: int, mark: str, turn_id: str = "t") -> str:
    return f"aichat_paliadin_{turn_id}_{revision}_{mark[:16]}"


def key(turn_id: str) -> TurnKey:
    return replace(KEY, turn_id=turn_id)
