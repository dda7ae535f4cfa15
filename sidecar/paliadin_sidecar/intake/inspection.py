"""One file after the other: open it, see what it is, decide what becomes of it, and read it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator
from datetime import UTC, datetime

from paliadin_contract.callback import Reason
from paliadin_sidecar.errors import Changed, Unreadable
from paliadin_sidecar.intake.completion import Failed, Progress, Waiting, failed_fingerprint
from paliadin_sidecar.intake.events import Gone, IntakeEvent, Stalled, Vanished
from paliadin_sidecar.intake.fingerprint import COARSE_S, FileSnapshot
from paliadin_sidecar.intake.tracking import TrackedFile, WatchedRoot
from paliadin_sidecar.intake.turnfile import TurnFile, completed_at
from paliadin_sidecar.outbox.records import Arrival

#: What one batch may hold in memory, so that a backlog never is; and how many files it inspects
#: before deliveries have their turn.
_BATCH_BYTES = 8 * 1024 * 1024
_BATCH_FILES = 32
#: A file that the system would not open is tried again after this long, doubling.
_MIN_UNREADABLE_S, _MAX_UNREADABLE_S = 1.0, 10.0
#: A file that changed while it was read, after this long, doubling: its writer is not done.
_MIN_CHANGED_S, _MAX_CHANGED_S = 0.004, 1.0


def inspect_due(watched: WatchedRoot) -> list[IntakeEvent]:
    """Inspect the files that are due, as much as one batch may hold.

    A file that is returned as arrived is not inspected again until it changes, so the caller must
    commit what this returns.
    """
    events: list[IntakeEvent] = []
    size = 0
    for _ in range(_BATCH_FILES):
        watched.steps += 1
        if size >= _BATCH_BYTES:
            break
        tracked = watched.queue.pop_due(watched.rules.monotonic())
        if tracked is None:
            break
        for event in _inspect(watched, tracked):
            events.append(event)
            if isinstance(event, Arrival):
                size += event.size
    events.extend(watched.report_flood())
    return events


def _inspect(watched: WatchedRoot, tracked: TrackedFile) -> Iterator[IntakeEvent]:
    if watched.root.fd is None and tracked.file is None:
        watched.drop(tracked)  # its root went; what is in it is found when it is back
        return
    try:
        if _open(watched, tracked):
            yield from _evaluate(watched, tracked)
            return
        key = watched.key(tracked.name)
        if watched.accepted.pop(tracked.name, None) is not None:
            yield Gone(key)
        elif watched.may_report():
            yield Vanished(key)
        watched.drop(tracked)
    except Unreadable as exc:
        if exc.is_final:  # opened anew, or given up if the name has gone too
            tracked.close()
            tracked.progress = None
        yield from watched.report_waiting(tracked, "unreadable", exc.errno_name)
        _retry(watched, tracked, _MIN_UNREADABLE_S, _MAX_UNREADABLE_S)
    except Changed:
        _retry(watched, tracked, _MIN_CHANGED_S, _MAX_CHANGED_S)


def _retry(watched: WatchedRoot, tracked: TrackedFile, min_s: float, max_s: float) -> None:
    tracked.retry_s = min(max(min_s, 2 * tracked.retry_s), max_s)
    watched.poll(tracked, tracked.retry_s)


def _open(watched: WatchedRoot, tracked: TrackedFile) -> bool:
    # Opens what the name is now; what it was before is kept while it may be needed.
    directory = watched.root.fd
    if directory is None:
        return tracked.file is not None
    if tracked.file is not None:
        try:
            info = os.stat(tracked.name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return True  # what was opened is read to its end
        except OSError as exc:
            raise Unreadable(tracked.name, exc) from None
        if (info.st_dev, info.st_ino) == tracked.file.inode:
            return True
    try:
        opened = watched.open(directory, tracked.name)
    except FileNotFoundError:
        return tracked.file is not None
    if tracked.file is not None:
        tracked.close_previous()
        tracked.previous, tracked.previous_progress = tracked.file, tracked.progress
        tracked.progress = None
    tracked.file = opened
    return True


def _evaluate(watched: WatchedRoot, tracked: TrackedFile) -> Iterator[IntakeEvent]:
    file, name, rules = tracked.file, tracked.name, watched.rules
    if file is None:
        return
    snapshot = file.inspect()
    tracked.seen, tracked.defect = snapshot.fingerprint, rules.defect_of(snapshot.fingerprint)
    if watched.is_accepted(name, snapshot.fingerprint):
        watched.remember_recent(name, snapshot.fingerprint)
        watched.drop(tracked)  # an event, but nothing new
        return
    tracked.progress, verdict = rules.judge(tracked.progress, snapshot)
    if isinstance(verdict, Waiting):
        before = yield from _evaluate_previous(watched, tracked, last_chance=False)
        yield from _wait(watched, tracked, verdict, before)
        return
    reason = verdict.reason if isinstance(verdict, Failed) else None
    if reason is not None and not watched.queue.event_budget.spend(rules.monotonic()):
        tracked.defect = reason
        watched.schedule(tracked, 0.0)  # when there is room for it
        return
    arrival = read_arrival(watched, name, file, snapshot, reason, tracked.progress)
    if reason is not None or not arrival.has_text:
        before = yield from _evaluate_previous(watched, tracked, last_chance=True)
        if before is not None:  # somebody still writes the answer, which comes first
            yield from _wait(watched, tracked, before)
            return
    hint = watched.tokens.read(arrival.key)
    if hint is not None:
        yield hint
    if snapshot.being_written:
        yield Stalled(arrival.key, "open_for_writing", "pushed")
    yield arrival
    watched.only_scanned += not tracked.noticed
    linked = reason == "untrusted" and snapshot.fingerprint.names > 1
    watched.accept(name, arrival.fingerprint, snapshot.fingerprint, linked=linked)
    watched.drop(tracked)


def _wait(
    watched: WatchedRoot, tracked: TrackedFile, *waits: Waiting | None
) -> Iterator[IntakeEvent]:
    # Inspects again in time for the file, and for the one whose name it took.
    found = [wait for wait in waits if wait is not None]
    tracked.retry_s = 0.0
    if any(wait.stalled for wait in found):
        yield from watched.report_waiting(tracked, "open_for_writing", "")
    again = watched.poll if any(wait.polls for wait in found) else watched.schedule
    again(tracked, min(wait.seconds for wait in found))
    many = len(watched.tracked) > watched.rules.max_open_files
    if many and tracked.file is not None and watched.root.fd is not None:
        tracked.file.close()
        tracked.file = None


def _evaluate_previous(
    watched: WatchedRoot, tracked: TrackedFile, *, last_chance: bool
) -> Generator[IntakeEvent, None, Waiting | None]:
    # Returns how long to wait for it, if at all. Once the file that took its name proves to be no
    # answer, it is waited for only while somebody still writes it.
    previous = tracked.previous
    if previous is None:
        return None
    try:
        snapshot = previous.inspect()
    except Unreadable as exc:
        if last_chance or exc.is_final:
            tracked.close_previous()
            return None
        return Waiting(_MIN_UNREADABLE_S)
    progress, verdict = watched.rules.judge(tracked.previous_progress, snapshot)
    tracked.previous_progress = progress
    if isinstance(verdict, Waiting) and (verdict.polls or not last_chance):
        return verdict
    max_bytes = watched.rules.max_bytes
    if snapshot.trusted and snapshot.has_text and snapshot.fingerprint.size <= max_bytes:
        yield read_arrival(watched, tracked.name, previous, snapshot, None, progress)
    tracked.close_previous()
    return None


def read_arrival(  # noqa: PLR0917 - in the order in which they came to be known
    watched: WatchedRoot,
    name: str,
    file: TurnFile,
    snapshot: FileSnapshot,
    reason: Reason | None,
    progress: Progress | None = None,
) -> Arrival:
    """What the outbox takes of a file: all of it, if it is an answer.

    Args:
        watched: its root.
        name: its name there.
        file: the file.
        snapshot: what it was when it was judged.
        reason: why it cannot become an answer; None for one that is.
        progress: what was remembered of it.

    Raises:
        Changed: it is not as it was.
        Unreadable: the disk would not answer.
    """
    rules, seen = watched.rules, snapshot.fingerprint
    now = rules.wall()
    at = completed_at(seen.modified_ns, datetime.fromtimestamp(now, UTC))
    # One whose times are too young to be reliable has no fingerprint, so that a restart reads it
    # again. Where others may write unseen, their clock may make the stamps: there it must have
    # rested.
    rested_s = 0.0 if progress is None else rules.monotonic() - progress.unchanged_since
    conclusive = seen.is_conclusive(now) and (
        snapshot.being_written is not None or rested_s >= COARSE_S
    )
    fingerprint = str(seen) if conclusive else ""
    if reason is not None:
        if fingerprint and progress is not None:
            fingerprint = failed_fingerprint(seen, reason)
        why = _why_failed(reason, snapshot, rules.max_bytes)
        return Arrival(watched.key(name), fingerprint, at, seen.size, reason=reason, why=why)
    data = file.read(snapshot, allow_open_writer=snapshot.being_written is True)
    return Arrival(
        watched.key(name),
        fingerprint,
        at,
        len(data),
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        has_text=snapshot.has_text,
    )


def _why_failed(reason: Reason, snapshot: FileSnapshot, max_bytes: int) -> str:
    seen = snapshot.fingerprint
    match reason:
        case "untrusted":
            return snapshot.why or f"{seen.names} names lead to it, and only one may"
        case "too_large":
            return f"{seen.size} bytes, and at most {max_bytes} by PALIADIN_MAX_BYTES"
        case _:
            return ""
