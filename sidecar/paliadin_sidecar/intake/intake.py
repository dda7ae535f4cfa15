"""From names to settled files: what is under observation, and what a scan finds.

Synchronous and single-threaded: the service calls it from one task, in a worker thread.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from paliadin_contract.ids import turn_id_of
from paliadin_sidecar.errors import Changed, Unreadable
from paliadin_sidecar.intake import completion as settle
from paliadin_sidecar.intake.fingerprint import COARSE_S
from paliadin_sidecar.intake.roots import MAX_NAMES
from paliadin_sidecar.intake.turnfile import TurnFile, completed_at, fingerprint_at, read_claims
from paliadin_sidecar.outbox.fairness import Budget, DueQueue
from paliadin_sidecar.outbox.records import Arrival, TurnKey

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from paliadin_contract.callback import Reason
    from paliadin_sidecar.intake.fingerprint import Fingerprint
    from paliadin_sidecar.intake.roots import Listed, Root
    from paliadin_sidecar.intake.turnfile import Look
    from paliadin_sidecar.settings import RootSpec

__all__ = [
    "Finding",
    "Flooded",
    "Gone",
    "Hint",
    "Intake",
    "Settled",
    "Stalled",
    "Vanished",
    "is_ours",
]

#: What one call of `look` may hold in memory, so that a backlog never is; and how many files it
#: takes before deliveries have their turn.
_BATCH_BYTES = 8 * 1024 * 1024
_BATCH_FILES = 32
#: A file that the system would not open is tried again after this long, doubling.
_UNREADABLE_FIRST_S, _UNREADABLE_MOST_S = 1.0, 10.0
#: A file that changed while it was read, after this long, doubling: its writer is not done.
_CHANGED_FIRST_S, _CHANGED_MOST_S = 0.004, 1.0
#: Files that are looked at again and again, since no event tells of what is awaited, are looked
#: at no more often than once in this time, all of a root together.
_POLL_APART_S = 0.001
#: So many of the files that wait for long are named in the status.
_MAX_WAITING_NAMED = 10
#: A change by mmap, by another name of the file or from another machine may raise no event. So
#: many files, those that were taken last, are looked at in every scan, for as long as a revision
#: of them is sent; others once a minute.
_RECENT_FILES, _RECENT_S = 1000, 600.0
#: What one root may cost the journal, the outbox and the receiver with files that are no answer:
#: so many at once, then so many a second. A flood of them waits, and is told by its number, at most
#: this often.
_NOISE_BURST, _NOISE_PER_S = 100, 10.0
_FLOOD_EVERY_S = 60.0
#: So many files that are no answer as they are, or not yet, are remembered for a root; more are
#: found by later scans, when these are done.
_MAX_DOUBTFUL = 10_000
#: So many files are under observation in a root, also of those that may be answers; and so many
#: tokens are remembered. Without its token a turn is taken too, and reads it when it is.
_MAX_TRACKED, _MAX_TOKENS = 50_000, 50_000
#: A scan looks at so many files under observation whether they changed without an event; with more,
#: the next ones go on.
_MAX_COMPARED = 1000
#: And so many new names, where no more of them can be remembered.
_MAX_NEW = 20_000
#: One in so many places of a batch is for what is no answer yet, while answers wait too.
_DOUBTFUL_TURN = 4
#: Files older than this, in a root that was never watched, are history.
_HISTORY_S = 900.0
#: So many files with a second name are looked at whenever names move; more, once a minute.
_MAX_LINKED = 256


@dataclass(frozen=True)
class Settled:
    """A file became an arrival."""

    arrival: Arrival


@dataclass(frozen=True)
class Hint:
    """A turn's token told who waits."""

    key: TurnKey
    submitted_turn_id: str
    user_id: str


@dataclass(frozen=True)
class Stalled:
    """A file is held open, or cannot be opened, for long."""

    key: TurnKey
    why: Literal["open_for_writing", "unreadable"]
    detail: str


@dataclass(frozen=True)
class Vanished:
    """A file went before it could be opened."""

    key: TurnKey


@dataclass(frozen=True)
class Gone:
    """A file that had been taken is no longer there."""

    key: TurnKey


