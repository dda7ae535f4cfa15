"""What `run_turn` itself costs: a backend that answers at once. Prints µs, the median."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, ClassVar

import anyio

from paliadin_client import Paliadin, TurnRequest, User
from paliadin_client.backend import Reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_TURNS = 2000
_REPLY = Reply(text="Antwort", trailer=None, whole=True)


class NullBackend:
    """Answers at once."""

    name: ClassVar[str] = "null"
    reply_has_metadata: ClassVar[bool] = False
    health_per_pane: ClassVar[bool] = False

    def pane(self, user: User) -> str:
        """A name of its own for each user."""
        return user.user_id

    def prepare(self, _request: TurnRequest, _primer: str) -> Callable[[], Awaitable[Reply]]:
        """Nothing to prepare."""
        return self._reply

    async def _reply(self) -> Reply:
        return _REPLY

    async def health(self, _user: User | None, /) -> None:
        """It is well."""

    async def reset(self, _user: User) -> None:
        """Nothing to reset."""


async def main() -> None:
    """Ask, over and over."""
    paliadin = Paliadin(NullBackend(), inbox=None, deadline_s=300)
    user = User("0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11")
    took = []
    for _ in range(_TURNS):
        request = TurnRequest(user=user, message="Welche Fristen laufen morgen ab?")
        began = time.perf_counter()
        await paliadin.run_turn(request)
        took.append((time.perf_counter() - began) * 1e6)
    print(f"{statistics.median(took):.1f}")


anyio.run(main)
