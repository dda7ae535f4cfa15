"""Defines what a backend is, and what is asked of it: the seam between a turn and the two ways."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol
from uuid import UUID, uuid4

import anyio

from paliadin_client.errors import BadRequest, Unreachable
from paliadin_client.text import one_line
from paliadin_contract.trailer import Trailer

#: More than this is no answer, whoever sends it; it bounds what we keep in memory.
MAX_ANSWER_BYTES = 32 * 1024 * 1024
_PRIMER_EXCHANGES = 5
_PRIMER_CHARS = 600


@dataclass(frozen=True, slots=True)
class User:
    """Who asks. Both are needed wherever the user's window or session is meant.

    Attributes:
        user_id: their id; a `uuid.UUID` is taken too, and kept as its text.
        email: their address, whose local part names their window over aichat.
    """

    user_id: str
    email: str | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.user_id, UUID):
            object.__setattr__(self, "user_id", str(self.user_id))


@dataclass(frozen=True, slots=True, repr=False)
class Exchange:
    """A question of before and its answer, for the primer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """One question.

    Attributes:
        user: who asks.
        message: the question. Line breaks and control characters do not reach the agent.
        primer: what was said before, oldest first; sent to an agent that does not know it.
        conversation_id: passed on to a backend that knows conversations, as one line that UTF-8
            can hold; a UUID is taken too.
        turn_id: a UUID of the caller's, or its text, where it stores the turn before it asks.
    """

    user: User
    message: str = field(repr=False)
    primer: Sequence[Exchange] = field(default=(), repr=False)
    conversation_id: str | None = None
    turn_id: str = field(default_factory=lambda: str(uuid4()))

    def __post_init__(self) -> None:
        for name in ("turn_id", "conversation_id"):
            if isinstance(value := getattr(self, name), UUID):
                object.__setattr__(self, name, str(value))
        if isinstance(self.conversation_id, str):  # it is left in the store with the response
            object.__setattr__(self, "conversation_id", one_line(self.conversation_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A backend's own response.

    Attributes:
        text: the answer without its trailer.
        trailer: what the agent said about it.
        whole: whether the trailer shows that the answer had ended when it was read.
        turn_id: the backend's own name for the turn, where it says one.
        conversation_id: likewise.
        pane_spawned: whether the agent was started for this turn.
        duration_ms: what the backend measured, in milliseconds.
    """

    text: str = field(repr=False)
    trailer: Trailer | None
    whole: bool
    turn_id: str | None = None
    conversation_id: str | None = None
    pane_spawned: bool = False
    duration_ms: float | None = None


class Backend(Protocol):
    """A way to the host. Every method raises `PaliadinError`, and nothing else of its own."""

    name: ClassVar[str]
    #: Whether its response says what a push does not: a fresh pane, a conversation.
    reply_has_metadata: ClassVar[bool]
    #: Whether a health check is of one pane, and its failure means that panes may be fresh.
    health_per_pane: ClassVar[bool]

    def pane(self, user: User) -> str:
        """Name of the window or session that this user's turns use."""
        ...

    def prepare(self, request: TurnRequest, primer: str) -> Callable[[], Awaitable[Reply]]:
        """The submit, ready to be awaited; whatever can be refused unsent is refused here."""
        ...

    async def health(self, user: User | None, /) -> None:
        """Return if the backend is well; where it knows the difference, for this user's pane."""
        ...

    async def reset(self, user: User) -> None:
        """End the window or session that this user's turns use."""
        ...


@contextmanager
def answers_within(seconds: float, who: str) -> Iterator[None]:
    """Ends what is awaited in this context when it takes longer.

    Raises:
        Unreachable: it took longer; `who` is named in its text.
    """
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError:
        raise Unreachable(f"{who} did not answer within {seconds:g} s") from None


def primer_block(exchanges: Sequence[Exchange]) -> str:
    """The primer as the agent reads it, trimmed; empty where nothing was said before."""
    last = exchanges[-_PRIMER_EXCHANGES:]
    if not last:
        return ""
    said = (f"U: {_side(each.question)} A: {_side(each.answer)}" for each in last)
    return f"[primer last={len(last)}] {' '.join(said)} [/primer]"


def _side(text: str) -> str:
    # An answer that quotes the closing mark must not end the primer.
    return one_line(text).replace("[/primer", "[ /primer")[:_PRIMER_CHARS]


def userid8(user: User) -> str:
    """The first 8 hex digits of the user's id.

    Raises:
        BadRequest: the id is no UUID, or of a version whose first digits are time: users who
            came in the same minute would share a session, and read each other's answers.
    """
    parsed = parse_uuid(user.user_id)
    if parsed is None:
        raise BadRequest("the user id is no UUID")
    # The digit is read itself: `UUID.version` is None for other variants, whose first digits are a
    # clock's all the same.
    version = parsed.hex[12]
    if version in "67":
        raise BadRequest(
            f"the user id is a UUID of version {version}: it begins with a time, so that "
            "users would share a session"
        )
    return parsed.hex[:8]


def parse_uuid(text: str) -> UUID | None:
    """The UUID that `text` is in its usual form (`8-4-4-4-12`), else None."""
    try:
        parsed = UUID(text)
    except ValueError:
        return None
    return parsed if str(parsed) == text.lower() else None
