"""From a file that was judged to what the outbox takes."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from paliadin_contract.callback import Reason
from paliadin_sidecar.intake.completion import (
    Failed,
    IntakeRules,
    Progress,
    Settled,
    failed_fingerprint,
)
from paliadin_sidecar.intake.fingerprint import COARSE_S, FileSnapshot
from paliadin_sidecar.intake.turnfile import TurnFile, completed_at
from paliadin_sidecar.outbox.records import Arrival, TurnKey


def read_arrival(  # noqa: PLR0917 - in the order in which they came to be known
    rules: IntakeRules,
    key: TurnKey,
    file: TurnFile,
    snapshot: FileSnapshot,
    verdict: Settled | Failed,
    progress: Progress | None = None,
) -> Arrival:
    """Read the file, if it is an answer.

    Args:
        rules: how it was judged.
        key: its turn.
        file: the file.
        snapshot: what it was when it was judged.
        verdict: what it is.
        progress: what was remembered of it.

    Raises:
        Changed: it is not as it was.
        Unreadable: the disk would not answer.
    """
    now, seen = rules.wall(), snapshot.fingerprint
    at = completed_at(seen.modified_ns, datetime.fromtimestamp(now, UTC))
    # One whose times are too young to be reliable has no fingerprint, so that a restart reads it
    # again. Where others may write unseen, their clock may make the stamps: there it must have
    # rested.
    rested_s = 0.0 if progress is None else rules.monotonic() - progress.unchanged_since
    conclusive = seen.is_conclusive(now) and (
        snapshot.being_written is not None or rested_s >= COARSE_S
    )
    fingerprint = str(seen) if conclusive else ""
    if isinstance(verdict, Failed):
        if fingerprint and progress is not None:
            fingerprint = failed_fingerprint(seen, verdict.reason)
        why = _why_failed(verdict.reason, snapshot, rules.max_bytes)
        return Arrival(key, fingerprint, at, seen.size, reason=verdict.reason, why=why)
    data = file.read(snapshot, allow_open_writer=snapshot.being_written is True)
    return Arrival(
        key,
        fingerprint,
        at,
        len(data),
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        has_text=snapshot.has_text,
    )


def _why_failed(reason: Reason, snapshot: FileSnapshot, max_bytes: int) -> str:
    match reason:
        case "untrusted":
            return (
                snapshot.why or f"{snapshot.fingerprint.names} names lead to it, and only one may"
            )
        case "too_large":
            return (
                f"{snapshot.fingerprint.size} bytes, and at most {max_bytes} by PALIADIN_MAX_BYTES"
            )
        case _:
            return ""
