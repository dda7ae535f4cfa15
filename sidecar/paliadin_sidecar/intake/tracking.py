"""What is known of a root's files: those under observation, and what was accepted before.

It is synchronous and not safe for threads: its users make one call after the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from paliadin_contract.ids import turn_id_of
from paliadin_sidecar.errors import Unreadable
from paliadin_sidecar.intake.completion import IntakeRules, Progress
from paliadin_sidecar.intake.events import Flooded, IntakeEvent, Stalled
from paliadin_sidecar.intake.fingerprint import Fingerprint
from paliadin_sidecar.intake.queues import InspectionQueue
from paliadin_sidecar.intake.roots import MAX_NAMES, Root
from paliadin_sidecar.intake.tokens import Tokens
from paliadin_sidecar.intake.turnfile import TurnFile, fingerprint_at
from paliadin_sidecar.outbox.records import TurnKey
from paliadin_sidecar.settings import RootSpec

#: Files that are inspected again and again, since no event comes for what is awaited, are inspected
#: no more often than once in this time, all of a root together.
_POLL_APART_S = 0.001
#: So many of the files that wait for long are named in the status.
_MAX_WAITING_NAMED = 10
#: A change by mmap, by another name of the file or from another machine may raise no event. So
#: many files, those that were accepted last, are compared in every scan, for as long as a revision
#: of them is sent; of the others each scan compares some, so that each has its turn once a minute.
_RECENT_FILES, _RECENT_S, _ROUND_S = 1000, 600.0, 60.0
#: A flood of files that are no answers, or of names, is reported by its number, at most this often.
_FLOOD_EVERY_S = 60.0
#: So many files that are no answer as they are, or not yet, are remembered for a root; more are
#: found by later scans, when these are done.
_MAX_DEFECTIVE = 10_000
#: So many files are under observation in a root, also of those that may be answers.
_MAX_TRACKED = 50_000
#: So many files with a second name are compared whenever names move; more, once a minute.
_MAX_LINKED = 256


def is_ours(name: str) -> bool:
    """Whether this is the name of a turn file or a token, and not of a writer's draft."""
    return turn_id_of(name) is not None or turn_id_of(name, ".jwt") is not None


@dataclass(eq=False)
class TrackedFile:
    """A file that is under observation under this name.

    Attributes:
        name: in the root.
        first_seen_at: in epoch seconds.
        seen: what the name was when it was last inspected.
        defect: what is wrong with it as it is; empty where it may be an answer.
        file: what is open under the name.
        progress: what is remembered of that.
        previous: what the name was before it was given to another file: if that one turns out to
            be a bare trailer, this is the answer.
        previous_progress: what is remembered of that.
        stalled: it was reported that it waits for long.
        retry_s: the last rest after an inspection that came to nothing.
        noticed: a notification named it, and not just a scan.
    """

    name: str
    first_seen_at: float
    seen: Fingerprint | None = None
    defect: str = ""
    file: TurnFile | None = None
    progress: Progress | None = None
    previous: TurnFile | None = None
    previous_progress: Progress | None = None
    stalled: bool = False
    retry_s: float = 0.0
    noticed: bool = False

    def close(self) -> None:
        """Let go of what is open."""
        if self.file is not None:
            self.file.close()
            self.file = None
        self.close_previous()

    def close_previous(self) -> None:
        """Let go of what the name was before."""
        if self.previous is not None:
            self.previous.close()
            self.previous = None


