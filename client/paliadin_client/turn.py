"""Runs a turn, and returns what comes first: the backend's response or the sidecar's push."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Literal

import anyio

from paliadin_client import errors
from paliadin_client.backend import Backend, Reply, TurnRequest, User, primer_block
from paliadin_client.inbox import Inbox
from paliadin_client.text import one_line
from paliadin_client.waiting import Waiter
from paliadin_contract.callback import TurnFailed
from paliadin_contract.ids import is_turn_id
from paliadin_contract.trailer import Trailer, split

__all__ = ["HEALTH_TRUST_S", "Paliadin", "Timings", "TurnResult"]

_log = logging.getLogger(__name__)

#: How long, in seconds, a health check that succeeded is trusted. A failure is not.
HEALTH_TRUST_S = 10.0
#: A response without a whole trailer may be half a file, and a push never is. So the push is waited
#: for this long before such a response is returned.
_PUSH_GRACE_S = 2.0
#: A push is the whole answer, but only aichat's response names the conversation and says that the
#: pane was fresh. So where the push comes first, the response is waited for this long.
_REPLY_GRACE_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long a turn took.

    Attributes:
        health_ms: until the health check had passed, in milliseconds.
        answer_ms: from there to the answer, in milliseconds.
        backend_ms: what the backend says that it took, in milliseconds, where it says so.
        completed_at: when the answer's file was complete on the host, where a push said so.
    """

    health_ms: float
    answer_ms: float
    backend_ms: float | None
    completed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnResult:
    """An answer.

    Attributes:
        text: the answer in Markdown, without its trailer.
        trailer: what the agent said about it, where it did.
        turn_id: the request's.
        conversation_id: the backend's, where it named one in time, else the request's.
        revision: of a push, 1 for the file's first content; a response has none.
        via: which of the two brought it.
        timings: how long it took.
    """

    text: str = field(repr=False)
    trailer: Trailer | None = field(repr=False)
    turn_id: str
    conversation_id: str | None
    revision: int | None
    via: Literal["response", "push"]
    timings: Timings


@dataclass(slots=True)
class _Submission:
    """What the submit has brought so far. It outlives the deadline that ends the wait."""

    started: float
    reply: Reply | None = None
    lost: errors.SubmitLost | None = None


