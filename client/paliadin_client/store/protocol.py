"""Defines what a store is: what is remembered of pushes, responses and windows, for all processes.

A store is a meeting point: what one process of the app puts there, each of them finds. The one in
memory has a single process, the one in SQLite those of one host, the one in PostgreSQL all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from paliadin_contract.callback import TurnCompleted, TurnFailed, decode
from paliadin_contract.errors import MalformedCallback

#: How long, in seconds, a push is known: its id and its rank. A sidecar sends until it is
#: acknowledged, keeps a body for 72 h after that for `replay`, and a row for 90 days after its file
#: has gone, unless its owner says otherwise. An older turn comes again only where an outbox was
#: lost and the file is still there, or where it keeps bodies for longer than this.
KEEP_IDS_S = 90 * 86_400.0
#: How long, in seconds, an answer is found by who asks for it. No deadline is longer than 27.8 h;
#: the app has it in its own records then, and here it would only be one more copy.
KEEP_BODIES_S = 28 * 3600.0


class Verdict(Enum):
    """What is to be done with a push.

    Attributes:
        NEW: it is to be stored.
        KNOWN: it was stored before.
        OUTRANKED: what was stored for its turn counts more.
        BUSY: it, or another push of its turn, is being stored just now.
    """

    NEW = "new"
    KNOWN = "known"
    OUTRANKED = "outranked"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Push:
    """A callback whose signature was proven.

    Attributes:
        webhook_id: the delivery's id, the same each time it is sent.
        callback: what it says.
        body: the JSON that came, of which `callback` was read.
    """

    webhook_id: str
    callback: TurnCompleted | TurnFailed = field(repr=False)
    body: bytes | bytearray = field(repr=False)

    @property
    def turn(self) -> str:
        """The id under which the app finds the turn: the submitted one, else the turn's own."""
        return self.callback.data.submitted_turn_id or self.callback.data.turn_id


def callback_in(body: bytes) -> TurnCompleted | TurnFailed | None:
    """What a stored push says; None where a later version of this package stored it."""
    try:
        callback = decode(body)
    except MalformedCallback:
        return None
    return callback if isinstance(callback, TurnCompleted | TurnFailed) else None


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a push stands with the store, for as long as it is being stored.

    Attributes:
        verdict: whether it is to be stored.
        connection: the transaction that stores it, for the app's own statements, where the store
            is a PostgreSQL (`psycopg.AsyncConnection`); else None.
    """

    verdict: Verdict
    connection: Any = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a store has for a turn.

    Attributes:
        push: the push that counts most, as long as its body is kept.
        reply: what the process that submitted the turn left for the others, in a form of its own.
    """

    push: TurnCompleted | TurnFailed | None = field(default=None, repr=False)
    reply: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Window:
    """A user's window or session, which takes one turn at a time.

    Attributes:
        name: of the window, with its backend.
        user_id: whose it is.
        turn_id: the turn that it is busy with; None where it is free.
        host: where it is, as its URL says; None where no host was chosen yet.
    """

    name: str
    user_id: str
    turn_id: str | None = None
    host: str | None = None


class Store(Protocol):
    """What each of the three does. Every method raises `StoreFailed` where it cannot."""

    #: Whether `on_turn` gets the transaction's connection as its second argument.
    has_connection: bool

    def receive(self, push: Push) -> AbstractAsyncContextManager[Receipt]:
        """Store a push in one transaction with what is done within the context.

        Where the verdict is `NEW`, a context that ends without an exception has stored the push,
        durably, and whoever waits for its turn is notified; with an exception nothing is stored.
        Nobody else gets `NEW` for this push or another one of its turn within the context.
        """
        ...

    async def find(self, turn_ids: Collection[str]) -> Mapping[str, Found]:
        """What there is for these turns, each under the submitted id or its own.

        A turn for which there is neither a push nor a reply is left out. The store is asked for no
        turns, too: then only that it answers is learnt.
        """
        ...

    async def leave_reply(self, turn_id: str, reply: bytes) -> None:
        """Leave what the backend said of a turn, and notify whoever waits for it."""
        ...

    def hints(self, on_hint: Callable[[str | None], None]) -> AbstractAsyncContextManager[None]:
        """Call `on_hint`, until the context ends, with the id of a turn that may be found now.

        None stands for any turn. A hint may be missing or wrong: what counts is what is found.
        Entering waits for nobody and fails only where it could never succeed: where the store is
        away, hints begin when it is back. Whenever they begin, `on_hint(None)` is called.
        """
        ...

    async def hold(self, window: Window, ttl_s: float) -> Window:
        """Let `window.turn_id` have the window for `ttl_s` seconds, if it is free or has it.

        A window that is another user's is left as it is, free or not.

        Returns:
            The window as it stands then: ours where user and turn are the ones that were given.
            Its host is the one that was known before; else the given one, which is known from now
            on.
        """
        ...

    async def release(self, window: Window, reply: bytes | None = None) -> None:
        """Free the window of `window.turn_id`, and notify whoever waits for that turn.

        With a reply it is left for the turn, as by `leave_reply`, in the same transaction.
        """
        ...

    async def move(self, window: Window) -> None:
        """Let the window of `window.turn_id` be on `window.host` from now on."""
        ...

    async def prune(self) -> None:
        """Remove some of what nobody can ask for any more, in a small step; called now and then."""
        ...

    async def aclose(self) -> None:
        """Let go of connections and files. The next use opens them again."""
        ...
