"""Which turn does somebody mean, and which names in a root are no turn's?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from paliadin_contract.ids import is_turn_id, turn_id_of
from paliadin_sidecar.errors import NoSuchTurn
from paliadin_sidecar.operator.terminal import printable
from paliadin_sidecar.outbox.records import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paliadin_sidecar.outbox.outbox import Outbox

__all__ = ["ID_RULE", "STATES", "find_turn", "listed", "strays"]

#: The states of a delivery, as they are listed.
STATES = tuple(state.value for state in State)
ID_RULE = "a turn's file is <id>.txt, and an id has 1 to 64 of A-Z, a-z, 0-9, - and _"
#: As many candidates, or names, are shown.
MAX_SHOWN = 10
#: What writers leave beside their target until it is renamed.
_DRAFT = re.compile(r"\.tmp(\.|\Z)|\A\.|~\Z")


def find_turn(outbox: Outbox, given: str) -> str:
    """The id that is meant: by all of it, by a beginning that no other has, or by its file's name.

    Raises:
        NoSuchTurn: there is none, or there are several.
    """
    wanted = given.rpartition("/")[2].removesuffix(".txt")
    found = outbox.find_ids(wanted, MAX_SHOWN + 1) if is_turn_id(wanted) else []
    if len(found) == 1:
        return found[0]
    if found:
        raise NoSuchTurn(
            f"{given!r} is the beginning of several ids, name more of one: {listed(found)}"
        )
    if not is_turn_id(wanted):
        raise NoSuchTurn(
            f"{printable(given)!r} names no turn, and such a file is ignored: {ID_RULE}"
        )
    raise NoSuchTurn(
        f"No turn {given!r} is known; `paliadin-sidecar turns` lists them.", is_unknown=True
    )


def strays(names: Iterable[str]) -> list[str]:
    """The names that are no turn's, no token's and no writer's draft: nothing is taken of them."""
    return sorted(
        name
        for name in names
        if not (turn_id_of(name) or turn_id_of(name, ".jwt") or _DRAFT.search(name))
    )


def listed(names: list[str]) -> str:
    """A list for a person, cut where it gets long, and that is said."""
    # A blank in a name, or at its end, shows between quotes.
    shown = ", ".join(n if is_turn_id(n) else f"'{printable(n)}'" for n in names[:MAX_SHOWN])
    return f"{shown}, and more" if len(names) > MAX_SHOWN else shown
