"""Finds by listing what no notification named: new names, changed files, names that are gone.

A scan is a generator, so that a large one holds up nobody: each of its steps is small, and files
may be inspected between two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from enum import IntEnum, auto
from typing import TypeVar

from paliadin_contract.callback import Reason
from paliadin_contract.ids import turn_id_of
from paliadin_sidecar.errors import Changed, Unreadable
from paliadin_sidecar.intake.events import Gone, IntakeEvent
from paliadin_sidecar.intake.fingerprint import Fingerprint
from paliadin_sidecar.intake.inspection import read_arrival
from paliadin_sidecar.intake.tracking import WatchedRoot
from paliadin_sidecar.intake.turnfile import fingerprint_at
from paliadin_sidecar.outbox.records import Arrival

T = TypeVar("T")

#: As many names, or files, are one step.
_STEP = 50
#: And as many names, where they are only copied.
_COPY_STEP = 5000
#: A scan compares so many files under observation, whether they changed without an event; with
#: more, the next ones go on.
_MAX_COMPARED = 1000
#: And so many new names, where no more of them can be remembered.
_MAX_NEW = 20_000
#: Files older than this, in a root that was never watched, are history.
_HISTORY_S = 900.0


def run_slice(
    steps: Iterator[T | None], seconds: float, clock: Callable[[], float]
) -> tuple[list[T], bool]:
    """Take steps for about so long. Returns what they yielded, and whether there are more."""
    end = clock() + seconds
    found: list[T] = []
    for one in steps:
        if one is not None:
            found.append(one)
        elif clock() >= end:
            return found, True
    return found, False


class Depth(IntEnum):
    """How much a scan asks for; each has what those before it have."""

    ACCEPTED = auto()  #: whether files changed that were accepted: the last ones, and some others
    MOVED = auto()  #: the names, where the directory's time says that one came or went
    NAMES = auto()  #: the names in any case
    EVERY_FILE = auto()  #: whether any of all the files that were accepted changed


def scan(watched: WatchedRoot, depth: Depth) -> Iterator[IntakeEvent | None]:
    """Look for what no notification named. Yields what happened, and None after each step.

    Args:
        watched: the root.
        depth: how much is asked for.

    Raises:
        OSError: the directory cannot be read.
    """
    watched.scans += 1
    if depth >= Depth.MOVED:
        names = watched.root.names(always=depth >= Depth.NAMES)
        if names is not None:
            yield from _compare_names(watched, names, depth)
    if depth < Depth.EVERY_FILE and watched.root.fd is not None:
        yield from _compare_accepted(watched)


def _compare_names(
    watched: WatchedRoot, names: Iterable[str], depth: Depth
) -> Iterator[IntakeEvent | None]:
    accepted, tracked, tokens_seen = watched.accepted, watched.tracked, watched.tokens.seen
    known = [*accepted, *tokens_seen]
    absent: set[str] = set()
    for n in range(0, len(known), _COPY_STEP):
        absent.update(known[n : n + _COPY_STEP])
        yield None
    listed = turn_files = foreign_files = 0
    apart = sparse = 1
    for listed, name in enumerate(names, 1):
        # Each scan begins with another one of those that are not compared every time.
        n = listed + watched.scans
        if listed % _STEP == 1:
            yield None
            apart = 1 + len(tracked) // _MAX_COMPARED
            max_names = max(listed, watched.names)
            sparse = 1 + max_names // _MAX_NEW if watched.has_too_many_defective else 1
        absent.discard(name)
        # What was accepted has a turn's name: most names need not be parsed again.
        if name in accepted or turn_id_of(name) is not None:
            turn_files += 1
            if name in tracked:
                wanted = (depth >= Depth.NAMES or n % apart == 0) and (
                    watched.fingerprint_of(name) != tracked[name].seen
                )
            elif name in accepted:
                wanted = depth >= Depth.EVERY_FILE and watched.has_moved(name)
            else:
                wanted = n % sparse == 0
        elif turn_id_of(name, ".jwt") is not None:
            wanted = depth >= Depth.NAMES if name in tokens_seen else not watched.tokens.is_full
        else:
            foreign_files += 1
            continue
        if wanted:
            yield from watched.observe(name)
    yield from _report_gone(watched, absent)
    watched.names = listed
    watched.turn_files, watched.foreign_files = turn_files, foreign_files


def _report_gone(watched: WatchedRoot, absent: set[str]) -> Iterator[IntakeEvent | None]:
    for name in absent:
        yield None
        watched.tokens.seen.pop(name, None)
        # A listing is not of one moment: a name that was removed and made again may be missing.
        if name in watched.accepted and not _is_there(watched, name):
            del watched.accepted[name]
            watched.multiply_linked.discard(name)
            yield Gone(watched.key(name))


def _is_there(watched: WatchedRoot, name: str) -> bool:
    try:
        return watched.root.fd is not None and fingerprint_at(watched.root.fd, name) is not None
    except Unreadable:
        return True


def _compare_accepted(watched: WatchedRoot) -> Iterator[IntakeEvent | None]:
    # Files whose next change may move no name, and raise no event.
    watched.expire_recent()
    changed = {name for name in watched.multiply_linked if watched.has_moved(name)}
    for n, name in enumerate(watched.next_in_round(), 1):
        if n % _STEP == 0:
            yield None
        if watched.has_moved(name):
            changed.add(name)
    for n, (name, (_, fingerprint)) in enumerate(list(watched.recently_accepted.items()), 1):
        if n % _STEP == 0:
            yield None
        # One that cannot be seen is reported when its turn in the round comes.
        if watched.fingerprint_of(name) not in (None, fingerprint):
            changed.add(name)
    for name in changed - watched.tracked.keys():
        yield from watched.observe(name)


# --- a root that was never watched ----------------------------------------------------------------


def is_old(watched: WatchedRoot, name: str) -> bool:
    """Whether what is under this name would be history."""
    found = watched.fingerprint_of(name)
    return found is not None and _is_old(watched, found)


def _is_old(watched: WatchedRoot, found: Fingerprint) -> bool:
    return watched.rules.wall() - found.modified_ns / 1e9 >= _HISTORY_S


def find_history(watched: WatchedRoot) -> Iterator[Arrival | None]:
    """Read the old files, which are not taken up any more, and observe the others.

    Yields None after each step.

    Raises:
        OSError: the directory cannot be read.
    """
    for name in watched.root.names(always=True) or ():
        yield None
        if turn_id_of(name) is not None and watched.root.fd is not None:
            arrival = _read_old(watched, watched.root.fd, name)
            if arrival is None:
                watched.track(name)
                continue
            watched.accepted[name] = arrival.fingerprint
            yield arrival


def _read_old(watched: WatchedRoot, directory: int, name: str) -> Arrival | None:
    # A file of a root's past, unless it is young or somebody still writes it.
    try:
        with closing(watched.open(directory, name)) as file:
            snapshot = file.inspect()
            if not _is_old(watched, snapshot.fingerprint) or snapshot.being_written:
                return None
            reason: Reason | None = None
            if not snapshot.trusted:
                reason = "untrusted"
            elif snapshot.fingerprint.size > watched.rules.max_bytes:
                reason = "too_large"
            # What is not sent is not kept.
            return replace(read_arrival(watched, name, file, snapshot, reason), data=None)
    except (FileNotFoundError, Unreadable, Changed):
        return None
