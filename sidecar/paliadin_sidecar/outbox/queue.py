"""Which deliveries are due, in the order in which they go: no root takes from the others."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import msgspec

from paliadin_sidecar.errors import Damaged
from paliadin_sidecar.outbox.bodies import select_fitting, size_limit, unpack
from paliadin_sidecar.outbox.database import Outbox, sql
from paliadin_sidecar.outbox.event_rows import delivery_subject
from paliadin_sidecar.outbox.records import ANY_TIME, NOT_KNOWN, Delivery, to_ms, to_seconds

#: While a large body is in memory, smaller ones are searched for among so many of a root's oldest
#: and newest deliveries.
_LOOK_AHEAD = 100

T = TypeVar("T")


@dataclass
class FairShare:
    """Which root's turn it is to send.

    It is the root with the fewest attempts under way, and of those the one whose last start is the
    longest ago. So roots that always have something to send share the slots evenly, and one whose
    attempts take long keeps none of the others waiting. A root that has nothing to send leaves its
    share to the others, and does not save it up.

    Attributes:
        both_ends: take the oldest and the newest of a root's queue in turn. What comes after a
            flood then waits for an attempt or two, and an item with `n` older ones before it still
            goes after at most `2 * n` others of its root. Otherwise the oldest goes first.
        under_way: how many attempts of each root are under way.
        started_last: the number of each root's last start.
        newest_next: whether it is the turn of a root's newest item.
        starts: how many starts there were.
    """

    both_ends: bool = False
    under_way: dict[str, int] = field(default_factory=dict)
    started_last: dict[str, int] = field(default_factory=dict)
    newest_next: dict[str, bool] = field(default_factory=dict)
    starts: int = 0

    def copy(self) -> FairShare:
        """One that counts by itself from here on."""
        return replace(
            self,
            under_way=self.under_way.copy(),
            started_last=self.started_last.copy(),
            newest_next=self.newest_next.copy(),
        )

    def started(self, root: str) -> None:
        """Count an attempt of this root that starts."""
        self.starts += 1
        self.started_last[root] = self.starts
        self.under_way[root] = self.under_way.get(root, 0) + 1
        self.newest_next[root] = self.both_ends and not self.newest_next.get(root, False)

    def finished(self, root: str) -> None:
        """Count an attempt of this root that ended."""
        self.under_way[root] -= 1

    def order(self, queues: Mapping[str, Sequence[T]], limit: int) -> list[T]:
        """The next items of these queues, in the order in which they are sent.

        Args:
            queues: the items by root, the oldest first.
            limit: at most so many.
        """
        ahead, found = self.copy(), list[T]()
        left = {root: deque(queue) for root, queue in queues.items() if queue}
        while left and len(found) < limit:
            root = min(left, key=ahead.rank)
            queue = left[root]
            found.append(queue.pop() if ahead.newest_next.get(root) else queue.popleft())
            ahead.started(root)
            if not queue:
                del left[root]
        return found

    def rank(self, root: str) -> tuple[int, int]:
        """Roots are taken in ascending order of this."""
        return self.under_way.get(root, 0), self.started_last.get(root, 0)


@dataclass
class Shares:
    """The shares of the roots in each kind of attempt: neither kind takes from the other."""

    first_attempts: FairShare = field(default_factory=lambda: FairShare(both_ends=True))
    retries: FairShare = field(default_factory=FairShare)

    def copy(self) -> Shares:
        """Ones that count by themselves from here on."""
        return Shares(self.first_attempts.copy(), self.retries.copy())

    def of(self, attempts: int) -> FairShare:
        """The share that a delivery with so many attempts counts in."""
        return self.retries if attempts else self.first_attempts


def fetch_due(
    outbox: Outbox,
    busy: Iterable[int],
    *,
    limit: int,
    max_retries: int,
    held: Iterable[int] = (),
    shares: Shares | None = None,
) -> tuple[list[Delivery], float | None]:
    """Deliveries that are due, and the seconds until the next one is.

    Args:
        busy: turns that are under way, whose deliveries are left out.
        limit: at most so many.
        max_retries: at most so many of them that were tried before; they come first.
        held: sizes of the bodies that are in memory, in bytes; `bodies` says how many more may be.
        shares: which root's turn it is, for both kinds of attempts.
    """
    now = outbox.now()
    # The same reading of the clock decides what is due and what is waited for.
    next_at = _next_retry_at(outbox, now)
    busy, held = list(busy), list(held)
    shares = Shares() if shares is None else shares.copy()
    rows: list[sqlite3.Row] = []
    if outbox.retries_from <= now:
        rows = _fitting(
            outbox, sql.retries, shares.retries, busy=busy, held=held, limit=max_retries
        )
    rest = limit - len(rows)
    rows += _fitting(
        outbox, sql.first_attempts, shares.first_attempts, busy=busy, held=held, limit=rest
    )
    found = [_delivery(outbox, row["id"]) for row in rows]
    return found, None if next_at is None else (next_at - now) / 1000


def retry_after_s(outbox: Outbox, ours_s: float) -> float:
    """For how many seconds the receiver still wants nothing.

    Args:
        ours_s: the longest pause between two attempts that it did not ask for.
    """
    until = outbox.value(sql.retry_after, {"ours": to_ms(ours_s)})
    return 0.0 if until is None else max(0.0, (until - outbox.now()) / 1000)


def newest_delivery(outbox: Outbox) -> int:
    """The id of the newest delivery, 0 where there is none."""
    return cast("int", outbox.value(sql.newest_delivery) or 0)


def _next_retry_at(outbox: Outbox, now: int) -> int | None:
    # When the next retry becomes due. The database is asked only once one may be due.
    if outbox.retries_from > now:
        return outbox.retries_from if outbox.retries_from < ANY_TIME else None
    if outbox.retries_from == NOT_KNOWN:
        outbox.execute(sql.clamp_next_attempts, {"now": now})
    first_at, next_at = outbox.execute(sql.next_attempts, {"now": now}).fetchone()
    outbox.retries_from = ANY_TIME if first_at is None else first_at
    return cast("int | None", next_at)


def _fitting(
    outbox: Outbox,
    statement: str,
    share: FairShare,
    *,
    busy: list[int],
    held: list[int],
    limit: int,
) -> list[sqlite3.Row]:
    # Counts what it finds in `share`, `busy` and `held`.
    found: list[sqlite3.Row] = []
    while (room := limit - len(found)) > 0:
        max_size = size_limit(held)
        queues: dict[str, list[sqlite3.Row]] = {}
        wanted = {
            "now": outbox.now(),
            "busy": msgspec.json.encode(busy).decode(),
            "max_size": max_size,
            "limit": room if max_size is None else max(room, _LOOK_AHEAD),
        }
        for row in outbox.execute(statement, wanted):
            queues.setdefault(row["root"], []).append(row)
        rows = share.order(queues, room)
        fit = [rows[index] for index in select_fitting([row["size"] for row in rows], held)]
        for row in fit:
            share.started(row["root"])
            busy.append(row["turn"])
            held.append(row["size"])
        found += fit
        if len(fit) == len(rows):
            break
    return found


def _delivery(outbox: Outbox, delivery: int) -> Delivery:
    row = outbox.execute(sql.delivery, {"delivery": delivery}).fetchone()
    body = unpack(row["kept"], row["deflated"], row["size"])
    if body is None:
        raise Damaged(outbox.path, f"is damaged (the body of delivery {delivery})")
    return Delivery(
        id=delivery,
        turn=row["turn"],
        webhook_id=row["webhook_id"],
        body=body,
        accepted_at=row["accepted_at"] / 1000,
        attempts=row["attempts"],
        first_attempt_at=to_seconds(row["first_attempt_at"]),
        refusals=row["refusals"],
        refused_at=to_seconds(row["refused_at"]),
        evidence=row["evidence"],
        reported_at=to_seconds(row["reported_at"]),
        reported_attempt=row["reported_attempt"],
        root=row["root"],
        subject=delivery_subject(row),
    )
