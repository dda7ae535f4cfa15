"""Asks whether hosts are well, and trusts for a while that they are."""

from __future__ import annotations

import math
from collections.abc import Callable

from paliadin_client.backend import User
from paliadin_client.hosts import Host

#: How long, in seconds, a health check that succeeded is trusted. A failure is not.
HEALTH_TRUST_S = 10.0


class Health:
    """What is known of each host's health.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        #: Until when the last check is trusted, by host and pane; "" stands for all panes.
        self._healthy_until: dict[tuple[str, str], float] = {}

    async def check(self, host: Host, user: User | None) -> None:
        """Return if the host is well, or was within the last 10 s.

        Args:
            host: which one.
            user: asks for this user's session, where the backend (legacy) knows the difference.

        Raises:
            PaliadinError: it is not.
        """
        backend = host.backend
        key = (host.name, backend.pane(user) if user and backend.health_per_pane else "")
        if self._clock() < self._healthy_until.get(key, -math.inf):
            return
        await backend.health(user)
        self._healthy_until[key] = self._clock() + HEALTH_TRUST_S
