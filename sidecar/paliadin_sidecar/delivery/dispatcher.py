"""From the outbox to the receiver: which delivery goes when, and what its outcome leads to."""

from __future__ import annotations

import math
import secrets
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from random import random as _random
from typing import TYPE_CHECKING

import anyio

from paliadin_contract.callback import Host, Ping, encode
from paliadin_sidecar.delivery import policy
from paliadin_sidecar.delivery.evidence import Blame
from paliadin_sidecar.delivery.pace import Pace
from paliadin_sidecar.delivery.policy import Circuit, Verdict
from paliadin_sidecar.errors import Blocked
from paliadin_sidecar.failpoints import failpoint
from paliadin_sidecar.host.watchdog import Heartbeat
from paliadin_sidecar.outbox.fairness import Shares
from paliadin_sidecar.outbox.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from paliadin_sidecar.delivery.sender import Outcome
    from paliadin_sidecar.outbox.group_commit import GroupCommit
    from paliadin_sidecar.outbox.records import Delivery

__all__ = ["Dispatch", "ping_body"]

#: A clock can jump, so nothing sleeps longer than this.
_SLEEP_MOST_S = 60.0
#: Sent and not written down, since the disk is full: each would be sent again after a crash.
_MOST_UNRECORDED = 1000
#: Evidence from which on a "later" is about the turn alone, as where each user has a limit: it
#: rests, and the others do not. By chance one in a hundred comes so far, and costs a request.
_ITS_OWN = math.log(100)


def ping_body(host: str, now: float) -> tuple[str, bytes]:
    """Id and body of a question whether the receiver is well."""
    at = datetime.fromtimestamp(now, UTC)
    return f"ping_{secrets.token_hex(8)}", encode(Ping(at, Host(host)))


