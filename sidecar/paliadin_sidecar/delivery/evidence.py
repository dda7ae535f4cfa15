"""Is a turn at fault, or the receiver? Judged by what other turns met meanwhile. Pure.

A receiver that is being deployed, overloaded or broken refuses turns whatever they hold: then
some of the others fail as well. So each failure of a turn is compared with the attempts of other
turns next to it in time, between its failure before and this one. If nothing but chance decided
which of these attempts fail, then of `n` others, `f` of which failed, and this turn, each of the
`n + 1` was as likely as any other to be among the `f + 1` that failed: this turn failed with a
probability of `(f + 1) / (n + 1)`. The product of these, over all failures of a turn, is ever as
small as `p` with a probability of at most `p`, whatever share the receiver refuses and however
that share changes from one failure to the next (Ville's inequality: the expectation of
`[failed] (n + 1) / (f + 1)` is at most 1). Where nothing was acknowledged meanwhile the quotient
is 1, and the failure says nothing.
"""

from __future__ import annotations

import math
from collections import deque

#: Evidence from which on a turn is at fault: by chance one turn in a million comes so far.
CERTAIN = math.log(1e6)
#: Compared are at most so many attempts after a turn's last failure, and as many before this
#: one. More would lie too far from it: a receiver that is down for a minute and up for the
#: next acknowledges hundreds of turns in the one, and is met by few in the other.
_COMPARED_NEIGHBOURS = 5
#: So many attempts are remembered.
_REMEMBERED = 1024


class FaultEvidence:
    """What the last attempts of all turns ended with."""

    def __init__(self) -> None:
        self._attempts: deque[tuple[int, int, bool]] = deque(maxlen=_REMEMBERED)
        self._count = 0
        self._failed: dict[int, tuple[int, float]] = {}  # turn → which attempt, and evidence

    def acknowledged(self, turn: int) -> None:
        """Note that a turn got through."""
        self._record(turn, acknowledged=True)
        self._failed.pop(turn, None)

    def not_acknowledged(self, turn: int) -> None:
        """Note a failure that says nothing about the turn."""
        self._record(turn, acknowledged=False)

    def failed(self, turn: int) -> float:
        """Note a failure that may be the turn's own fault.

        Returns:
            How much it says against the turn, to be added up and compared with `CERTAIN`: the
            natural logarithm of how unlikely it was. 0 for a turn's first failure.
        """
        since, before = self._failed.get(turn, (None, 0.0))
        evidence = 0.0
        if since is not None:
            others = [passed for n, who, passed in self._attempts if n > since and who != turn]
            if len(others) > 2 * _COMPARED_NEIGHBOURS:
                others = others[:_COMPARED_NEIGHBOURS] + others[-_COMPARED_NEIGHBOURS:]
            evidence = math.log((len(others) + 1) / (others.count(False) + 1))
        self._record(turn, acknowledged=False)
        self._failed[turn] = self._count, before + evidence
        if len(self._failed) > _REMEMBERED:  # of turns that were superseded, or fail no more
            oldest = self._attempts[0][0]
            self._failed = {t: known for t, known in self._failed.items() if known[0] >= oldest}
        return evidence

    def evidence_of(self, turn: int) -> float:
        """What all failures of a turn say against it that are remembered."""
        return self._failed.get(turn, (0, 0.0))[1]

    def _record(self, turn: int, *, acknowledged: bool) -> None:
        self._count += 1
        self._attempts.append((self._count, turn, acknowledged))