@dataclass(frozen=True)
class Flooded:
    """A root has so many files that are no answers that most are not told one by one.

    Attributes:
        spec: the root.
        kinds: how many wait to be told, by what is wrong with them as they are.
        untold: how many came and went, or stalled, without an event of their own.
        names: how many names there are, as far as it was listed.
    """

    spec: RootSpec
    kinds: dict[str, int]
    untold: int
    names: int


Finding = Settled | Hint | Stalled | Vanished | Gone | Flooded


@dataclass(eq=False)
class _Under:
    # A file that is under observation under this name.
    name: str
    #: What the name was when it was last looked at, and what is wrong with it as it is.
    seen: Fingerprint | None = None
    doubt: str = ""
    file: TurnFile | None = None
    progress: settle.Progress | None = None
    #: What the name was before it was given to another file: if that one turns out to be a
    #: bare trailer, this is the answer.
    previous: TurnFile | None = None
    previous_progress: settle.Progress | None = None
    stalled: bool = False
    first_seen_at: float = 0.0  #: epoch seconds
    retry_s: float = 0.0  #: the last rest after a look that came to nothing
    noticed: bool = False  #: by an event, not just by a scan

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
        self.close_previous()

    def close_previous(self) -> None:
        if self.previous is not None:
            self.previous.close()
            self.previous = None


@dataclass
class _Listing:
    # What was found so far by a listing, which may take several scans.
    every_file: bool = False
    #: Names that were known when it began, and were not in it yet.
    absent: set[str] = field(default_factory=set)
    names: int = 0
    turn_files: int = 0
    foreign: int = 0


@dataclass
class _Place:
    spec: RootSpec
    root: Root
    #: Fingerprints of files that were taken, with the reason where one is no answer; "" where it
    #: is too young to be believed.
    taken: dict[str, str] = field(default_factory=dict)
    #: What was taken last, when and as what: it is looked at in every scan.
    recent: dict[str, tuple[float, Fingerprint]] = field(default_factory=dict)
    #: Files that failed for a second name: its removal moves no time but theirs.
    linked: set[str] = field(default_factory=set)
    #: Tokens that were judged: "" for one that was read, else what it looked like.
    tokens: dict[str, str] = field(default_factory=dict)
    under: dict[str, _Under] = field(default_factory=dict)
    #: Why files have waited for long, since when.
    waiting: dict[str, dict[str, object]] = field(default_factory=dict)
    #: What may be an answer as it is, and what is none (yet): the second never holds the first.
    plausible: DueQueue[_Under] = field(default_factory=DueQueue)
    doubtful: DueQueue[_Under] = field(default_factory=DueQueue)
    noise: Budget = field(default_factory=lambda: Budget(_NOISE_BURST, _NOISE_PER_S))
    untold: int = 0
    flood_told: float | None = None
    turn: int = 0
    foreign: int = 0
    lying: int = 0
    listing: _Listing = field(default_factory=_Listing)
    names: int = 0  #: all of them, as far as it was listed

    def key(self, name: str) -> TurnKey:
        return TurnKey(self.spec.backend, self.spec.persona, turn_id_of(name) or name)


def is_ours(path: str) -> bool:
    """Whether this is the path of a turn file or a token, and not of a writer's draft."""
    name = path.rpartition("/")[2]
    return turn_id_of(name) is not None or turn_id_of(name, ".jwt") is not None