class Dispatch:
    """Sends what is due, a few at a time, and never two revisions of one turn at once.

    Args:
        group: runs the outbox's methods.
        attempt: makes one signed attempt.
        host: this host's name, for pings.
        refused_s: see `policy.decide`.
        wall: the clock, in epoch seconds.
        steady: a clock that nobody sets, in seconds.
        random: see `policy.decide`.

    Attributes:
        heartbeat: beats each time that it has asked what is due.
    """

    def __init__(
        self,
        group: GroupCommit,
        attempt: Callable[[str, bytes], Awaitable[Outcome]],
        *,
        host: str,
        refused_s: float,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random,
    ) -> None:
        self._group = group
        self._attempt = attempt
        self._host = host
        self._refused_s = refused_s
        self._wall = wall
        self._steady = steady
        self._random = random
        self._circuit = Circuit()
        self._busy: dict[int, int] = {}  # delivery → turn
        self._held: dict[int, int] = {}  # delivery → bytes of its body
        self._sending = 0
        self._again = 0  # of them, tried before
        self._shares = Shares()
        self._pace = Pace()
        self._blame = Blame()
        self._put_off = Blame()  # by answers of any kind
        self._was_again = False  # the one that went out last
        self.heartbeat = Heartbeat()
        self._wake = anyio.Event()
        self._idle = anyio.Event()
        self._asking: anyio.Event | None = None
        self._well = False
        self._stopping = False

    def wake(self) -> None:
        """Look at once what is due."""
        self._wake.set()

    async def stop(self, grace_s: float) -> None:
        """Start nothing more, and give what is under way so many seconds."""
        self._stopping = True
        self.wake()
        with anyio.move_on_after(grace_s):
            while self._busy:
                self._idle = anyio.Event()
                await self._idle.wait()

    async def run(self) -> None:
        """Send until cancelled."""
        service = await self._group.commit_when_possible(Outbox.service)
        rest_s = await self._group.commit_when_possible(Outbox.retry_after_s, policy.BACKOFF_MOST_S)
        self._pace = Pace(anyio.current_time() + rest_s)
        async with anyio.create_task_group() as tasks:
            if service["paused_at"] is not None:
                # It was not well when we stopped: a turn is never the probe.
                self._circuit = Circuit(paused=True)
                paused_s = max(0.0, self._wall() - service["paused_at"])
                since = self._steady() - paused_s
                tasks.start_soon(self._probe, since, None, name="probe")
            while True:
                self._wake = anyio.Event()
                sleep_s = await self._start_due(tasks)
                self.heartbeat.beat()
                with anyio.move_on_after(sleep_s):
                    await self._wake.wait()

    async def _start_due(self, tasks: TaskGroup) -> float:
        # Starts what may start now; returns the seconds until that may change by itself.
        window = self._circuit.window
        places = min(window - self._sending, _MOST_UNRECORDED - len(self._busy))
        if self._stopping or places <= 0:
            return _SLEEP_MOST_S
        now = anyio.current_time()
        if (wait_s := self._pace.wait_s(now)) > 0:
            return min(wait_s, _SLEEP_MOST_S)
        # Turns that failed before get half of the places: a slow or poisonous one never keeps
        # a fresh one waiting.
        again = max(0, min(places, window // 2 - self._again))
        if self._pace.is_limited:
            places, again = min(places, 2), min(again, 1)  # one of each, to take turns
        trickle_s = self._circuit.retry_in_s(now)
        if self._circuit.trickles:
            again = min(again, int(trickle_s <= 0))
        found, next_s = await self._group.commit_when_possible(
            Outbox.fetch_due,
            list(self._busy.values()),
            limit=places,
            max_retries=again,
            held=list(self._held.values()),
            shares=self._shares.copy(),  # it is read in another thread
        )
        sleep_s = _SLEEP_MOST_S if next_s is None else min(next_s, _SLEEP_MOST_S)
        if trickle_s > 0:
            sleep_s = min(sleep_s, trickle_s)
        for due in self._in_turns(found):
            now = anyio.current_time()
            if (wait_s := self._pace.wait_s(now)) > 0:
                return min(wait_s, sleep_s)
            if self._circuit.paused or self._stopping:
                break
            self._start(tasks, due, now)
        # One that is due and got no place is woken for when a place gets free.
        return sleep_s

    def _in_turns(self, found: list[Delivery]) -> list[Delivery]:
        # Where they go one by one, neither what failed before nor what is fresh goes first always.
        if self._was_again:
            return sorted(found, key=lambda due: due.attempts > 0)
        return found

    def _start(self, tasks: TaskGroup, due: Delivery, now: float) -> None:
        self._was_again = due.attempts > 0
        self._pace.started(now)
        if self._was_again:
            self._circuit.tried_again(now)
        self._busy[due.id] = due.turn
        self._held[due.id] = len(due.body)
        self._sending += 1
        self._again += self._was_again
        self._shares.of(due.attempts).started(due.root)
        tasks.start_soon(self._carry, tasks, due, now, name=f"delivery {due.id}")

    async def _carry(self, tasks: TaskGroup, due: Delivery, began: float) -> None:
        try:
            started_at = self._wall()
            try:
                outcome, verdict, evidence = await self._send(tasks, due, began)
            finally:
                self._sending -= 1
                due = replace(due, body=b"")  # it may take long to write down what came of it
                del self._held[due.id]
                self._again -= due.attempts > 0
                self._shares.of(due.attempts).finished(due.root)
            # Its place is free: what comes next is asked for while this is written down.
            self.wake()
            due = replace(
                due,
                attempts=due.attempts + 1,
                first_attempt_at=due.first_attempt_at or started_at,
                refusals=due.refusals + (verdict is Verdict.REFUSED),
                refused_at=due.refused_at or (started_at if verdict is Verdict.REFUSED else None),
                evidence=due.evidence + evidence,
            )
            await self._record(due, outcome, verdict)
        finally:
            del self._busy[due.id]
            self._idle.set()
            self.wake()

    async def _send(
        self, tasks: TaskGroup, due: Delivery, began: float
    ) -> tuple[Outcome, Verdict, float]:
        # Its outcome, what that means, and how much it says against the turn.
        failpoint("before an attempt")
        outcome = await self._attempt(due.webhook_id, due.body)
        failpoint("after an attempt")
        verdict = policy.classify(outcome.status)
        if outcome.status is not None:
            self._circuit.answered(acknowledged=verdict is Verdict.ACKNOWLEDGED)
        elif self._circuit.unanswered():
            self._pause(tasks, outcome.error or "unreachable")
        self._keep_pace(tasks, due.turn, outcome, verdict, began)
        if verdict is Verdict.WHOSE_FAULT:
            well = await self._ask()
            verdict = Verdict.REFUSED if well else Verdict.RECEIVER
            if not well:
                self._pause(tasks, f"status_{outcome.status}")
        return outcome, verdict, self._evidence(due, verdict)

    def _keep_pace(
        self, tasks: TaskGroup, turn: int, outcome: Outcome, verdict: Verdict, began: float
    ) -> None:
        now = anyio.current_time()
        if verdict is Verdict.ACKNOWLEDGED:
            self._pace.acknowledged(now)
            self._put_off.acknowledged(turn)
        elif outcome.status is not None:
            self._put_off.failed(turn)
            if self._put_off.against(turn) < _ITS_OWN:
                self._slow_down(outcome, verdict, began)
            if self._circuit.later(now):
                tasks.start_soon(self._doubt, tasks, outcome.status, name="doubt")

    def _slow_down(self, outcome: Outcome, verdict: Verdict, began: float) -> None:
        if verdict not in {Verdict.RETRY, Verdict.FAILED}:
            return
        asked_s = policy.retry_after_s(outcome.retry_after, self._wall())
        if asked_s > 0 or outcome.status == HTTPStatus.TOO_MANY_REQUESTS:
            now = anyio.current_time()
            self._pace.later(now, started_at=began, retry_after_s=asked_s)
        elif verdict is Verdict.RETRY and outcome.status is not None:
            self._pace.put_off()

    def _evidence(self, due: Delivery, verdict: Verdict) -> float:
        if verdict is Verdict.ACKNOWLEDGED:
            self._blame.acknowledged(due.turn)
        elif verdict is Verdict.REFUSED or verdict is Verdict.FAILED:
            return self._blame.failed(due.turn)
        else:
            self._blame.not_acknowledged(due.turn)
        return 0.0

    async def _record(self, tried: Delivery, outcome: Outcome, verdict: Verdict) -> None:
        now = self._wall()
        past = policy.Past(
            tried.attempts, tried.first_attempt_at or now, tried.refused_at, tried.evidence
        )
        decision = policy.decide(
            verdict,
            past,
            now,
            refused_s=self._refused_s,
            random=self._random,
            floor_s=policy.retry_after_s(outcome.retry_after, now),
        )

        def transition(outbox: Outbox) -> None:
            match decision:
                case policy.Delivered():
                    outbox.record_delivered(tried, outcome)
                case policy.Dead(cause):
                    outbox.record_dead(tried, outcome, cause)
                case policy.Retry(seconds):
                    in_full = tried.attempts <= policy.TOLD_IN_FULL
                    outbox.record_retry(
                        tried,
                        outcome,
                        seconds,
                        refused=verdict is Verdict.REFUSED,
                        reported=in_full or policy.is_told(tried.reported_at, now),
                        keep=None if in_full else policy.TOLD_IN_FULL,
                    )

        if isinstance(decision, policy.Delivered):
            failpoint("before an acknowledgement is recorded")
        try:
            # What is known is written down, also when everything is being cancelled.
            with anyio.CancelScope(shield=True):
                await self._group.commit(transition)
        except Blocked:
            await self._group.commit_when_possible(
                transition
            )  # not sent again meanwhile: it counts as under way
        if isinstance(decision, policy.Delivered):
            failpoint("after an acknowledgement was recorded")

    # --- is the receiver well? ------------------------------------------------------------

    async def _ask(self) -> bool:
        # One ping for all that ask at the same time.
        if self._asking is not None:
            await self._asking.wait()
            return self._well
        self._asking = anyio.Event()
        try:
            self._well = await self._ping()
        finally:
            self._asking.set()
            self._asking = None
        return self._well

    async def _ping(self) -> bool:
        failpoint("before a ping")
        began = anyio.current_time()
        outcome = await self._attempt(*ping_body(self._host, self._wall()))
        failpoint("after a ping")
        verdict = policy.classify(outcome.status)
        self._slow_down(outcome, verdict, began)
        return verdict is Verdict.ACKNOWLEDGED

    async def _doubt(self, tasks: TaskGroup, status: int) -> None:
        # It puts all turns off: is it the receiver?
        await anyio.sleep(self._pace.rest_s(anyio.current_time()))
        if not self._stopping and not await self._ask():
            self._pause(tasks, f"status_{status}")

    def _pause(self, tasks: TaskGroup, why: str) -> None:
        if not self._circuit.paused:
            self._circuit.pause()
            tasks.start_soon(self._probe, self._steady(), why, name="probe")

    async def _probe(self, since: float, why: str | None) -> None:
        # `why` is None where the pause is on record already. A full disk holds no ping.
        while self._circuit.paused:
            with suppress(Blocked):
                if why is not None:
                    await self._group.commit(Outbox.pause, why)
                    why = None
            rest_s = self._pace.rest_s(anyio.current_time())
            await anyio.sleep(max(self._circuit.next_ping_s(), rest_s))
            if not self._stopping and await self._ping():
                self._circuit.resume()
                self.wake()
        if why is None:
            await self._group.commit_when_possible(Outbox.resume, self._steady() - since)