class Paliadin:
    """The assistant, by way of one backend. Made by `connect`.

    Args:
        backend: the way to the host.
        inbox: where its pushes arrive; None leaves the backend's own response alone.
        deadline_s: how long `run_turn` waits in all, in seconds.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        inbox: Inbox | None = None,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._inbox = inbox
        self._deadline_s = deadline_s
        self._clock = clock
        #: Panes whose agent knows what was said before.
        self._primed: set[str] = set()
        #: The user of each pane: two users in one would read each other's conversation.
        self._owners: dict[str, str] = {}
        #: Until when a pane's last health check is trusted. "" stands for all panes.
        self._healthy_until: dict[str, float] = {}

    async def health(self, user: User | None = None) -> None:
        """Return if the backend is well, or was within the last 10 s.

        Args:
            user: asks for this user's session, where the backend (legacy) knows the difference.

        Raises:
            PaliadinError: it is not.
        """
        key = self._backend.pane(user) if user and self._backend.health_per_pane else ""
        if self._clock() < self._healthy_until.get(key, -math.inf):
            return
        try:
            await self._backend.health(user)
        except errors.PaliadinError:
            if self._backend.health_per_pane:
                self._primed.clear()  # the agents may have been started afresh
            raise
        self._healthy_until[key] = self._clock() + HEALTH_TRUST_S

    async def run_turn(self, request: TurnRequest) -> TurnResult:
        """Ask, and return the answer: by the backend's response or by a push, whichever is first.

        Cancelling it leaves nothing behind on this side; the agent may go on, and its answer
        still reaches the inbox's `on_turn`.

        Raises:
            TurnTimeout: no answer within the deadline; a later one still reaches `on_turn`.
            AnswerUnusable: the agent wrote a file that cannot become an answer.
            BadRequest: refused; before anything was sent, if it is refused here. So is a user
                whose window another user has used.
            PaliadinError: the backend's own failure; with an inbox, one that leaves the turn
                open (`SubmitLost`) does not end the wait.
        """
        _check_request(request)
        pane = self._pane(request.user)
        fresh = pane not in self._primed
        primer = primer_block(request.primer) if fresh else ""
        submit = self._backend.prepare(request, primer)
        self._primed.add(pane)
        log_ids = f"turn_id={request.turn_id} user={request.user.user_id[:8]}"
        try:
            result, spawned = await self._run(request, submit, log_ids)
        except BaseException as exc:
            if fresh:
                self._primed.discard(pane)
            # The error is raised on. Only its name is logged, since its text may hold anything.
            _log.info("turn.unanswered %s error=%s", log_ids, type(exc).__name__)
            raise
        if spawned and not fresh:
            self._primed.discard(pane)  # the agent was fresh after all, and got no primer
        _log.info(
            "turn.answered %s via=%s revision=%s ms=%.0f",
            *(log_ids, result.via, result.revision, result.timings.answer_ms),
        )
        return result

    async def reset_session(self, user: User) -> None:
        """End the very window or session that this user's turns use.

        Raises:
            BadRequest: the window is another user's.
            PaliadinError: it could not be ended.
        """
        _check_id(user.user_id, "user")
        pane = self._pane(user)
        try:
            await self._backend.reset(user)
        finally:
            self._primed.discard(pane)
        _log.info("session.reset user=%s", user.user_id[:8])

    def _pane(self, user: User) -> str:
        pane = self._backend.pane(user)
        if self._owners.setdefault(pane, user.user_id.lower()) != user.user_id.lower():
            raise errors.BadRequest(
                f"the window {pane} is another user's: two users share one where their addresses "
                "have one local part, or their ids the same first 8 digits. Give one of them "
                "another address, or none"
            )
        return pane

    async def _run(
        self, request: TurnRequest, submit: Callable[[], Awaitable[Reply]], log_ids: str
    ) -> tuple[TurnResult, bool]:
        started = self._clock()
        submission = _Submission(started)
        expected = self._inbox.expect(request.turn_id) if self._inbox else nullcontext(Waiter())
        with anyio.move_on_after(self._deadline_s), expected as waiter:
            if waiter.push is None:
                await self.health(request.user)
                submission.started = self._clock()
            if waiter.push is None:
                _log.info("turn.submitted %s backend=%s", log_ids, self._backend.name)
                await self._race(submit, waiter, submission, log_ids)
        reply, push = submission.reply, waiter.push
        if isinstance(push, TurnFailed):
            raise errors.AnswerUnusable(request.turn_id, push.data.reason)
        if push is not None:
            text, trailer = split(push.data.response)
        elif reply is None:
            raise errors.TurnTimeout(request.turn_id, self._deadline_s) from submission.lost
        elif not reply.text.strip():
            raise errors.ShimError("the backend's answer has no text", retryable=True)
        else:
            text, trailer = reply.text, reply.trailer
        result = TurnResult(
            text=text,
            trailer=trailer,
            turn_id=request.turn_id,
            conversation_id=(reply and reply.conversation_id) or request.conversation_id,
            revision=push.data.revision if push else None,
            via="push" if push else "response",
            timings=Timings(
                health_ms=(submission.started - started) * 1000,
                answer_ms=(self._clock() - submission.started) * 1000,
                backend_ms=reply.duration_ms if reply else None,
                completed_at=push.data.completed_at if push else None,
            ),
        )
        return result, reply is not None and reply.pane_spawned

    async def _race(
        self,
        submit: Callable[[], Awaitable[Reply]],
        waiter: Waiter,
        submission: _Submission,
        log_ids: str,
    ) -> None:
        with anyio.CancelScope() as submitting:
            waiter.on_push = partial(self._end_submit, submitting, waiter)
            try:
                submission.reply = await submit()
            except errors.SubmitLost as exc:
                if self._inbox is None:
                    raise
                submission.lost = exc
                _log.info("turn.submit_lost %s error=%s", log_ids, exc)
            except errors.PaliadinError:
                if waiter.push is None:
                    raise
        if self._inbox is None or waiter.push is not None:
            return
        if submission.reply is None:
            await waiter.arrived.wait()
        elif not submission.reply.whole:
            # The backend may have named the turn itself. Without a token the push has no other id.
            self._inbox.add_alias(waiter, submission.reply.turn_id)
            with anyio.move_on_after(_PUSH_GRACE_S):
                await waiter.arrived.wait()

    def _end_submit(self, submitting: anyio.CancelScope, waiter: Waiter) -> None:
        wanted = self._backend.reply_has_metadata and not isinstance(waiter.push, TurnFailed)
        submitting.deadline = anyio.current_time() + (_REPLY_GRACE_S if wanted else 0)


def _check_request(request: TurnRequest) -> None:
    _check_id(request.turn_id, "turn")
    _check_id(request.user.user_id, "user")
    for what, text in (
        ("message", request.message),
        ("user's e-mail address", request.user.email or ""),
        ("conversation id", request.conversation_id or ""),
    ):
        if not isinstance(text, str):
            raise errors.BadRequest(f"the {what} is a {type(text).__name__}, and must be a str")
    if not one_line(request.message):
        raise errors.BadRequest("the message is empty")


def _check_id(text: object, whose: str) -> None:
    # It comes back in a push, which takes ids alone, and stands in logs.
    if not isinstance(text, str):
        kind = type(text).__name__
        raise errors.BadRequest(f"the {whose} id is a {kind}: a str or a uuid.UUID is one")
    if not is_turn_id(text):
        raise errors.BadRequest(f"the {whose} id is no id: letters, digits, - and _, at most 64")
