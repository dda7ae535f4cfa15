"""Decides which of two pushes of one turn counts; `docs/protocol.md` has the rule for receivers.

Order of arrival says nothing: an attempt that ran into its deadline may still be at work when the
next one comes. So a receiver keeps the rank of what it has, and compares.
"""

from __future__ import annotations

from typing import NamedTuple

from paliadin_contract.callback import TurnCompleted, TurnFailed


class Rank(NamedTuple):
    """What a push is worth.

    Attributes:
        file: which file it is of: `<backend>_<persona>_<turn_id>`.
        answered: whether it is an answer, and no failure.
        revision: counts what was made of that file.
    """

    file: str
    answered: bool
    revision: int


def rank_of(callback: TurnCompleted | TurnFailed) -> Rank:
    """What this push is worth."""
    data = callback.data
    file = f"{data.backend}_{data.persona}_{data.turn_id}"
    return Rank(file, isinstance(callback, TurnCompleted), data.revision)


def outranks(new: Rank, old: Rank | None) -> bool:
    """Whether `new` takes the place of `old`, which is of the same turn; None is no push yet.

    An answer outranks a failure, whatever their files and revisions. An answer is replaced only by
    one of the same file: whoever can write a file can name any turn in it, and must not rewrite
    what another file answered. Of one file the higher revision counts; at the same revision the
    later push, since a sidecar that lost its outbox counts from 1 again.
    """
    if old is None or new.answered != old.answered:
        return old is None or new.answered
    if new.file != old.file:
        return not new.answered
    return new.revision >= old.revision
