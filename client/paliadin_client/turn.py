"""Runs a turn: submits it, and returns what comes first, the backend's response or a push."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Self
from uuid import uuid4

import anyio
import anyio.lowlevel

from paliadin_client import errors
from paliadin_client.backend import Backend, TurnRequest, User
from paliadin_client.hosts import Host, Hosts
from paliadin_client.inbox import Inbox
from paliadin_client.result import Response, TurnResult, conclude, decode
from paliadin_client.store.memory import MemoryStore
from paliadin_client.store.protocol import Store
from paliadin_client.store_writes import StoreWrites
from paliadin_client.submission import Submission, Submitter, another_users, none_well
from paliadin_client.tasks import Tasks
from paliadin_client.text import one_line
from paliadin_client.waiting import Waiters
from paliadin_client.windows import Windows
from paliadin_contract.ids import is_turn_id

_log = logging.getLogger(__name__)

#: How long the first look may take of whoever asks for a turn's result, also where he only looks.
_LOOK_S = 5.0


class Paliadin:
    """The assistant, by way of one backend. Made by `connect`.

    Args:
        backend: the way to the host, or to several.
        inbox: where pushes arrive; None leaves those that other processes put into the store.
        store: what the processes of the app know together; None is the inbox's, else this
            process's own memory.
        deadline_s: how long `run_turn` waits in all, in seconds.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        backend: Backend | Hosts,
        *,
        inbox: Inbox | None = None,
        store: Store | None = None,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hosts = backend if isinstance(backend, Hosts) else Hosts({backend.name: backend})
        #: Who waits in this process, and where it is looked up what others left for them.
        self.waiters = Waiters() if inbox is None else inbox
        self.store = store or (inbox.store if inbox else MemoryStore())
        self._deadline_s = deadline_s
        self._clock = clock
        #: One renews what is leased, others wait for turns that `submit` left open, or write again
        #: what the store did not take.
        self._tasks = Tasks()
        writes = StoreWrites(self._tasks)
        self._windows = Windows(self.store, writes, self.waiters)
        self._submitter = Submitter(
            self._hosts,
            self._windows,
            store=self.store,
            writes=writes,
            waiters=self.waiters,
            pushes_come=inbox is not None or store is not None,
            clock=clock,
        )

    async def health(self, user: User | None = None) -> Mapping[str, errors.PaliadinError | None]:
        """Return if a host is well, or was within the last 10 s.

        Args:
            user: asks for this user's session, where the backend (legacy) knows the difference.

        Returns:
            What is wrong with each host, by its name in the settings; None where it is well.

        Raises:
            PaliadinError: none is well.
        """
        found = await self.health_of_hosts(user)
        if None not in found.values():
            raise none_well({host: exc for host, exc in found.items() if exc is not None})
        return found

    async def health_of_hosts(
        self, user: User | None = None
    ) -> Mapping[str, errors.PaliadinError | None]:
        """As `health`, and also returned where no host is well."""
        found: dict[str, errors.PaliadinError | None] = {}

        async def ask(host: Host) -> None:
            try:
                await self._submitter.check(host, user)
            except errors.PaliadinError as exc:
                found[host.name] = exc

        hosts = self._hosts.all()
        async with anyio.create_task_group() as asking:
            for host in hosts:
                asking.start_soon(ask, host)
        return {host.name: found.get(host.name) for host in hosts}

    async def run_turn(self, request: TurnRequest) -> TurnResult:
        """Ask, and return the answer: by the backend's response or by a push, whichever is first.

        While another turn has the user's window, this one waits, within its own deadline.
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
        async with self._submitter.turn(request) as turn:
            with _unanswered_logged(turn):
                with anyio.move_on_after(self._deadline_s):
                    await self._submitter.submit(turn)
                    await self._submitter.wait(turn)
                if turn.waiter.push is None and turn.response is None:
                    raise await self._timeout(turn) from turn.lost or turn.store_failed
                health_ms, answer_ms = turn.times_ms(self._clock())
                result = conclude(
                    request.turn_id,
                    turn.waiter.push,
                    turn.response,
                    conversation_id=request.conversation_id,
                    health_ms=health_ms,
                    answer_ms=answer_ms,
                )
        _log.info(
            "turn.answered %s via=%s revision=%s ms=%.0f",
            *(turn.log_ids, result.via, result.revision, answer_ms),
        )
        return result

    async def submit(self, request: TurnRequest) -> None:
        """Ask, and return when the answer is there, or can come by a push alone.

        `result` then returns the answer, in this process or another one that shares the store.
        Where it can come by a push alone, the next turn of the window waits for it meanwhile,
        until the deadline.

        Raises:
            TurnTimeout: neither came within the deadline.
            PaliadinError: as in `run_turn`; `result` raises the same.
        """
        _check_request(request)
        async with AsyncExitStack() as stack:
            turn = await stack.enter_async_context(self._submitter.turn(request))
            with _unanswered_logged(turn):
                with anyio.move_on_after(self._deadline_s) as limit:
                    await self._submitter.submit(turn)
                if turn.is_open:
                    waiting = self._wait_for_push(stack.pop_all(), turn, limit.deadline)
                    self._tasks.start(waiting, "paliadin wait")
                    # One that is ended before its first step would not free the window.
                    await anyio.lowlevel.cancel_shielded_checkpoint()
                elif turn.waiter.push is None and turn.response is None:
                    raise await self._timeout(turn) from turn.store_failed

    async def result(
        self,
        turn_id: str,
        timeout: float | None = None,  # noqa: ASYNC109 - what a caller passes on from a page
    ) -> TurnResult:
        """The answer to a turn that was submitted: here or in a process that shares the store.

        Any number may ask for one turn, also after it was answered: for 28 h where the store is
        shared, and else as long as this process remembers the answer.

        Args:
            turn_id: the request's. Whose turn it is only the app can say.
            timeout: how long to wait, in seconds; 0 only looks, None is `PALIADIN_DEADLINE_S`. A
                response that may be half a file is returned 2 s later, unless the push comes.

        Raises:
            TurnTimeout: there is neither an answer nor a failure in time.
            AnswerUnusable: the agent wrote a file that cannot become an answer.
            PaliadinError: how the submit failed, without what the backend said (`detail`).
        """
        turn_id = str(turn_id)  # a uuid.UUID is one too
        _check_id(turn_id, "turn")
        limit_s = self._deadline_s if timeout is None else timeout
        started = self._clock()
        until = anyio.current_time() + limit_s
        with self.waiters.expect(turn_id, shared=True) as waiter:
            # All who ask at once are looked for together. A look takes no time worth speaking of.
            with anyio.move_on_after(max(limit_s, _LOOK_S)):
                await waiter.looked.wait()
            with anyio.CancelScope(deadline=until):
                while waiter.push is None and decode(waiter.reply) is None:
                    waiter.changed = anyio.Event()
                    await waiter.changed.wait()
            outcome = decode(waiter.reply)
            if isinstance(outcome, Response):
                await self._submitter.wait_for_rest(waiter, outcome)
        if waiter.push is None and outcome is None:
            raise errors.TurnTimeout(turn_id, limit_s) from waiter.failed
        if waiter.push is None and isinstance(outcome, errors.PaliadinError):
            raise outcome
        response = outcome if isinstance(outcome, Response) else None
        waited_ms = (self._clock() - started) * 1000
        return conclude(
            turn_id,
            waiter.push,
            response,
            health_ms=response.health_ms if response else 0.0,
            answer_ms=response.answer_ms if response else waited_ms,
        )

    async def reset_session(self, user: User) -> None:
        """End the very window or session that this user's turns use.

        A turn that has the window is not waited for, and holds up the next one no longer: its
        answer will hardly come.

        Raises:
            BadRequest: the window is another user's.
            PaliadinError: it could not be ended.
        """
        _check_id(user.user_id, "user")
        # Whose the window is, and where, is seen by asking for it, under an id that no turn has.
        window = await self._windows.look(self._hosts.window(user, f"reset-{uuid4()}"))
        if window.user_id != user.user_id.lower():
            raise another_users(self._hosts.backend.pane(user))
        try:
            await self._hosts.in_order(user, window.host)[0].backend.reset(user)
        finally:
            self._submitter.forget(window.name)
        if window.turn_id is not None:
            ended = errors.ShimError(
                "its session was reset before it was answered", retryable=True, remedy="Ask again."
            )
            await self._submitter.leave(window.turn_id, ended)
        await self._windows.end(window)
        _log.info("session.reset user=%s", user.user_id[:8])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Renew what is leased from other processes, while the context lasts.

        When it ends, turns that `submit` left open are waited for no longer.
        """
        self._tasks.start(self._windows.renew(), "paliadin renew")
        try:
            yield self
        finally:
            await self._tasks.end()

    async def _timeout(self, turn: Submission) -> errors.TurnTimeout:
        error = errors.TurnTimeout(
            turn.request.turn_id, self._deadline_s, queued_s=turn.queued_s, unsent=turn.unsent
        )
        if turn.unsent:
            await self._submitter.leave(turn.request.turn_id, error)
        return error

    async def _wait_for_push(
        self, stack: AsyncExitStack, turn: Submission, deadline: float
    ) -> None:
        async with stack:
            with anyio.CancelScope(deadline=deadline):
                await self._submitter.wait(turn)


@contextmanager
def _unanswered_logged(turn: Submission) -> Iterator[None]:
    try:
        yield
    except BaseException as exc:
        # The error is raised on. Only its name is logged, since its text may hold anything.
        _log.info("turn.unanswered %s error=%s", turn.log_ids, type(exc).__name__)
        raise


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