class WatchedRoot:
    """One root, and every file in it that has not settled.

    Args:
        spec: the root as it is configured.
        root: its directory.
        rules: what its files must be like.

    Attributes:
        tokens: those beside the answers.
        accepted: by name: the fingerprint of a file that was accepted, with the reason where it
            is no answer; "" where its times are too young to be reliable.
        recently_accepted: what was accepted last: when, and as what. It is compared in every scan.
        multiply_linked: files that failed for a second name: its removal moves no time but theirs.
        tracked: what is under observation, by name.
        queue: when each of these is inspected.
        scans: how often it was scanned.
        only_scanned: files that settled before any notification named them.
        names: how many names the last listing found; `turn_files` and `foreign_files` of them.
        steps: how far its inspections got: whoever waits for one sees that it moves.
    """

    def __init__(self, spec: RootSpec, root: Root, rules: IntakeRules) -> None:
        self.spec = spec
        self.root = root
        self.rules = rules
        self.tokens = Tokens(root, rules)
        self.accepted: dict[str, str] = {}
        self.recently_accepted: dict[str, tuple[float, Fingerprint]] = {}
        self.multiply_linked: set[str] = set()
        self.tracked: dict[str, TrackedFile] = {}
        self.queue: InspectionQueue[TrackedFile] = InspectionQueue()
        self.scans = self.only_scanned = self.steps = 0
        self.names = self.turn_files = self.foreign_files = 0
        self._round: Iterator[str] = iter(())
        self._in_round_at = rules.monotonic()
        self._waiting: dict[str, dict[str, object]] = {}
        self._unreported = 0
        self._flood_reported_at: float | None = None

    def key(self, name: str) -> TurnKey:
        """The turn of a turn file."""
        return TurnKey(self.spec.backend, self.spec.persona, turn_id_of(name) or name)

    def remember(self, present_files: dict[str, str]) -> None:
        """Take over what the outbox knows of this root: fingerprints by turn id."""
        self.accepted = {f"{turn_id}.txt": found for turn_id, found in present_files.items()}

    # --- notifications and scans ------------------------------------------------------------

    def notice(self, names: Iterable[str]) -> Iterator[IntakeEvent]:
        """Take up what notifications named. Yields what tokens among them say."""
        for name in names:
            self.steps += 1
            yield from self.observe(name)
            if name in self.tracked:
                self.tracked[name].noticed = True

    def observe(self, name: str) -> Iterator[IntakeEvent]:
        """Observe this name from now on, if it is a turn file's; read it, if it is a token's."""
        if turn_id_of(name) is not None:
            self.track(name)
        elif (turn_id := turn_id_of(name, ".jwt")) is not None:
            hint = self.tokens.read(TurnKey(self.spec.backend, self.spec.persona, turn_id))
            if hint is not None:
                yield hint

    def track(self, name: str) -> None:
        """Inspect this turn's file as soon as possible, and for as long as it has not settled."""
        seen = self.fingerprint_of(name)
        defect = self.rules.defect_of(seen)
        tracked = self.tracked.get(name)
        if tracked is None:
            full = defect and self.has_too_many_defective
            if full or len(self.tracked) >= _MAX_TRACKED:
                return  # a later scan finds it
            tracked = self.tracked[name] = TrackedFile(name, self.rules.wall())
        tracked.seen, tracked.defect = seen, defect
        self.schedule(tracked, 0.0)

    @property
    def has_too_many_defective(self) -> bool:
        """Whether no further file that is no answer as it is can be under observation."""
        return len(self.queue.defective) >= _MAX_DEFECTIVE

    def fingerprint_of(self, name: str) -> Fingerprint | None:
        """What is under this name; None where that cannot be said."""
        try:
            return None if self.root.fd is None else fingerprint_at(self.root.fd, name)
        except Unreadable:
            return None

    def has_moved(self, name: str) -> bool:
        """Whether a file that was accepted is another one now, went, or cannot be seen."""
        found = self.fingerprint_of(name)
        return self.root.fd is not None and (found is None or not self.is_accepted(name, found))

    def open(self, directory: int, name: str) -> TurnFile:
        """Open a turn's file in the root's directory; it raises as `TurnFile` does."""
        return TurnFile(directory, name, self.rules.owner, leases_on=self.root.leases_on)

    # --- what was accepted ------------------------------------------------------------------

    def is_accepted(self, name: str, found: Fingerprint) -> bool:
        """Whether this was accepted under this name, and would be judged the same again."""
        accepted = self.accepted.get(name)
        return accepted is not None and self.rules.is_same(accepted, found)

    def accept(self, name: str, fingerprint: str, found: Fingerprint, *, linked: bool) -> None:
        """Remember that this was accepted.

        Args:
            name: its name.
            fingerprint: what the outbox keeps of it.
            found: what it was.
            linked: it is no answer, for its second name.
        """
        self.accepted[name] = fingerprint
        self.remember_recent(name, found)
        if linked and len(self.multiply_linked) < _MAX_LINKED:
            self.multiply_linked.add(name)
        else:
            self.multiply_linked.discard(name)

    def remember_recent(self, name: str, found: Fingerprint) -> None:
        """Compare this file in the next scans with what it was."""
        self.recently_accepted.pop(name, None)
        self.recently_accepted[name] = self.rules.monotonic(), found
        if len(self.recently_accepted) > _RECENT_FILES:
            del self.recently_accepted[next(iter(self.recently_accepted))]

    def expire_recent(self) -> None:
        """Forget those of `recently_accepted` for which no revision is sent any more."""
        old = self.rules.monotonic() - _RECENT_S
        while self.recently_accepted and next(iter(self.recently_accepted.values()))[0] < old:
            del self.recently_accepted[next(iter(self.recently_accepted))]

    def next_in_round(self) -> list[str]:
        """Some of the names that were accepted; each comes once in a minute or so."""
        now = self.rules.monotonic()
        share = min(1.0, (now - self._in_round_at) / _ROUND_S)
        self._in_round_at = now
        count = math.ceil(share * len(self.accepted))
        names = list(islice(self._round, count))
        if len(names) < count:
            self._round = iter(list(self.accepted))
            names += islice(self._round, count - len(names))
        return [name for name in names if name in self.accepted]

    # --- what is under observation ----------------------------------------------------------

    def schedule(self, tracked: TrackedFile, seconds: float) -> None:
        """Inspect this file after so long."""
        at = self.rules.monotonic() + seconds
        self.queue.put(tracked, at, is_defective=bool(tracked.defect))

    def poll(self, tracked: TrackedFile, seconds: float) -> None:
        """The same for one for which no event says what is awaited: the more, the less often."""
        self.schedule(tracked, max(seconds, len(self.tracked) * _POLL_APART_S))

    def drop(self, tracked: TrackedFile) -> None:
        """Observe this file no more."""
        tracked.close()
        self.tracked.pop(tracked.name, None)
        self.queue.remove(tracked)
        self._waiting.pop(tracked.name, None)

    def due_in(self) -> float | None:
        """Seconds until a file must be inspected, None where nothing waits."""
        return self.queue.due_in(self.rules.monotonic())

    def report_waiting(
        self, tracked: TrackedFile, why: Literal["open_for_writing", "unreadable"], detail: str
    ) -> Iterator[IntakeEvent]:
        """Report once that a file waits for long; `describe` names it for as long as it waits."""
        if not tracked.stalled:
            tracked.stalled = True
            tracked.defect = tracked.defect or why
            key = self.key(tracked.name)
            about = {"turn_id": key.turn_id, "why": why, "detail": detail}
            self._waiting[tracked.name] = about | {"since": tracked.first_seen_at}
            if self.may_report():
                yield Stalled(key, why, detail)

    def may_report(self) -> bool:
        """Whether one more file that is no answer may have its own event; this counts it."""
        if self.queue.event_budget.spend(self.rules.monotonic()):
            return True
        self._unreported += 1
        return False

    def report_flood(self) -> Iterator[IntakeEvent]:
        """Report how many files a flood has, at most once in `_FLOOD_EVERY_S`."""
        now = self.rules.monotonic()
        reported_at = self._flood_reported_at
        noisy = self.queue.event_budget.wait_s(now) > 0 and (
            self._unreported or len(self.queue.defective) > 0
        )
        flooded = noisy or self.names > MAX_NAMES
        if flooded and (reported_at is None or now - reported_at >= _FLOOD_EVERY_S):
            kinds = Counter(each.defect for each in self.tracked.values() if each.defect)
            yield Flooded(self.spec, kinds, self._unreported, self.names)
            self._flood_reported_at, self._unreported = now, 0

    def describe(self) -> dict[str, object]:
        """What the root is, and what is in it, for the status."""
        return {
            **self.spec.about,
            "state": self.root.state,
            "why": self.root.why,
            "since": self.root.since,
            "turn_files": self.turn_files,
            "foreign_files": self.foreign_files,
            "waiting": list(self._waiting.values())[:_MAX_WAITING_NAMED],
            "waiting_files": len(self._waiting),
        }

    def close(self) -> None:
        """Let go of every descriptor."""
        for tracked in list(self.tracked.values()):
            self.drop(tracked)
        self.root.close()
