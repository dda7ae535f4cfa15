"""Chooses the host for a user's turns: the one that has his window, else one by his id.

The choice by id is rendezvous hashing: every process makes the same one without asking another,
and a host that comes or goes moves nobody but those who are on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from paliadin_client.backend import Backend, User
from paliadin_client.store.protocol import Window


@dataclass(frozen=True, slots=True)
class Host:
    """A host, by the name that the settings have for it, and the way to it."""

    name: str
    backend: Backend


class Hosts:
    """All hosts that there are; their backends are of one kind.

    Args:
        backends: the way to each host, by the host's name; at least one.
        scope: the windows' names are unique within it; None is the backend's own name.
    """

    def __init__(self, backends: Mapping[str, Backend], *, scope: str | None = None) -> None:
        self._hosts = {name: Host(name, backend) for name, backend in backends.items()}
        #: Any host's backend: what all of them say alike is asked of this one.
        self.backend = next(iter(backends.values()))
        self._scope = scope or self.backend.name

    def all(self) -> tuple[Host, ...]:
        """The hosts, as the settings name them."""
        return tuple(self._hosts.values())

    def window(self, user: User, turn_id: str) -> Window:
        """The user's window for this turn, on the host that is his where no store knows another.

        It is named with the scope, since apps may share a store that ask other agents.
        """
        name = f"{self._scope}:{self.backend.pane(user)}"
        return Window(name, user.user_id.lower(), turn_id, self.in_order(user)[0].name)

    def in_order(self, user: User, first: str | None = None) -> list[Host]:
        """The hosts in the order in which this user's turn tries them.

        Args:
            user: whose turn it is.
            first: name of the host that has the user's window. One that the settings do not name
                any more is passed over.
        """
        if len(self._hosts) == 1:
            return [*self._hosts.values()]
        ranked = rendezvous(user.user_id, tuple(self._hosts))
        return [self._hosts[name] for name in sorted(ranked, key=lambda name: name != first)]


def rendezvous(user_id: str, names: tuple[str, ...]) -> list[str]:
    """The names in this user's own order, whose first one is the host of his choice."""
    key = user_id.lower()
    return sorted(names, key=lambda name: hashlib.sha256(f"{name}\n{key}".encode()).digest())
