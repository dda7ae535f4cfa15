"""From the outbox to the receiver: which delivery goes when, and what its outcome leads to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import random as _random

import anyio
import anyio.abc

from paliadin_sidecar.delivery import policy
from paliadin_sidecar.delivery.breaker import MAX_CONCURRENCY
from paliadin_sidecar.delivery.health import ReceiverHealth
from paliadin_sidecar.delivery.policy import Retry, Verdict
from paliadin_sidecar.delivery.recorder import Recorder
from paliadin_sidecar.delivery.slots import Slots
from paliadin_sidecar.failpoints import failpoint
from paliadin_sidecar.host.resources import Alarm
from paliadin_sidecar.host.systemd import Heartbeat
from paliadin_sidecar.outbox import queue, transitions
from paliadin_sidecar.outbox.bodies import size_limit
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.outbox.records import Delivery, Outcome

#: A clock can jump, so the database is asked at least this often.
_MAX_SLEEP_S = 60.0
#: Deliveries that are fetched before there is a slot for them, so that the next one goes while what
#: became of the last ones is being written down; and for how long they may wait for it. What is not
#: sent by then is asked for again: the receiver is slow, and something fresh may go first.
_MAX_PREFETCHED = MAX_CONCURRENCY
_MAX_PREFETCHED_S = 0.05


@dataclass
class _Fetched:
    # What the database had, and whether it has more of either kind that cannot go yet.
    found: list[Delivery] = field(default_factory=list)
    next_s: float | None = None
    more_first_attempts: bool = False
    more_retries: bool = False


class Dispatcher:
    """Sends what is due, a few at a time, and never two revisions of one turn at once.

    What was just accepted is sent at once, where a slot is free and nothing else waits. All
    else stays in the database, which is asked when a slot gets free and it may hold something
    that is due. In a backlog it is asked for some more, which go as soon as there are slots.

    Args:
        group: runs the outbox's functions.
        attempt: makes one signed attempt.
        host: this host's name, for pings.
        refused_s: see `policy.decide`.
        wall: the clock, in epoch seconds.
        steady: a clock that nobody sets, in seconds.
        random: see `policy.decide`.

    Attributes:
        heartbeat: beats whenever it has asked what is due, or knows that nothing can be sent.
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
        self._wall = wall
        self._health = ReceiverHealth(
            group, attempt, host=host, wall=wall, steady=steady, on_recovered=self.wake
        )
        self._recorder = Recorder(
            group,
            refused_s=refused_s,
            random=random,
            wall=wall,
            max_delay_s=lambda: self._health.breaker.max_delay_s(anyio.current_time()),
        )
        self._slots: Slots
        # Under way: turns whose attempt is not written down yet, or that wait for a slot; and of
        # those the attempts themselves.
        self._in_flight: set[int] = set()
        self._prefetched: list[Delivery] = []
        self._prefetched_until = 0.0
        self._body_sizes: dict[int, int] = {}
        # What the database may hold that is due and not under way.
        self._more_first_attempts = self._more_retries = True
        self._superseded: set[int] = set()  # turns under way that may have a newer revision
        self._newest_fetched = 0  # the newest delivery that was there when it was last asked
        self._fetching = False
        self.heartbeat = Heartbeat()
        self._alarm = Alarm(self.wake)
        self._loop: asyncio.AbstractEventLoop
        self._tasks: anyio.abc.TaskGroup | None = None
        self._attempts: asyncio.TaskGroup
        self._stopping = False
        self._idle = anyio.Event()

    async def run(self) -> None:
        """Send until cancelled."""
        # Attempts are plain tasks of asyncio: what anyio does for each costs more than to send it.
        async with anyio.create_task_group() as tasks, asyncio.TaskGroup() as attempts:
            await self._health.start(tasks)
            self._slots = Slots(self._health.breaker, self._health.limiter)
            self._loop = asyncio.get_running_loop()
            self._tasks, self._attempts = tasks, attempts
            try:
                self.wake()
                await anyio.sleep_forever()
            finally:
                self._tasks = None
                self._alarm.cancel()

    async def stop(self, grace_s: float) -> None:
        """Start nothing more, and give what is under way so many seconds."""
        self._stopping = self._health.stopping = True
        self._drop_prefetched()
        with anyio.move_on_after(grace_s):
            while self._in_flight:
                self._idle = anyio.Event()
                await self._idle.wait()

    def wake(self) -> None:
        """Ask the database what is due, whatever is known of it."""
        self._more_first_attempts = self._more_retries = True
        self._superseded |= self._in_flight
        self._fill()

    def interrupted(self, slept_s: float) -> None:
        """Try now what waits, but for what the receiver asked for.

        Args:
            slept_s: for how long the machine slept; 0 where it came to another network.
        """
        if self._tasks is not None and not self._stopping:
            self._health.interrupted(slept_s)
            self._tasks.start_soon(self._shorten_delays, name="interrupted")

    async def _shorten_delays(self) -> None:
        await self._group.commit_when_possible(transitions.shorten_delays, policy.MAX_BACKOFF_S)
        self.wake()

    def offer(self, deliveries: Sequence[Delivery]) -> None:
        """Send these, which were just accepted; what cannot go at once is left to the database."""
        if self._is_open() and not self._more_first_attempts and not self._fetching:
            now = self._loop.time()
            slots, _ = self._free_slots(now)
            if slots > 0 and not self._health.limiter.is_limited:
                deliveries = self._send_directly(deliveries, slots, now)
        if {one.turn for one in self._prefetched} & {one.turn for one in deliveries}:
            self._drop_prefetched()  # one of them is superseded
        for delivery in deliveries:
            if delivery.turn in self._in_flight:
                self._superseded.add(delivery.turn)
            else:
                self._more_first_attempts = True
        self._fill()

    # --- which goes when ------------------------------------------------------------------

    def _is_open(self) -> bool:
        return self._tasks is not None and not self._stopping

    def _free_slots(self, now: float) -> tuple[int, int]:
        # How many may go now, and how many of them that were tried before.
        unrecorded = len(self._in_flight) - len(self._prefetched)
        slots, retries, wait_s = self._slots.free(now, unrecorded)
        if wait_s > 0:
            self._wake_in(wait_s)
        return slots, retries

    def _send_directly(
        self, deliveries: Sequence[Delivery], slots: int, now: float
    ) -> Sequence[Delivery]:
        # Sends some of these; returns those that are left. Where the database was asked since one
        # of them was accepted, that one is under way, or left there.
        newest = {one.turn: one for one in deliveries if one.id > self._newest_fetched}
        free = [one for turn, one in newest.items() if turn not in self._in_flight]
        sent = self._slots.choose(free, slots, self._body_sizes.values())
        for one in sent:
            self._start(one, now)
        sent_ids = {one.id for one in sent}
        return [one for one in newest.values() if one.id not in sent_ids]

    def _fill(self) -> None:
        # Asks the database, where it may hold something that may go now.
        if not self._is_open():
            self.heartbeat.beat()
            return
        self._wake_in(_MAX_SLEEP_S)
        now = self._loop.time()
        if now > self._prefetched_until or not self._may_prefetch():
            self._drop_prefetched()
        self._send_prefetched(now)
        if self._fetching:
            return
        slots, retries = self._free_slots(now)
        if (
            self._more_first_attempts and (slots or self._prefetch_room() > _MAX_PREFETCHED // 2)
        ) or (self._more_retries and retries):
            self._fetching = True
            self._group.submit(self._fetch).add_done_callback(self._fetched)
        else:
            self.heartbeat.beat()

    def _fetch(self, outbox: Outbox) -> _Fetched:
        # Within a transaction, together with what became of attempts and what was accepted.
        self._newest_fetched = queue.newest_delivery(outbox)
        slots, max_retries = self._free_slots(self._loop.time())
        room = slots + self._prefetch_room()
        fetched = _Fetched()
        if room <= 0:
            return fetched
        fetched.found, fetched.next_s = queue.fetch_due(
            outbox,
            self._in_flight,
            limit=room,
            max_retries=max_retries,
            held=self._body_sizes.values(),
            shares=self._slots.shares,
        )
        # What is offered from here on was not looked at.
        retries = sum(one.attempts > 0 for one in fetched.found)
        sizes = [*self._body_sizes.values(), *(len(one.body) for one in fetched.found)]
        too_large = size_limit(sizes) is not None
        if max_retries > 0:
            self._more_retries = False
            fetched.more_retries = too_large or retries == max_retries
        if room > retries:
            self._more_first_attempts = False
            fetched.more_first_attempts = too_large or len(fetched.found) == room
        return fetched

    def _fetched(self, done: asyncio.Future[_Fetched]) -> None:
        # Asked for also at the end: asyncio logs a traceback of an exception that nobody asked for.
        failed = not done.cancelled() and done.exception() is not None
        if done.cancelled() or self._tasks is None:
            return
        if failed:
            self._tasks.start_soon(self._fetch_when_possible, name="fetch")
        else:
            self._start_all(done.result())

    async def _fetch_when_possible(self) -> None:
        self._start_all(await self._group.commit_when_possible(self._fetch))

    def _start_all(self, fetched: _Fetched) -> None:
        self._fetching = False
        if self._slots.last_was_retry:
            # Where they go one by one, neither what failed before nor what is fresh goes first
            # always.
            fetched.found.sort(key=lambda one: one.attempts > 0)
        now = self._loop.time()
        self._prefetched += fetched.found
        self._prefetched_until = now + _MAX_PREFETCHED_S
        self._in_flight.update(one.turn for one in fetched.found)
        self._body_sizes.update((one.id, len(one.body)) for one in fetched.found)
        self._send_prefetched(now)
        if fetched.next_s is not None:
            self._wake_in(fetched.next_s)
        self.heartbeat.beat()
        self._fill()
        # These cannot go yet, as is known: an attempt that ends, or a timer, asks again.
        self._more_retries |= fetched.more_retries
        self._more_first_attempts |= fetched.more_first_attempts

    # --- what waits for a slot ------------------------------------------------------------

    def _may_prefetch(self) -> bool:
        # Nothing else may want the next slot, and the receiver takes whatever comes.
        is_limited = not self._health.breaker.is_closed or self._health.limiter.is_limited
        return self._is_open() and not self._more_retries and not is_limited

    def _prefetch_room(self) -> int:
        return _MAX_PREFETCHED - len(self._prefetched) if self._may_prefetch() else 0

    def _send_prefetched(self, now: float) -> None:
        while self._prefetched and self._is_open() and self._free_slots(now)[0] > 0:
            self._start(self._prefetched.pop(0), now)
        if not self._may_prefetch():
            self._drop_prefetched()

    def _drop_prefetched(self) -> None:
        # The database has them.
        for one in self._prefetched:
            self._in_flight.remove(one.turn)
            del self._body_sizes[one.id]
            self._more_retries |= one.attempts > 0
            self._more_first_attempts |= one.attempts == 0
        self._prefetched.clear()

    def _wake_in(self, seconds: float) -> None:
        if self._tasks is not None:
            self._alarm.set(seconds)

    # --- an attempt -----------------------------------------------------------------------

    def _start(self, delivery: Delivery, now: float) -> None:
        self._slots.take(delivery, now)
        self._in_flight.add(delivery.turn)
        self._body_sizes[delivery.id] = len(delivery.body)
        self._attempts.create_task(self._deliver(delivery, now), name=f"delivery {delivery.id}")

    async def _deliver(self, delivery: Delivery, began: float) -> None:
        try:
            started_at = self._wall()
            try:
                failpoint("before an attempt")
                outcome = await self._attempt(delivery.webhook_id, delivery.body)
                failpoint("after an attempt")
                verdict = self._health.judge(delivery.turn, outcome, began)
                if verdict is Verdict.AMBIGUOUS:
                    verdict = await self._health.resolve(outcome)
            finally:
                self._free_slot(delivery)
            # What comes next is asked for in the transaction that writes this down.
            self._fill()
            decision = await self._recorder.record(delivery, outcome, verdict, started_at)
            if isinstance(decision, Retry):
                self._wake_in(decision.seconds)
        finally:
            self._finish(delivery)
        # Nothing waits for this: neither a slot nor the turn's next attempt.
        await self._recorder.record_said(delivery, outcome)

    def _free_slot(self, delivery: Delivery) -> None:
        self._slots.give_back(delivery)
        del self._body_sizes[delivery.id]
        delivery.body = b""  # it may take long to write down what came of it

    def _finish(self, delivery: Delivery) -> None:
        self._in_flight.remove(delivery.turn)
        if delivery.turn in self._superseded:
            self._superseded.remove(delivery.turn)
            self._more_first_attempts = True
        self._idle.set()
        self._fill()
