"""An outbox with a past: what a host would have after some days, made on a clock of its own."""

from __future__ import annotations

import hashlib
import heapq
import math
import random
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from paliadin_sidecar.outbox import acceptance, transitions
from paliadin_sidecar.outbox.database import Outbox
from paliadin_sidecar.outbox.records import Arrival, Delivery, Outcome, TurnKey

_DAY_S, _HOUR_S = 86_400.0, 3600.0
#: What a night, a morning and an afternoon have of a day's turns, hour by hour.
_BUSY = (0, 0, 0, 0, 0, 0, 1, 3, 8, 12, 13, 11, 6, 9, 12, 12, 10, 7, 4, 2, 1, 1, 0, 0)
_ROOTS = (("aichat", "paliadin", 8), ("legacy", "paliadin", 2))


class Past:
    """Turns of a law firm, as they would have come to an outbox.

    Args:
        path: of the database, which is made.
        until: when the past ends, in epoch seconds.
        days: how long it is.
        per_day: how many turns a working day has.
        seed: the same one makes the same past.
    """

    def __init__(self, path: Path, *, until: float, days: int, per_day: int, seed: int = 1) -> None:
        self.path = path
        self._random = random.Random(seed)
        self._until, self._began = until, until - days * _DAY_S
        self.now = self._began
        self._order = 0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._users = [
            str(uuid.UUID(int=self._random.getrandbits(128), version=4)) for _ in range(12)
        ]
        # The receiver is away twice: on an afternoon for three quarters of an hour, and on a
        # morning for some minutes.
        first = _midnight(self._began)
        self._outages = [
            (first + (days * 6 // 10) * _DAY_S + 14.2 * _HOUR_S, 2700.0),
            (first + (days * 8 // 10) * _DAY_S + 9.6 * _HOUR_S, 420.0),
        ]
        self._outbox = Outbox(path, host="mriver", wall=lambda: self.now, create=True)
        self._outbox.execute("PRAGMA synchronous = OFF")  # it need survive nothing
        for start, length in self._outages:
            self._at(start + 4, partial(self._do, transitions.pause, "connect"))
            self._at(start + length, partial(self._do, transitions.resume, length - 4))
        for number, at in enumerate(self._arrivals(days, per_day)):
            self._at(at, partial(self._ask, number))

    def play(self) -> None:
        """Let it all happen."""
        while self._due:
            at, _, step = heapq.heappop(self._due)
            if at >= self._until:
                break
            self.now = max(self.now, at)
            step()
        self.now = self._until
        self._outbox.close()

    def rewrite(self, *names: str, value: str) -> None:
        """Put a value into these fields of each event that has them, as no sidecar would."""
        with Outbox(self.path) as outbox:
            for name in names:
                path = f"$.{name}"
                outbox.execute(
                    "UPDATE event SET fields = json_replace(fields, :path, :value)",
                    {"path": path, "value": f"{name}{value}"},
                )

    def _at(self, at: float, step: Callable[[], object]) -> None:
        self._order += 1
        heapq.heappush(self._due, (at, self._order, step))

    def _do(self, function: Callable[..., object], *args: object, **kwargs: object) -> object:
        return self._outbox.transaction([partial(function, self._outbox, *args, **kwargs)])[0]

    def _arrivals(self, days: int, per_day: int) -> Iterator[float]:
        for day in range(days + 1):
            start = _midnight(self._began) + day * _DAY_S
            weekend = datetime.fromtimestamp(start).astimezone().weekday() >= 5  # noqa: PLR2004 - Saturday
            number = round(per_day * (0.15 if weekend else self._random.uniform(0.8, 1.1)))
            for hour in self._random.choices(range(24), _BUSY, k=number):
                at = start + (hour + self._random.random()) * _HOUR_S
                if self._began <= at < self._until:
                    yield at

    def _ask(self, number: int) -> None:
        rng = self._random
        backend, persona = rng.choices([root[:2] for root in _ROOTS], [root[2] for root in _ROOTS])[
            0
        ]
        key = TurnKey(backend, persona, str(uuid.UUID(int=rng.getrandbits(128), version=4)))
        has_token = backend == "aichat" or rng.random() < 0.4  # noqa: PLR2004 - of the firm's past
        if has_token:
            self._do(acceptance.record_hint, key, key.turn_id, rng.choice(self._users))
        took_s = min(900.0, math.exp(rng.gauss(3.1, 0.75)))
        self._at(self.now + took_s, partial(self._answer, key, number))

    def _answer(self, key: TurnKey, number: int) -> None:
        rng = self._random
        kind = rng.random()
        if kind < 0.004:  # noqa: PLR2004 - a share of the past, as below
            self._do(acceptance.mark_vanished, key)
            return
        completed_at, now = self.now, datetime.fromtimestamp(self.now, UTC)
        self.now += 0.003 if rng.random() < 0.9 else 5.0 + rng.random() / 50  # noqa: PLR2004 - how the firm's past was
        data = f"Answer {number}.".encode()
        digest = hashlib.sha256(data).hexdigest()
        arrival = Arrival(key, "", now, len(data), data=data, sha256=digest)
        if kind < 0.006:  # noqa: PLR2004 - how the firm's past was
            why = "5242880 bytes, and at most 4194304 by PALIADIN_MAX_BYTES"
            arrival = Arrival(key, "", now, 5_242_880, reason="too_large", why=why)
        delivery = self._do(acceptance.accept, arrival)
        assert isinstance(delivery, Delivery)
        refused_until = completed_at + 930 if 0.006 <= kind < 0.008 else 0.0  # noqa: PLR2004 - how the firm's past was
        self._send(delivery, refused_until)

    def _send(self, delivery: Delivery, refused_until: float = 0.0) -> None:
        rng = self._random
        ms = math.exp(rng.gauss(2.6, 0.6))
        delivery.attempts += 1
        delivery.first_attempt_at = delivery.first_attempt_at or self.now
        away = next((s + n for s, n in self._outages if s <= self.now < s + n), None)
        if away is not None:
            self._fail(
                delivery, Outcome(error="connect", ms=1.2), away - self.now + rng.random() * 20
            )
        elif refused_until:
            self._refuse(delivery, refused_until)
        elif rng.random() < 0.004 and delivery.attempts == 1:  # noqa: PLR2004 - how the firm's past was
            self.now += 10
            self._fail(delivery, Outcome(error="timeout", ms=10_000.0), 0.2)
        else:
            self.now += ms / 1000
            self._do(transitions.record_delivered, delivery, Outcome(status=204, ms=ms))

    def _refuse(self, delivery: Delivery, refused_until: float) -> None:
        outcome = Outcome(status=413, ms=8.0)
        delivery.refusals += 1
        delivery.refused_at = delivery.refused_at or self.now
        if self.now >= refused_until:
            self._do(transitions.record_dead, delivery, outcome, "refused")
            return
        self._fail(delivery, outcome, 60.0, refused=True, refused_until=refused_until)

    def _fail(
        self,
        delivery: Delivery,
        outcome: Outcome,
        delay_s: float,
        *,
        refused: bool = False,
        refused_until: float = 0.0,
    ) -> None:
        self._do(transitions.record_retry, delivery, outcome, delay_s, refused=refused)
        delivery.reported_attempt = delivery.attempts
        self._at(self.now + delay_s, partial(self._send, delivery, refused_until))


def _midnight(at: float) -> float:
    # The beginning of that day, by the firm's own clock.
    day = datetime.fromtimestamp(at).astimezone()
    return day.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
