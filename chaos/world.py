"""A host with its daemon, writers and receiver, and the account that is kept of each."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec
from support.receiver import Receiver, Reply, Request
from support.sidecar import Sidecar
from support.waiting import until

from chaos.verdict import (
    Arrived,
    Fault,
    Verdict,
    Written,
    append,
    arrival,
    expected,
    in_effect,
    judge,
    read,
)
from chaos.writers import Turn

if TYPE_CHECKING:
    import random
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path


T = TypeVar("T")

#: A command that works where a scenario may mount.
MOUNTS = "unshare --mount true"
#: A scenario that waits this long has failed; a busy machine does not get near it.
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Scenario:
    """One way to break the promise."""

    name: str
    title: str
    play: Callable[[World], None]
    quick: bool
    needs: str
    environ: dict[str, str]


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *, quick: bool = False, needs: str = "true", **environ: str
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Register a scenario under its function's name; the docstring is its title.

    Args:
        quick: it also runs in the short form.
        needs: a command without which it is not played.
        environ: of the daemon.
    """

    def register(play: Callable[[World], None]) -> Callable[[World], None]:
        name = play.__name__.replace("_", "-")
        title = (play.__doc__ or "").strip().rstrip(".")
        SCENARIOS[name] = Scenario(name, title, play, quick, needs, environ)
        return play

    return register


