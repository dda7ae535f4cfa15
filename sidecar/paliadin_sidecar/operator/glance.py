"""How the daemon and its turns are at one moment, as `top` shows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paliadin_sidecar.host import report as reports
from paliadin_sidecar.host import state_directory
from paliadin_sidecar.outbox import queries
from paliadin_sidecar.outbox.database import Outbox

#: A question without an answer is under way for so long. Nobody waits for an older one.
_ASKED_S = 3600.0
#: More than a screen has lines for.
_MAX_ROWS = 200


@dataclass(frozen=True)
class Glance:
    """How it is at one moment. Times are epoch seconds.

    Attributes:
        at: the moment.
        alive: whether a daemon runs.
        problems: what it says of itself that keeps it from its work.
        pending: how many deliveries are undelivered.
        oldest_at: when the oldest of them was accepted.
        paused_at: since when the receiver is not well.
        paused_for: why.
        roots: the directories, see `outbox.queries.service`.
        asked: see `outbox.queries.asked`, as are the next two there.
    """

    at: float
    alive: bool
    problems: tuple[str, ...] = ()
    pending: int = 0
    oldest_at: float | None = None
    paused_at: float | None = None
    paused_for: str | None = None
    roots: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    undelivered: list[dict[str, Any]] = field(default_factory=list)
    settled: list[dict[str, Any]] = field(default_factory=list)

    @property
    def under_way(self) -> int:
        """How many turns are; all that is undelivered counts, and not only what is listed."""
        return len(self.asked) + self.pending

    @property
    def has_ages(self) -> bool:
        """Whether what is shown gets older by itself."""
        return bool(self.asked or self.undelivered or self.paused_at is not None)


class Watched:
    """A daemon and its outbox, looked at again and again; nothing is written.

    Args:
        state_dir: the daemon's.
        outbox: open there.
    """

    def __init__(self, state_dir: Path, outbox: Outbox) -> None:
        self._state_dir = state_dir
        self._outbox = outbox

    def version(self) -> tuple[object, ...]:
        """What is another value once something happened. It may be asked each second.

        Raises:
            Replaced: the outbox was moved aside.
        """
        self._outbox.files.expect_in_place()
        return (self._outbox.changed_elsewhere(), *self._daemon())

    def look(self) -> Glance:
        """How it is now."""
        now = time.time()
        service = queries.service(self._outbox)
        pending, oldest_at = queries.backlog(self._outbox)
        alive, problems = self._daemon()
        return Glance(
            at=now,
            alive=alive,
            problems=problems,
            pending=pending,
            oldest_at=oldest_at,
            paused_at=service["paused_at"],
            paused_for=service["paused_for"],
            roots=service["roots"],
            asked=queries.asked(self._outbox, now - _ASKED_S, _MAX_ROWS),
            undelivered=queries.undelivered(self._outbox, _MAX_ROWS),
            settled=queries.settled(self._outbox, _MAX_ROWS),
        )

    def _daemon(self) -> tuple[bool, tuple[str, ...]]:
        if not state_directory.is_alive(self._state_dir):
            return False, ()
        report = reports.read(self._state_dir)
        return True, tuple(f"{one.what}: {one.why}" for one in report.problems) if report else ()