class Intake:
    """All roots, and every file in them that has not settled.

    Args:
        places: what is watched.
        owner: user id that files must have.
        quiet_s: see `settle.decide`.
        max_bytes: see `settle.decide`.
        most_held: files whose descriptors are kept between two looks, so that they are read to
            their end even when their names go; with more, each is opened anew.
        monotonic: the clock for durations, in seconds.
        wall: the clock for dates, in epoch seconds.
    """

    def __init__(
        self,
        places: list[tuple[RootSpec, Root]],
        *,
        owner: int,
        quiet_s: float,
        max_bytes: int,
        most_held: int,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.steps = 0  #: how far it got: whoever waits for it sees that it moves
        self.scans = 0  #: how often a root was scanned
        self.only_scanned = 0  #: files that settled before any event told of them
        self._places = {root.path: _Place(spec, root) for spec, root in places}
        self._owner = owner
        self._quiet_s = quiet_s
        self._max_bytes = max_bytes
        self._most_held = most_held
        self._monotonic = monotonic
        self._wall = wall
        self._in_turns = list(self._places.values())

    def remember(self, spec: RootSpec, lying: dict[str, str]) -> None:
        """Take over what the outbox knows of a root: signatures by turn id."""
        place = self._places[spec.path]
        place.taken = {f"{turn_id}.txt": signature for turn_id, signature in lying.items()}

    def notice(self, touched: set[str]) -> list[Finding]:
        """Take up paths that an event named. Returns what their tokens told."""
        findings: list[Finding] = []
        for path in touched:
            self.steps += 1
            folder, _, name = path.rpartition("/")
            for place in self._places.values():
                if str(place.root.path) == folder:
                    findings.extend(self._take_up(place, name))
                    if name in place.under:
                        place.under[name].noticed = True
        return findings

    def scan(self, spec: RootSpec, *, every_file: bool) -> list[Finding]:
        """Look at a root's names, where they moved, and take up what is new.

        Args:
            spec: the root.
            every_file: also look whether a file changed that was taken.

        Raises:
            OSError: the directory cannot be read.
        """
        self.scans += 1
        place = self._places[spec.path]
        listed = place.root.names(always=every_file)
        if place.root.fd is None:
            return []
        findings = [] if listed is None else self._compare(place, listed, every_file=every_file)
        if not every_file:
            findings += self._look_again(place, place.root.fd)
        return findings

    def _compare(self, place: _Place, listed: Listed, *, every_file: bool) -> list[Finding]:
        findings: list[Finding] = []
        if listed.is_first:
            place.listing = _Listing(every_file, {*place.taken, *place.tokens})
        listing, names = place.listing, listed.names
        every_file = listing.every_file = listing.every_file or every_file
        apart = 1 + len(place.under) // _MAX_COMPARED
        full = len(place.doubtful) >= _MAX_DOUBTFUL
        sparse = 1 + len(names) // _MAX_NEW if full else 1
        for n, name in enumerate(names, self.scans):
            self.steps += 1
            # What was taken has a turn's name: most names need not be parsed again.
            if name in place.taken or turn_id_of(name) is not None:
                listing.turn_files += 1
                under = place.under.get(name)
                if (
                    (name not in place.taken and under is None and n % sparse == 0)
                    or (under is not None and (every_file or n % apart == 0))
                    or (every_file and self._moved(place, name))
                ) and self._is_new(place, name, under):
                    findings.extend(self._take_up(place, name))
            elif turn_id_of(name, ".jwt") is not None:
                known = name in place.tokens
                if every_file if known else len(place.tokens) < _MAX_TOKENS:
                    findings.extend(self._take_up(place, name))
            else:
                listing.foreign += 1
        listing.absent.difference_update(names)
        listing.names += len(names)
        place.names = max(place.names, listing.names)
        if listed.is_last:
            findings += self._end_listing(place, listing)
        else:
            place.lying = max(place.lying, listing.turn_files)
            place.foreign = max(place.foreign, listing.foreign)
        return findings

    def _end_listing(self, place: _Place, listing: _Listing) -> Iterator[Finding]:
        for name in listing.absent & place.taken.keys():
            self.steps += 1
            # A listing is none of one moment: a name that was given again may not be in it.
            if not self._is_there(place, name):
                del place.taken[name]
                place.linked.discard(name)
                yield Gone(place.key(name))
        for name in listing.absent & place.tokens.keys():
            del place.tokens[name]
        place.lying, place.foreign = listing.turn_files, listing.foreign
        place.names = listing.names

    def _is_there(self, place: _Place, name: str) -> bool:
        try:
            return place.root.fd is not None and fingerprint_at(place.root.fd, name) is not None
        except Unreadable:
            return True

    def _look_again(self, place: _Place, directory: int) -> Iterator[Finding]:
        # At files whose next change may move no name, and raise no event.
        old = self._monotonic() - _RECENT_S
        while place.recent and next(iter(place.recent.values()))[0] < old:
            del place.recent[next(iter(place.recent))]
        changed = {name for name in place.linked if self._moved(place, name)}
        for name, (_, fingerprint) in place.recent.items():
            self.steps += 1
            with suppress(Unreadable):  # when each file is looked at, that is told
                if fingerprint_at(directory, name) not in (None, fingerprint):
                    changed.add(name)
        for name in changed - place.under.keys():
            yield from self._take_up(place, name)

    def history(self, spec: RootSpec) -> list[Arrival]:
        """The old files of a root that was never watched; they are not taken up any more.

        Raises:
            OSError: the directory cannot be read.
        """
        place = self._places[spec.path]
        found = []
        listed = place.root.names(always=True)
        while listed is not None and place.root.fd is not None:
            for name in filter(turn_id_of, listed.names):
                self.steps += 1
                arrival = self._old(place, place.root.fd, name)
                if arrival is not None:
                    place.taken[name] = arrival.fingerprint
                    found.append(arrival)
            listed = None if listed.is_last else place.root.names(always=True)
        return found

    def found(self) -> list[dict[str, object]]:
        """What the last scans found, for who asks."""
        return [
            {
                "backend": place.spec.backend,
                "persona": place.spec.persona,
                "path": str(place.spec.path),
                "state": place.root.state,
                "why": place.root.why,
                "since": place.root.since,
                "turn_files": place.lying,
                "foreign_files": place.foreign,
                "waiting": list(place.waiting.values())[:_MAX_WAITING_NAMED],
                "waiting_files": len(place.waiting),
            }
            for place in self._places.values()
        ]

    def due_in(self) -> float | None:
        """Seconds until something must be looked at, None where nothing waits."""
        now = self._monotonic()
        waits = [
            max(at - now, rest_s)
            for place in self._in_turns
            for at, rest_s in (
                (place.plausible.next_at(), 0.0),
                (place.doubtful.next_at(), place.noise.wait_s(now)),
            )
            if at is not None
        ]
        return max(0.0, min(waits)) if waits else None

    def look(self) -> list[Finding]:
        """Look at what is due, as much as one batch may hold.

        What settled is not looked at again until it moves, so the caller must not lose it.
        """
        findings: list[Finding] = []
        size = 0
        for _ in range(_BATCH_FILES):
            self.steps += 1
            found = self._next() if size < _BATCH_BYTES else None
            if found is None:
                break
            for finding in self._look(*found):
                findings.append(finding)
                if isinstance(finding, Settled):
                    size += finding.arrival.size
        for place in self._in_turns:
            findings.extend(self._tell_flood(place))
        return findings

    def _next(self) -> tuple[_Place, _Under] | None:
        # The roots take turns, so that one's flood holds no other's answers.
        now = self._monotonic()
        for _ in self._in_turns:
            place = self._in_turns.pop(0)
            self._in_turns.append(place)
            queues = [place.plausible, place.doubtful]
            place.turn += 1
            if place.turn % _DOUBTFUL_TURN == 0:
                queues.reverse()
            for queue in queues:
                at = queue.next_at()
                held = queue is place.doubtful and place.noise.wait_s(now) > 0
                if at is not None and at <= now and not held:
                    return place, queue.pop()
        return None

    def _tell_flood(self, place: _Place) -> Iterator[Finding]:
        now = self._monotonic()
        told = place.flood_told
        noisy = place.noise.wait_s(now) > 0 and (place.untold or len(place.doubtful) > 0)
        flooded = noisy or place.names > MAX_NAMES
        if flooded and (told is None or now - told >= _FLOOD_EVERY_S):
            kinds: dict[str, int] = {}
            for under in place.under.values():
                if under.doubt:
                    kinds[under.doubt] = kinds.get(under.doubt, 0) + 1
            yield Flooded(place.spec, kinds, place.untold, place.names)
            place.flood_told, place.untold = now, 0

    def close(self) -> None:
        """Let go of every descriptor."""
        for place in self._places.values():
            for under in list(place.under.values()):
                self._drop(place, under)
            place.root.close()

    # --- one file -------------------------------------------------------------------------

    def _take_up(self, place: _Place, name: str) -> Iterator[Finding]:
        token_of = turn_id_of(name, ".jwt")
        if token_of is not None:
            yield from self._hint(place, token_of)
        elif turn_id_of(name) is not None:
            seen = self._seen(place, name)
            doubt = self._doubt(seen)
            under = place.under.get(name)
            if under is None:
                full = doubt and len(place.doubtful) >= _MAX_DOUBTFUL
                if full or len(place.under) >= _MAX_TRACKED:
                    return  # a later scan finds it
                under = place.under[name] = _Under(name, first_seen_at=self._wall())
            under.seen, under.doubt = seen, doubt
            self._again(place, under, 0.0)

    def _is_new(self, place: _Place, name: str, under: _Under | None) -> bool:
        # Whether the name is another file, or the file another, than when it was last looked at.
        return under is None or self._seen(place, name) != under.seen

    def _seen(self, place: _Place, name: str) -> Fingerprint | None:
        try:
            return None if place.root.fd is None else fingerprint_at(place.root.fd, name)
        except Unreadable:
            return None

    def _doubt(self, seen: Fingerprint | None) -> str:
        # What is wrong with it as it is: nothing is decided by that but who comes first.
        if seen is None:
            return "vanished"
        if not seen.is_regular or seen.owner != self._owner or seen.names > 1:
            return "untrusted"
        if seen.size == 0:
            return "empty"
        return "too_large" if seen.size > self._max_bytes else ""

    def _hint(self, place: _Place, turn_id: str) -> Iterator[Finding]:
        name = f"{turn_id}.jwt"
        judged = place.tokens.get(name)
        if judged == "" or place.root.fd is None:
            return
        try:
            seen = fingerprint_at(place.root.fd, name)
            if seen is None or str(seen) == judged:
                return
            # What cannot be one is not opened: an empty one is cheap to make by the thousand.
            doubt = self._doubt(seen)
            claims = None if doubt else read_claims(place.root.fd, name, self._owner)
        except (FileNotFoundError, Unreadable, Changed):
            return
        if name not in place.tokens and len(place.tokens) >= _MAX_TOKENS:
            pass
        elif claims is None:
            # A young one is read again, but not by each scan.
            place.tokens[name] = str(seen) if seen.is_conclusive(self._wall()) else "young"
        else:
            place.tokens[name] = ""
        if claims is not None:
            yield Hint(TurnKey(place.spec.backend, place.spec.persona, turn_id), *claims)

    def _again(self, place: _Place, under: _Under, seconds: float) -> None:
        queue, other = place.plausible, place.doubtful
        if under.doubt:
            queue, other = other, queue
        other.remove(under)
        queue.put(under, self._monotonic() + seconds)

    def _look(self, place: _Place, under: _Under) -> Iterator[Finding]:
        key = place.key(under.name)
        if place.root.fd is None and under.file is None:
            self._drop(place, under)  # its root went; what is in it is found when it is back
            return
        try:
            if not self._open(place, under):
                if place.taken.pop(under.name, None) is not None:
                    yield Gone(key)
                elif self._may_tell(place):
                    yield Vanished(key)
                self._drop(place, under)
                return
            yield from self._judge(place, under, key)
        except Unreadable as exc:
            if exc.is_final:  # opened anew, or given up if the name has gone too
                under.close()
                under.progress = None
            yield from self._report(place, under, "unreadable", exc.errno_name)
            self._retry(place, under, _UNREADABLE_FIRST_S, _UNREADABLE_MOST_S)
        except Changed:
            self._retry(place, under, _CHANGED_FIRST_S, _CHANGED_MOST_S)

    def _retry(self, place: _Place, under: _Under, first_s: float, most_s: float) -> None:
        under.retry_s = min(max(first_s, 2 * under.retry_s), most_s)
        self._poll(place, under, under.retry_s)

    def _poll(self, place: _Place, under: _Under, seconds: float) -> None:
        self._again(place, under, max(seconds, len(place.under) * _POLL_APART_S))

    def _report(
        self,
        place: _Place,
        under: _Under,
        why: Literal["open_for_writing", "unreadable"],
        detail: str,
    ) -> Iterator[Finding]:
        # Once for a file, and in the status for as long as it waits.
        if not under.stalled:
            under.stalled = True
            under.doubt = under.doubt or why
            key = place.key(under.name)
            about = {"turn_id": key.turn_id, "why": why, "detail": detail}
            place.waiting[under.name] = about | {"since": under.first_seen_at}
            if self._may_tell(place):
                yield Stalled(key, why, detail)

    def _may_tell(self, place: _Place) -> bool:
        if place.noise.spend(self._monotonic()):
            return True
        place.untold += 1
        return False

    def _open(self, place: _Place, under: _Under) -> bool:
        # Opens what the name is now; what it was before is kept while it may be needed.
        if place.root.fd is None:
            return under.file is not None
        if under.file is not None:
            try:
                info = os.stat(under.name, dir_fd=place.root.fd, follow_symlinks=False)
            except FileNotFoundError:
                return True  # what was opened is read to its end
            except OSError as exc:
                raise Unreadable(under.name, exc) from None
            if (info.st_dev, info.st_ino) == under.file.inode:
                return True
        try:
            opened = TurnFile(
                place.root.fd, under.name, self._owner, leases_on=place.root.leases_on
            )
        except FileNotFoundError:
            return under.file is not None
        if under.file is not None:
            under.close_previous()
            under.previous, under.previous_progress = under.file, under.progress
            under.progress = None
        under.file = opened
        return True

    def _judge(self, place: _Place, under: _Under, key: TurnKey) -> Iterator[Finding]:
        file = under.file
        if file is None:
            return
        look = file.look()
        under.seen, under.doubt = look.fingerprint, self._doubt(look.fingerprint)
        if self._is_taken(place, under.name, look.fingerprint):
            self._taken_as(place, under.name, look.fingerprint)
            self._drop(place, under)  # an event, but nothing new
            return
        under.progress, verdict = self._decide(under.progress, look)
        if isinstance(verdict, settle.Waiting):
            before = yield from self._judge_previous(under, key, now_or_never=False)
            yield from self._wait(place, under, verdict, before)
            return
        if isinstance(verdict, settle.Failed) and not place.noise.spend(self._monotonic()):
            under.doubt = verdict.reason
            self._again(place, under, 0.0)  # when there is room for it
            return
        arrival = self._arrival(key, file, look, verdict, under.progress)
        if arrival.reason is not None or not arrival.has_text:
            before = yield from self._judge_previous(under, key, now_or_never=True)
            if before is not None:  # somebody still writes the answer, which comes first
                yield from self._wait(place, under, before)
                return
        yield from self._hint(place, key.turn_id)
        if look.being_written:
            yield Stalled(key, "open_for_writing", "pushed")
        yield Settled(arrival)
        self.only_scanned += not under.noticed
        place.taken[under.name] = arrival.fingerprint
        self._taken_as(place, under.name, look.fingerprint)
        if arrival.reason == "untrusted" and look.links > 1 and len(place.linked) < _MAX_LINKED:
            place.linked.add(under.name)
        else:
            place.linked.discard(under.name)
        self._drop(place, under)

    def _taken_as(self, place: _Place, name: str, fingerprint: Fingerprint) -> None:
        place.recent.pop(name, None)
        place.recent[name] = self._monotonic(), fingerprint
        if len(place.recent) > _RECENT_FILES:
            del place.recent[next(iter(place.recent))]

    def _wait(
        self,
        place: _Place,
        under: _Under,
        verdict: settle.Waiting,
        before: settle.Waiting | None = None,
    ) -> Iterator[Finding]:
        # Looks again in time for the file, and for the one whose name it took.
        waits = [verdict] if before is None else [verdict, before]
        under.retry_s = 0.0
        if any(wait.stalled for wait in waits):
            yield from self._report(place, under, "open_for_writing", "")
        again = self._poll if any(wait.polls for wait in waits) else self._again
        again(place, under, min(wait.seconds for wait in waits))
        self._release_if_many(place, under)

    def _judge_previous(
        self, under: _Under, key: TurnKey, *, now_or_never: bool
    ) -> Generator[Finding, None, settle.Waiting | None]:
        # Returns how long it must be waited for, if it must. Nobody waits for a file without a
        # name, once what took its name is no answer: unless it is still being written.
        if under.previous is None:
            return None
        try:
            look = under.previous.look()
        except Unreadable as exc:
            if now_or_never or exc.is_final:
                under.close_previous()
                return None
            return settle.Waiting(_UNREADABLE_FIRST_S)
        under.previous_progress, verdict = self._decide(under.previous_progress, look)
        if isinstance(verdict, settle.Waiting) and (verdict.polls or not now_or_never):
            return verdict
        if look.trusted and look.has_text and look.size <= self._max_bytes:
            settled = settle.Settled()
            progress = under.previous_progress
            yield Settled(self._arrival(key, under.previous, look, settled, progress))
        under.close_previous()
        return None

    def _decide(
        self, progress: settle.Progress | None, look: Look
    ) -> tuple[settle.Progress, settle.Verdict]:
        return settle.decide(
            progress, look, self._monotonic(), quiet_s=self._quiet_s, max_bytes=self._max_bytes
        )

    def _arrival(
        self,
        key: TurnKey,
        file: TurnFile,
        look: Look,
        verdict: settle.Settled | settle.Failed,
        progress: settle.Progress | None,
    ) -> Arrival:
        now = self._wall()
        at = completed_at(look.mtime_s, datetime.fromtimestamp(now, UTC))
        # One too young to be believed is not kept by the outbox either: the next start would
        # believe it. Where others may write unseen, their clock may make the stamps: there it
        # must have rested.
        rested_s = 0.0 if progress is None else self._monotonic() - progress.unchanged_since
        conclusive = look.fingerprint.is_conclusive(now) and (
            look.being_written is not None or rested_s >= COARSE_S
        )
        signature = str(look.fingerprint) if conclusive else ""
        if isinstance(verdict, settle.Failed):
            if signature and progress is not None:
                signature = _failed(look.fingerprint, verdict.reason)
            why = _why_failed(verdict.reason, look, self._max_bytes)
            return Arrival(key, signature, at, look.size, reason=verdict.reason, why=why)
        data = file.read(look, held=look.being_written is True)
        return Arrival(
            key,
            signature,
            at,
            len(data),
            data=data,
            sha256=hashlib.sha256(data).hexdigest(),
            has_text=look.has_text,
        )

    def _old(self, place: _Place, directory: int, name: str) -> Arrival | None:
        # A file of a root's past, unless it is young or somebody still writes it.
        try:
            file = TurnFile(directory, name, self._owner, leases_on=place.root.leases_on)
        except (FileNotFoundError, Unreadable):
            return None
        try:
            look = file.look()
            if self._wall() - look.mtime_s < _HISTORY_S or look.being_written:
                return None
            verdict: settle.Settled | settle.Failed = settle.Settled()
            if not look.trusted:
                verdict = settle.Failed("untrusted")
            elif look.size > self._max_bytes:
                verdict = settle.Failed("too_large")
            # What is not sent is not kept.
            return replace(self._arrival(place.key(name), file, look, verdict, None), data=None)
        except (Unreadable, Changed):
            return None
        finally:
            file.close()

    def _moved(self, place: _Place, name: str) -> bool:
        if place.root.fd is None:
            return False
        try:
            found = fingerprint_at(place.root.fd, name)
        except Unreadable:
            return True
        return found is None or not self._is_taken(place, name, found)

    def _is_taken(self, place: _Place, name: str, found: Fingerprint) -> bool:
        # Whether this was judged, and would be judged the same again.
        taken = place.taken.get(name)
        if taken is None or taken == str(found):
            return taken is not None
        bad = not found.is_regular or found.owner != self._owner or found.names > 1
        return (
            (taken == _failed(found, "empty"))
            or (taken == _failed(found, "untrusted") and bad)
            or (taken == _failed(found, "too_large") and found.size > self._max_bytes)
        )

    def _release_if_many(self, place: _Place, under: _Under) -> None:
        many = sum(len(p.under) for p in self._places.values()) > self._most_held
        if many and under.file is not None and place.root.fd is not None:
            under.file.close()
            under.file = None

    def _drop(self, place: _Place, under: _Under) -> None:
        under.close()
        place.under.pop(under.name, None)
        place.plausible.remove(under)
        place.doubtful.remove(under)
        place.waiting.pop(under.name, None)


def _failed(fingerprint: Fingerprint, reason: Reason) -> str:
    # The limit and the owner are the environment's: they may be others at the next start.
    return f"{fingerprint}:{reason}"


def _why_failed(reason: Reason, look: Look, max_bytes: int) -> str:
    match reason:
        case "untrusted":
            return look.why or f"{look.links} names lead to it, and only one may"
        case "too_large":
            return f"{look.size} bytes, and at most {max_bytes} by PALIADIN_MAX_BYTES"
        case _:
            return ""
