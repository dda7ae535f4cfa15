"""Submits a turn: when its window is free, to a host that can be reached, and never twice."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import anyio

from paliadin_client import errors
from paliadin_client.backend import Reply, TurnRequest, User, primer_block
from paliadin_client.hosts import Host, Hosts
from paliadin_client.result import Response, encode
from paliadin_client.store.protocol import Found, Store, Window
from paliadin_client.store_writes import StoreWrites
from paliadin_client.waiting import Waiter, Waiters
from paliadin_client.windows import Windows
from paliadin_contract.callback import TurnCompleted, TurnFailed

_log = logging.getLogger(__name__)

#: How long, in seconds, a health check that succeeded is trusted. A failure is not.
_HEALTH_TRUST_S = 10.0
#: A response without a whole trailer may be half a file, and a push never is. So the push is waited
#: for this long before such a response is returned.
_PUSH_GRACE_S = 2.0
#: A push is the whole answer, but only aichat's response names the conversation and says that the
#: pane was fresh. So where the push comes first, the response is waited for this long.
_REPLY_GRACE_S = 0.25
#: Why a turn was not sent that has no window yet.
_STORE_SILENT = "the store did not answer, which knows whether its window is free"


@dataclass(slots=True)
class Submission:
    """How far a turn has come. It outlives the deadline that ends the wait.

    Attributes:
        request: what is asked.
        waiter: has the push when it is there.
        window: the user's, as it stood when this turn got it.
        started: when, by the clock.
        has_window: whether this turn has it.
        queued_s: how long it queued behind another turn, in seconds.
        unsent: why it was not sent yet; empty when it was.
        store_failed: the store's last error, while the turn waits for it.
        ready_at: when it could be sent: its window was free, and a host was well.
        host: where it was sent.
        fresh: whether the agent there did not know what was said before, and so got the primer.
        response: the backend's.
        unleft: how the submit ended, encoded, until it is left for others as the window is freed.
        lost: why there is none, where a push may still come.
    """

    request: TurnRequest
    waiter: Waiter
    window: Window
    started: float
    has_window: bool = False
    queued_s: float = 0.0
    unsent: str = _STORE_SILENT
    store_failed: errors.StoreFailed | None = None
    ready_at: float | None = None
    host: str | None = None
    fresh: bool = False
    response: Response | None = None
    unleft: bytes | None = field(default=None, repr=False)
    lost: errors.SubmitLost | None = field(default=None, repr=False)

    @property
    def is_open(self) -> bool:
        """Whether the submit is over, and a push may still bring the answer, or the rest of it."""
        if self.waiter.push is not None:
            return False
        return not self.response.reply.whole if self.response else self.lost is not None

    @property
    def log_ids(self) -> str:
        """How the log names the turn."""
        return f"turn_id={self.request.turn_id} user={self.request.user.user_id[:8]}"

    def times_ms(self, now: float) -> tuple[float, float]:
        """How long it took until it could be sent, and from there to now, in milliseconds."""
        ready_at = self.started if self.ready_at is None else self.ready_at
        return (ready_at - self.started) * 1000, (now - ready_at) * 1000


@dataclass(slots=True, eq=False)
class Submitter:
    """Submits turns; knows which hosts are well, and which agents were given what was said before.

    Args:
        hosts: where turns can go.
        windows: which turn may go.
        store: what other processes know.
        writes: brings there what they are to know.
        waiters: who waits in this process.
        pushes_come: whether an answer can come otherwise than by the backend's response.
        clock: monotonic, in seconds.
    """

    hosts: Hosts
    windows: Windows
    store: Store
    writes: StoreWrites
    waiters: Waiters
    pushes_come: bool
    clock: Callable[[], float]
    #: Until when the last check is trusted, by host and pane; "" stands for all panes.
    _healthy_until: dict[tuple[str, str], float] = field(init=False, default_factory=dict)
    #: By window, the host whose agent knows what was said before.
    _primed: dict[str, str] = field(init=False, default_factory=dict)

    @asynccontextmanager
    async def turn(self, request: TurnRequest) -> AsyncIterator[Submission]:
        """A turn that can be submitted. When the context ends, its window is free.

        Raises:
            BadRequest: the turn is being waited for already, or the backend would refuse it.
        """
        window = self.hosts.window(request.user, request.turn_id)
        self._prepare(self.hosts.in_order(request.user)[0], request, window)
        with self.waiters.expect(request.turn_id) as waiter:
            turn = Submission(request, waiter, window, started=self.clock())
            try:
                yield turn
            finally:
                self._note_primed(turn)
                if turn.has_window:
                    await self.windows.release(turn.window, turn.unleft)
                    self.waiters.offer_found(request.turn_id, Found(reply=turn.unleft))

    async def submit(self, turn: Submission) -> None:
        """Return when there is a push or a response, or the backend is lost and a push may come.

        How it ended is left in the store, for whoever waits elsewhere. Where there is a push, no
        failure counts.

        Raises:
            BadRequest: the window is another user's.
            PaliadinError: the backend's failure, where no push can mend it.
        """
        try:
            await self._look(turn)
            await self._take_window(turn)
            if turn.waiter.push is None:
                await self._send(turn)
        except errors.PaliadinError as exc:
            if turn.waiter.push is None:
                await self._leave_of(turn, exc)
                raise
        if turn.response is not None:
            await self._leave_of(turn, turn.response)

    async def wait(self, turn: Submission) -> None:
        """Wait for the push that can still come after the submit."""
        if turn.response is not None:
            await self.wait_for_rest(turn.waiter, turn.response)
        elif self.pushes_come:
            await turn.waiter.arrived.wait()

    async def wait_for_rest(self, waiter: Waiter, response: Response) -> None:
        """Wait for the push, for 2 s, where it may bring more than this response."""
        if waiter.push is None and self.pushes_come and not response.reply.whole:
            # The backend may have named the turn. Without a token the push has no other id.
            self.waiters.add_alias(waiter, response.reply.turn_id)
            with anyio.move_on_after(_PUSH_GRACE_S):
                await waiter.arrived.wait()

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
        if self.clock() < self._healthy_until.get(key, -math.inf):
            return
        try:
            await backend.health(user)
        except errors.PaliadinError:
            if backend.health_per_pane:
                self._primed.clear()  # the agents may have been started afresh
            raise
        self._healthy_until[key] = self.clock() + _HEALTH_TRUST_S

    async def leave(self, turn_id: str, outcome: Response | errors.PaliadinError | None) -> None:
        """Leave how a turn's submit ended for whoever waits for it; None where it is asked anew."""
        reply = encode(outcome)
        await self.writes.write(partial(self.store.leave_reply, turn_id, reply), "leave_reply")
        # Who waits in this process need not wait for the store.
        self.waiters.offer_found(turn_id, Found(reply=reply))

    async def _leave_of(self, turn: Submission, outcome: Response | errors.PaliadinError) -> None:
        if turn.has_window and not turn.is_open:
            turn.unleft = encode(outcome)  # the window is freed next: one transaction less
        else:
            await self.leave(turn.request.turn_id, outcome)

    def forget(self, window: str) -> None:
        """This window's agent may know nothing of what was said before."""
        self._primed.pop(window, None)

    async def _look(self, turn: Submission) -> None:
        turn_id = turn.request.turn_id
        try:
            found = (await self.store.find([turn_id])).get(turn_id, Found())
        except errors.StoreFailed:
            return  # the window is waited for until it is back
        if found.push is not None:
            turn.waiter.offer(found.push)
        elif found.reply:
            await self.leave(turn_id, None)  # that was how it ended before

    async def _take_window(self, turn: Submission) -> None:
        if turn.waiter.push is not None:
            return
        since, was_queued = self.clock(), False

        def on_wait(failed: errors.StoreFailed | None) -> None:
            nonlocal was_queued
            if failed is None:
                was_queued = True
                turn.unsent = "it was queued behind another turn of its window"
            else:
                turn.unsent = _STORE_SILENT
                if turn.store_failed is None:
                    _log.warning("turn.store_away %s error=%s", turn.log_ids, failed)
            turn.store_failed = failed

        with anyio.CancelScope() as queueing:
            turn.waiter.on_push = queueing.cancel
            try:
                standing = await self.windows.hold(turn.window, on_wait)
            finally:
                if was_queued:
                    turn.queued_s = self.clock() - since
            if standing.user_id != turn.window.user_id:
                raise another_users(self.hosts.backend.pane(turn.request.user))
            turn.window, turn.has_window = standing, True
            turn.store_failed = None

    async def _send(self, turn: Submission) -> None:
        user = turn.request.user
        hosts = self.hosts.in_order(user, turn.window.host)
        unreachable: dict[str, errors.Unreachable] = {}
        for host in hosts:
            turn.unsent = "no host had said that it is well"
            try:
                await self.check(host, user)
                turn.ready_at = self.clock()
                if turn.waiter.push is None:
                    await self._send_to(host, turn)
            except errors.Unreachable as exc:
                if turn.waiter.push is not None or (turn.host == host.name and exc.answered):
                    raise  # it is answered, or whatever answered may have passed the turn on
                unreachable[host.name] = exc
                if len(unreachable) < len(hosts):
                    _log.warning("turn.host_left %s host=%s error=%s", turn.log_ids, host.name, exc)
            else:
                return
        raise none_well(unreachable)

    async def _send_to(self, host: Host, turn: Submission) -> None:
        turn.fresh, submit = self._prepare(host, turn.request, turn.window)
        if host.name != turn.window.host:
            turn.window = await self.windows.move(turn.window, host.name)
            if turn.waiter.push is not None:
                return  # it came meanwhile, so nothing is sent
        turn.host, turn.unsent = host.name, ""
        _log.info(
            "turn.submitted %s backend=%s host=%s", turn.log_ids, host.backend.name, host.name
        )
        with anyio.CancelScope() as submitting:

            def end() -> None:
                has_more = host.backend.reply_has_metadata
                wanted = has_more and not isinstance(turn.waiter.push, TurnFailed)
                submitting.deadline = anyio.current_time() + (_REPLY_GRACE_S if wanted else 0)

            turn.waiter.on_push = end
            try:
                reply = await submit()
            except errors.SubmitLost as exc:
                if not self.pushes_come:
                    raise
                turn.lost = exc
                _log.info("turn.submit_lost %s error=%s", turn.log_ids, exc)
            else:
                named = reply.conversation_id or turn.request.conversation_id
                if named != reply.conversation_id:
                    reply = replace(reply, conversation_id=named)
                turn.response = Response(reply, host.name, *turn.times_ms(self.clock()))

    def _prepare(
        self, host: Host, request: TurnRequest, window: Window
    ) -> tuple[bool, Callable[[], Awaitable[Reply]]]:
        fresh = self._primed.get(window.name) != host.name
        primer = primer_block(request.primer) if fresh else ""
        return fresh, host.backend.prepare(request, primer)

    def _note_primed(self, turn: Submission) -> None:
        answered = isinstance(turn.waiter.push, TurnCompleted) or (
            turn.response is not None and turn.response.reply.text.strip()
        )
        if turn.host is None or not answered:
            return
        if turn.response is not None and turn.response.reply.pane_spawned and not turn.fresh:
            self.forget(turn.window.name)  # the agent was fresh after all, and got no primer
        else:
            self._primed[turn.window.name] = turn.host


def another_users(window: str) -> errors.BadRequest:
    """Refuses whoever would land in the window of another user."""
    return errors.BadRequest(
        f"the window {window} is another user's: two users share one where their addresses "
        "have one local part, or their ids the same first 8 digits. Give one of them "
        "another address, or none"
    )


def none_well(found: Mapping[str, errors.PaliadinError]) -> errors.PaliadinError:
    """What is raised where no host will do: its own error, where there is just one."""
    first, *others = found.values()
    if not others:
        return first
    kind = type(first) if len({type(each) for each in found.values()}) == 1 else errors.ShimError
    error = kind(
        f"none of {len(found)} hosts can be asked",
        retryable=any(exc.retryable for exc in found.values()),
    )
    # Our own words of each, and so not cut like a backend's.
    error.detail = "; ".join(f"{host}: {exc.args[0]}" for host, exc in found.items())
    return error
