"""The old files of a root that was never watched: they are remembered, and never sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from paliadin_contract.ids import turn_id_of
from paliadin_sidecar.errors import Changed, Unreadable
from paliadin_sidecar.intake.arrivals import read_arrival
from paliadin_sidecar.intake.completion import Failed, Settled
from paliadin_sidecar.intake.tracking import WatchedRoot
from paliadin_sidecar.intake.turnfile import TurnFile
from paliadin_sidecar.outbox.records import Arrival

__all__ = ["find_history"]

#: Files older than this, in a root that was never watched, are history.
_HISTORY_S = 900.0


def find_history(watched: WatchedRoot) -> Iterator[Arrival | None]:
    """Read the old files, which are not taken up any more. Yields None after each step.

    Raises:
        OSError: the directory cannot be read.
    """
    for name in watched.root.names(always=True) or ():
        yield None
        if turn_id_of(name) is not None and watched.root.fd is not None:
            arrival = _read_old(watched, watched.root.fd, name)
            if arrival is not None:
                watched.accepted[name] = arrival.fingerprint
                yield arrival


def _read_old(watched: WatchedRoot, directory: int, name: str) -> Arrival | None:
    # A file of a root's past, unless it is young or somebody still writes it.
    rules = watched.rules
    try:
        file = TurnFile(directory, name, rules.owner, leases_on=watched.root.leases_on)
    except (FileNotFoundError, Unreadable):
        return None
    try:
        snapshot = file.inspect()
        if rules.wall() - snapshot.mtime_s < _HISTORY_S or snapshot.being_written:
            return None
        verdict: Settled | Failed = Settled()
        if not snapshot.trusted:
            verdict = Failed("untrusted")
        elif snapshot.size > rules.max_bytes:
            verdict = Failed("too_large")
        # What is not sent is not kept.
        return replace(read_arrival(rules, watched.key(name), file, snapshot, verdict), data=None)
    except (Unreadable, Changed):
        return None
    finally:
        file.close()
