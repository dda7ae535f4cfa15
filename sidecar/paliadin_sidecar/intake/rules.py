"""What a file must be like to be an answer, and the clocks by which it is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paliadin_contract.callback import Reason
from paliadin_sidecar.intake.fingerprint import Fingerprint

__all__ = ["IntakeRules", "failed_fingerprint"]


@dataclass(frozen=True)
class IntakeRules:
    """The rules for the files of a root.

    Attributes:
        owner: user id that files must have.
        quiet_s: see `completion.decide`.
        max_bytes: see `completion.decide`.
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