class World:
    """All that one scenario needs, in one directory.

    Args:
        base: the directory.
        rng: every choice is made by it.
        quick: the short form is played.
        environ: of the daemon, beside the usual.
    """

    def __init__(
        self, base: Path, rng: random.Random, *, quick: bool, environ: dict[str, str] | None = None
    ) -> None:
        self.base, self.rng, self.quick = base, rng, quick
        self.behaviour: Callable[[Request], Reply] = lambda _: Reply()
        self.tls: ssl.SSLContext | None = None
        self.address = "127.0.0.1"  #: where the receiver listens
        self.wrong: list[str] = []
        self._logs = [base / f"{who}.log" for who in ("writers", "receiver", "faults")]
        self.written, self.received, self.faults = self._logs
        self.receiver = self._receiver(0)
        self._arrived: list[Arrived] = []
        self._writers: list[subprocess.Popen[bytes]] = []
        self.receiver.__enter__()
        self.port, self._is_up = self.receiver.port, True
        self.host = Sidecar(base, self.receiver.url, **{"PALIADIN_QUIET_S": "1", **(environ or {})})
        self.host.make_roots()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.kill()
            writer.wait()
        self.host.close()
        self.receiver_down()

    # --- the receiver ---------------------------------------------------------------------

    def _receiver(self, port: int) -> Receiver:
        return Receiver(self._answer, self.tls, port, self.address)

    def _answer(self, request: Request) -> Reply:
        reply = self.behaviour(request)
        arrived = arrival(
            request.at,
            request.id,
            request.body,
            # It stores first and answers then: one that breaks off has stored it.
            stored=200 <= reply.status < 300,
            fault=reply.how != "answer" or not 200 <= reply.status < 300,
        )
        append(self.received, arrived)
        self._arrived.append(arrived)
        return reply

    def receiver_down(self) -> None:
        """Nobody listens any more."""
        if self._is_up:
            self._is_up = False
            self.receiver.__exit__()

    def receiver_up(self) -> None:
        """It listens again, where it did."""
        self.receiver = self._receiver(self.port)
        self.receiver.__enter__()
        self._is_up = True

    @property
    def arrived(self) -> list[Arrived]:
        """What has come, pings too."""
        return list(self._arrived)

    def of(self, turn_id: str) -> list[Arrived]:
        """What has come of a turn."""
        return [one for one in self.arrived if one.turn.endswith(f"/{turn_id}")]

    def took_place(
        self, written: list[Written], arrived: list[Arrived], faults: list[Fault]
    ) -> None:
        """Take over accounts that were kept elsewhere."""
        for log, lines in (
            (self.written, written),
            (self.received, arrived),
            (self.faults, faults),
        ):
            for line in lines:
                append(log, line)
        self._arrived += arrived

    # --- writers --------------------------------------------------------------------------

    def start_writer(self, *args: str, root: Path | None = None) -> subprocess.Popen[bytes]:
        """A process that writes turns; see `chaos.writers`."""
        where = [str(root or self.host.aichat), str(self.written)]
        seed = ["--seed", str(self.rng.random())]
        writer = subprocess.Popen([sys.executable, "-m", "chaos.writers", *where, *seed, *args])
        self._writers.append(writer)
        return writer

    def write(self, *args: str, root: Path | None = None) -> None:
        """Have turns written, to the end."""
        code = self.start_writer(*args, root=root).wait()
        self.check(code == 0, f"a writer ended with {code}")

    def turn(self, turn_id: str, root: Path | None = None, size: int = 200) -> Turn:
        """A turn that the scenario writes by itself."""
        return Turn(root or self.host.aichat, self.written, turn_id, size)

    # --- faults ---------------------------------------------------------------------------

    @contextmanager
    def fault(self, name: str, count: int = 1) -> Iterator[None]:
        """What happens in the block is one, or so many."""
        began = time.monotonic()
        yield
        append(self.faults, Fault(name, began, time.monotonic(), count))

    def kill(self) -> None:
        """SIGKILL; it is gone when this returns."""
        with self.fault("kill"):
            self.host.kill()

    def died(self, why: bytes, code: int = 1) -> None:
        """Wait until the daemon ended itself, and see that it said why."""
        self.check(self.host.wait() == code, f"it did not end with {code}")
        self.check(why in self.host.output, f"it did not say {why.decode()!r}")

    def check(self, holds: object, what: str) -> None:
        """Note it if something does not hold."""
        if not holds:
            self.wrong.append(what)

    # --- waiting --------------------------------------------------------------------------

    def until(self, what: str, condition: Callable[[], T]) -> T:
        """Wait until a condition holds; if it never does, the scenario is over and failed."""
        return until(what, condition, _PATIENCE_S)

    def accepted(self, count: int) -> None:
        """Wait until the outbox holds so many answers."""
        self.until(
            f"{count} to be accepted",
            lambda: len({line["turn_id"] for line in self.host.events("turn.accepted")}) >= count,
        )

    def delivered(self) -> None:
        """Wait until everything that is owed has come, as long as anything still comes."""
        for writer in self._writers:
            writer.wait(_PATIENCE_S)
        owed: dict[str, list[Written]] = {}
        for line in read(self.written, Written):
            owed.setdefault(line.turn, []).append(line)
        endings = {turn: ending for turn, lines in owed.items() if (ending := expected(lines))}

        def all_came() -> bool:
            effect = in_effect(self.arrived)
            return all(effect.get(turn) in ending for turn, ending in endings.items())

        kept, since, rest_s = -1, time.monotonic(), 0.05
        while not all_came() and time.monotonic() - since < _PATIENCE_S:
            if (now_kept := len({one.id for one in self.arrived if one.stored})) != kept:
                kept, since = now_kept, time.monotonic()  # a busy machine may take its time
            time.sleep(rest_s)  # with a large backlog one look takes a while itself
            rest_s = min(1.0, 1.2 * rest_s)

    def last_owed(self) -> list[Written]:
        """The last line of each turn in the writers' log, of those that are owed."""
        last = {line.turn: line for line in read(self.written, Written) if line.owed}
        return list(last.values())

    def verdict(self) -> Verdict:
        """Wait for what is owed, end the daemon, compare the logs."""
        self.delivered()
        if self.host.process is not None:
            self.until_settled()
            code = self.host.stop(signal.SIGTERM)
            self.check(code == 0, f"it ended with {code}")
        self.check(not self.host.events("service.crashed"), "it crashed")
        self.receiver_down()
        found = judge(
            read(self.written, Written), read(self.received, Arrived), read(self.faults, Fault)
        )
        found.wrong += self.wrong
        return found

    def until_settled(self) -> None:
        """Wait until the outbox says that nothing is under way."""
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            counts = msgspec.json.decode(self.host.command("status", "--json").stdout)["counts"]
            if not counts.get("pending"):
                return
            time.sleep(0.2)
        self.wrong.append(f"undelivered in the outbox: {counts}")
