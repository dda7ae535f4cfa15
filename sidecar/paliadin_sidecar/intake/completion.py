"""Is this file complete? A pure decision over what was observed.

The order of the questions is the completion rule of `docs/architecture.md`.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from paliadin_contract.callback import Reason
from paliadin_sidecar.intake.fingerprint import FileSnapshot, Fingerprint

#: An empty file is nobody's answer after this long; an agent that thinks has no file yet.
EMPTY_S = 600.0
#: link + unlink is a way to publish a file; whoever does it is done within seconds.
LINKS_S = 5.0
#: A writer that holds a file open for this long is reported, and still awaited.
STALLED_S = 120.0
#: An answer that ends with a whole trailer and was unchanged for this long is complete although
#: somebody has it open: a child of the agent that inherited the descriptor, say.
HELD_S = 120.0
#: No event says that a writer closed, so its file is looked at again: soon, then less often.
_MIN_POLL_S, _MAX_POLL_S, _STALLED_POLL_S = 0.004, 0.032, 1.0


class Waiting(Struct, frozen=True):
    """Look again after `seconds`, or at an event.

    Attributes:
        polls: somebody has it open for writing, and no event comes at his end.
        stalled: he has had it for long.
    """

    seconds: float
    stalled: bool = False
    polls: bool = False


class Settled(Struct, frozen=True):
    """Complete: read it now."""


class Failed(Struct, frozen=True):
    """It cannot become an answer as it is."""

    reason: Reason


Verdict = Waiting | Settled | Failed


class Progress(Struct, frozen=True):
    """What is remembered of a file between two inspections. Times are monotonic seconds."""

    fingerprint: Fingerprint
    unchanged_since: float
    first_seen: float
    linked_since: float | None = None
    poll_s: float = _MIN_POLL_S


def decide(
    progress: Progress | None, seen: FileSnapshot, now: float, *, quiet_s: float, max_bytes: int
) -> tuple[Progress, Verdict]:
    """Judge one snapshot in the light of those before.

    Args:
        progress: what the last call returned, None at the first one.
        seen: what the file is now.
        now: monotonic seconds.
        quiet_s: how long a file without an end mark must be unchanged.
        max_bytes: a larger file is no answer.
    """
    before = progress or Progress(seen.fingerprint, now, now)
    changed = seen.fingerprint.content_may_differ(before.fingerprint)
    linked_since = None
    if seen.fingerprint.names > 1:
        linked_since = now if before.linked_since is None else before.linked_since
    progress = Progress(
        seen.fingerprint,
        unchanged_since=now if changed else before.unchanged_since,
        first_seen=before.first_seen,
        linked_since=linked_since,
        poll_s=_MIN_POLL_S if changed else before.poll_s,
    )
    verdict = _judge(progress, seen, now, quiet_s=quiet_s, max_bytes=max_bytes)
    if seen.being_written:
        progress = replace(progress, poll_s=min(2 * progress.poll_s, _MAX_POLL_S))
    return progress, verdict


def _judge(  # noqa: PLR0911 - one return for each step of the rule
    progress: Progress, seen: FileSnapshot, now: float, *, quiet_s: float, max_bytes: int
) -> Verdict:
    if not seen.trusted:
        return Failed("untrusted")
    unchanged_s = now - progress.unchanged_since
    if seen.being_written and not (seen.ended and seen.has_text and unchanged_s >= HELD_S):
        stalled = now - progress.first_seen >= STALLED_S
        seconds = _STALLED_POLL_S if stalled else progress.poll_s
        return Waiting(seconds, stalled, polls=True)
    if not (seen.has_text or seen.ended):  # a bare trailer has ended, whatever it is worth
        return Waiting(EMPTY_S - unchanged_s) if unchanged_s < EMPTY_S else Failed("empty")
    known = seen.ended and seen.being_written is not None
    if unchanged_s < quiet_s and not known:
        return Waiting(quiet_s - unchanged_s)
    if seen.fingerprint.size > max_bytes:
        return Failed("too_large")
    if progress.linked_since is not None:
        linked_s = now - progress.linked_since
        return Waiting(LINKS_S - linked_s) if linked_s < LINKS_S else Failed("untrusted")
    return Settled()


class IntakeRules(Struct, frozen=True):
    """The rules for the files of a root.

    Attributes:
        owner: user id that files must have.
        quiet_s: see `decide`.
        max_bytes: see `decide`.
        max_open_files: files whose descriptors are kept between two inspections, so that they are
            read to their end even when their names go; with more, each is opened anew.
        monotonic: the clock for durations, in seconds.
        wall: the clock for dates, in epoch seconds.
    """

    owner: int
    quiet_s: float
    max_bytes: int
    max_open_files: int
    monotonic: Callable[[], float]
    wall: Callable[[], float]

    def judge(self, progress: Progress | None, seen: FileSnapshot) -> tuple[Progress, Verdict]:
        """As `decide`, by these rules, now."""
        now = self.monotonic()
        return decide(progress, seen, now, quiet_s=self.quiet_s, max_bytes=self.max_bytes)

    def defect_of(self, seen: Fingerprint | None) -> str:
        """What is wrong with a file as it is; empty where it may be an answer.

        Nothing is decided by that but who is inspected first.
        """
        if seen is None:
            return "vanished"
        if not seen.is_regular or seen.owner != self.owner or seen.names > 1:
            return "untrusted"
        if seen.size == 0:
            return "empty"
        return "too_large" if seen.size > self.max_bytes else ""

    def is_same(self, accepted: str, found: Fingerprint) -> bool:
        """Whether a file that was accepted with this fingerprint would be judged the same again."""
        if accepted == str(found):
            return True
        bad = not found.is_regular or found.owner != self.owner or found.names > 1
        return (
            (accepted == failed_fingerprint(found, "empty"))
            or (accepted == failed_fingerprint(found, "untrusted") and bad)
            or (accepted == failed_fingerprint(found, "too_large") and found.size > self.max_bytes)
        )


def failed_fingerprint(fingerprint: Fingerprint, reason: Reason) -> str:
    """The text that is kept of a file that is no answer.

    The limit and the owner are the environment's: they may be others at the next start.
    """
    return f"{fingerprint}:{reason}"
