"""All that the audit knows, a page at a time: for who takes a year of it along.

Each page is a read transaction of its own and is bounded by ids, so that the daemon's log does not
grow and no commit of it waits, however much is kept. The order is that in which things happened,
which the clock does not decide: ids only grow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from paliadin_sidecar.outbox import event_rows, queries
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.records import ANY_TIME, Event

#: So many ids are read at a time.
_PAGE = 1000
#: What is known of a turn's delivery, in the order of an export's columns.
TURN_COLUMNS = (
    "turn_id", "submitted_turn_id", "backend", "persona", "user", "revision", "state", "reason",
    "bytes", "sha256", "webhook_id", "first_seen_at", "accepted_at", "first_attempt_at",
    "settled_at", "next_attempt_at", "body_purged_at", "gone_at", "attempts", "last_status",
    "last_error", "last_detail", "replays", "agent_ms", "settle_ms", "end_to_end_ms",
)  # fmt: skip


def event_pages(
    outbox: Outbox, *, after: int = 0, since: float = 0.0, until: float = math.inf
) -> Iterator[list[Event]]:
    """The events that there are now, in the order in which they were recorded.

    An event that is recorded later has a greater id, also where the clock was set back meanwhile,
    and no id is given twice: so whoever asks for those after the last one that they got misses none
    and gets none twice.

    Args:
        outbox: where they are.
        after: only those with greater ids.
        since: only what happened since then, in epoch seconds.
        until: and before then.
    """
    last = event_rows.newest_id(outbox)
    for first in range(after, last, _PAGE):
        up_to = min(first + _PAGE, last)
        yield event_rows.event_page(outbox, first, up_to, since, _bounded(until))


def turn_pages(
    outbox: Outbox, *, since: float = 0.0, until: float = math.inf
) -> Iterator[list[dict[str, Any]]]:
    """A row for each delivery of a turn, and one for a turn without any, by `TURN_COLUMNS`.

    In the order in which the turns were first met, and of each its revisions. Times are epoch
    seconds. `end_to_end_ms` is the time from the complete file to the acknowledgement; None where
    there was none, or one after a replay, which says when an operator came and not how fast we are.

    Args:
        outbox: where they are.
        since: accepted since then, in epoch seconds; a turn without a delivery counts by when it
            was first met.
        until: and before then.
    """
    last = queries.last_turn(outbox)
    for first in range(0, last, _PAGE):
        up_to = min(first + _PAGE, last)
        rows = queries.turn_page(outbox, first, up_to, since, _bounded(until))
        yield [row | {"end_to_end_ms": _end_to_end_ms(row)} for row in rows]


def _bounded(until: float) -> float:
    return min(until, ANY_TIME / 1000)


def _end_to_end_ms(row: dict[str, Any]) -> int | None:
    is_acknowledged = row["state"] in {"delivered", "failed"} and not row["replays"]
    if not is_acknowledged or row["settle_ms"] is None:
        return None
    return int(row["settle_ms"] + max(0, round((row["settled_at"] - row["accepted_at"]) * 1000)))
