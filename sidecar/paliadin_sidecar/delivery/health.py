"""The receiver's health: what attempts say about it, and pings where they leave a doubt."""

from __future__ import annotations

import math
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus

import anyio
import anyio.abc

from paliadin_contract.callback import Host, Ping, encode
from paliadin_sidecar.delivery import policy
from paliadin_sidecar.delivery.breaker import CircuitBreaker
from paliadin_sidecar.delivery.evidence import FaultEvidence
from paliadin_sidecar.delivery.policy import Verdict
from paliadin_sidecar.delivery.rate_limiter import RateLimiter
from paliadin_sidecar.errors import Blocked
from paliadin_sidecar.failpoints import failpoint
from paliadin_sidecar.outbox import queries, queue, transitions
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.records import Outcome

#: Evidence from which on a "later" is about the turn alone, as where each user has a limit: it
#: rests, and the others do not. By chance one in a hundred comes so far, and costs a request.
_TURN_LIMIT_EVIDENCE = math.log(100)


def ping_body(host: str, now: float) -> tuple[str, bytes]:
    """Id and body of a question whether the receiver is healthy."""
    at = datetime.fromtimestamp(now, UTC)
    return f"ping_{secrets.token_hex(8)}", encode(Ping(at, Host(host)))


class ReceiverHealth:
    """Judges each outcome, keeps breaker and limiter by it, and pings while turns may not go out.

    Args:
        group: runs the outbox's functions.
        attempt: makes one signed attempt.
        host: this host's name, for pings.
        wall: the clock, in epoch seconds.
        steady: a clock that nobody sets, in seconds.
        on_recovered: called when a pause has ended.

    Attributes:
        breaker: whether turns may go out, and how many at once.
        limiter: when the next one may.
        stopping: set it, and no ping goes out any more.
    """

    def __init__(
        self,
        group: GroupCommit,
        attempt: Callable[[str, bytes], Awaitable[Outcome]],
        *,
        host: str,
        wall: Callable[[], float],
        steady: Callable[[], float],
        on_recovered: Callable[[], None],
    ) -> None:
        self._group = group
        self._attempt = attempt
        self._host = host
        self._wall = wall
        self._steady = steady
        self._on_recovered = on_recovered
        self.breaker = CircuitBreaker()
        self.limiter = RateLimiter()
        self.stopping = False
        self._postponements = FaultEvidence()  # by answers of any kind
        self._asking = anyio.Lock()
        self._pings = 0  # that were answered, or not
        self._answered_well = False  # the last of them
        self._hurried = anyio.Event()
        self._tasks: anyio.abc.TaskGroup

    async def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Begin where the last process ended: its pause goes on, and so does the receiver's rest.

        Args:
            tasks: where pings run.
        """
        self._tasks = tasks
        service = await self._group.commit_when_possible(queries.service)
        rest_s = await self._group.commit_when_possible(queue.retry_after_s, policy.MAX_BACKOFF_S)
        self.limiter = RateLimiter(anyio.current_time() + rest_s)
        if service["paused_at"] is not None:
            # It was not healthy when we stopped: a turn is never the probe.
            self.breaker = CircuitBreaker(paused=True)
            paused_s = max(0.0, self._wall() - service["paused_at"])
            tasks.start_soon(self._probe, self._steady() - paused_s, None, name="probe")

    def interrupted(self, slept_s: float) -> None:
        """The machine slept so long, or came to another network: whether it is well is asked now.

        A receiver that asked for time has it all the same.
        """
        self.limiter.record_slept(slept_s)
        self.breaker.interrupted(anyio.current_time())
        self._hurried.set()
        self._hurried = anyio.Event()

    def judge(self, turn: int, outcome: Outcome, began: float) -> Verdict:
        """Take note of how a turn's attempt ended, and say what it means.

        Args:
            turn: which one.
            outcome: of its attempt.
            began: when that began, by the loop's clock.
        """
        verdict = policy.classify(outcome.status)
        if outcome.status is None:
            if self.breaker.record_failure():
                self._pause(outcome.error or "unreachable")
            return verdict
        now = anyio.current_time()
        if verdict is Verdict.ACKNOWLEDGED:
            self.breaker.record_response(acknowledged=True)
            self.limiter.record_acknowledged(now)
            self._postponements.acknowledged(turn)
            return verdict
        self.breaker.record_response(acknowledged=False)
        self._postponements.failed(turn)
        if self._postponements.evidence_of(turn) < _TURN_LIMIT_EVIDENCE:
            self._slow_down(outcome, verdict, began)
        if self.breaker.record_postponed(now):
            self._tasks.start_soon(self._ping_after_postponements, outcome.status, name="ping")
        return verdict

    async def resolve(self, outcome: Outcome) -> Verdict:
        """Ask with a ping whether an ambiguous outcome was the turn's fault or the receiver's."""
        if await self._is_healthy():
            return Verdict.REFUSED
        self._pause(f"status_{outcome.status}")
        return Verdict.RECEIVER

    def _slow_down(self, outcome: Outcome, verdict: Verdict, began: float) -> None:
        if verdict not in {Verdict.RETRY, Verdict.FAILED}:
            return
        asked_s = policy.retry_after_s(outcome.retry_after, self._wall())
        if asked_s > 0 or outcome.status == HTTPStatus.TOO_MANY_REQUESTS:
            now = anyio.current_time()
            self.limiter.record_throttled(now, started_at=began, retry_after_s=asked_s)
        elif verdict is Verdict.RETRY and outcome.status is not None:
            self.limiter.record_postponed()

    async def _is_healthy(self) -> bool:
        # One ping for all that ask before it is answered.
        asked_at = self._pings
        async with self._asking:
            if self._pings == asked_at:
                self._answered_well = await self._ping()
                self._pings += 1
            return self._answered_well

    async def _ping(self) -> bool:
        failpoint("before a ping")
        began = anyio.current_time()
        outcome = await self._attempt(*ping_body(self._host, self._wall()))
        failpoint("after a ping")
        verdict = policy.classify(outcome.status)
        self._slow_down(outcome, verdict, began)
        return verdict is Verdict.ACKNOWLEDGED

    async def _ping_after_postponements(self, status: int) -> None:
        # The receiver postpones every turn: ask whether it is healthy.
        await anyio.sleep(self.limiter.rest_s(anyio.current_time()))
        if not self.stopping and not await self._is_healthy():
            self._pause(f"status_{status}")

    def _pause(self, why: str) -> None:
        if not self.breaker.paused:
            self.breaker.pause()
            self._tasks.start_soon(self._probe, self._steady(), why, name="probe")

    async def _probe(self, since: float, why: str | None) -> None:
        # `why` is None where the pause is on record already. A full disk holds no ping.
        while self.breaker.paused:
            with suppress(Blocked):
                if why is not None:
                    await self._group.commit(transitions.pause, why)
                    why = None
            await self._rest()
            if not self.stopping and await self._ping():
                self.breaker.resume()
                self._on_recovered()
        if why is None:
            await self._group.commit_when_possible(transitions.resume, self._steady() - since)

    async def _rest(self) -> None:
        wait_s = self.breaker.next_ping_s(anyio.current_time())
        while (wait_s := max(wait_s, self.limiter.rest_s(anyio.current_time()))) > 0:
            with anyio.move_on_after(wait_s):
                await self._hurried.wait()
            wait_s = 0.0
