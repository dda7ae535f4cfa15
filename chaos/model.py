"""A model of the promise: what a daemon on this host owes, whatever happens to it.

The daemon is the real one (`chaos.virtual`), on real files. The model knows what was written and
whether it was there for long enough to be owed; `chaos.verdict` compares that with what came.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import anyio
import msgspec
from hypothesis.stateful import RuleBasedStateMachine
from support.sidecar import new_secret

from chaos.verdict import Arrived, Fault, Written, arrival, expected, in_effect, judge
from chaos.virtual import Clock, Daemon, FileEvents
from chaos.writers import TRAILER
from paliadin_contract.trailer import read_tail
from paliadin_sidecar.intake.completion import HELD_S
from paliadin_sidecar.outbox import queries, transitions
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.records import Outcome
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from typing import TextIO

    from chaos.world import World


#: `inotify` is the real engine. `scripted` events are sent, or lost, by the machine's rules.
ENGINES = ("inotify", "scripted", "off")
ROOTS = ("aichat", "legacy")
TURNS = 3
_QUIET_S, _RESCAN_S, _EVERY_FILE_S = 5.0, 2.0, 60.0
MAX_BYTES = 2000
#: A change is only audited when it comes later than 600 s after the first answer; the model does
#: not know to the second when that was accepted.
_LATE_S = 590.0
#: What a second look at a name may take, when no event reports a change in place; and a first.
_AGAIN_S = _EVERY_FILE_S + _RESCAN_S + _QUIET_S + 1
_FIRST_S = _RESCAN_S + _QUIET_S + 1
#: Longer than any retry's pause: who is not there by then is not on the way.
_IN_THE_END_S = 2 * 3600.0
#: status, error, whether the receiver has stored it, seconds that it takes. For all, pings too.
ANSWERS: dict[str, tuple[int | None, str | None, bool, float]] = {
    "well": (204, None, True, 0.0),
    "slow": (200, None, True, 3.0),
    "down": (None, "connect", False, 0.0),
    "hangs": (None, "timeout", False, 10.0),
    "stored, then reset": (None, "reset", True, 0.1),
    "stored, then silent": (None, "timeout", True, 10.0),
    "500": (500, None, False, 0.0),
    "stored, then 500": (500, None, True, 0.0),
    "429": (429, None, False, 0.0),
    "404": (404, None, False, 0.0),
    "401": (401, None, False, 0.0),
    "301": (301, None, False, 0.0),
    "400": (400, None, False, 0.0),
}


@dataclass
class File:
    """A turn's file, and what the model knows of it. Times are monotonic seconds."""

    path: Path
    key: str
    line: int | None = None  #: of the account, if what is there is complete
    since: float = 0.0  #: when it was last touched
    versions: int = 0
    earliest: float = float("inf")  #: time of the first line
    latest: float = 0.0  #: time until which this line stood
    fd: int | None = None  #: of a writer
    held_since: float | None = None  #: when what a writer holds open counted as complete
    inodes: set[int] = field(default_factory=set)  #: that were ever there

    def is_held(self) -> bool:
        """Whether a writer has open what is there, and not what once was."""
        try:
            return self.fd is not None and os.path.samestat(os.fstat(self.fd), self.path.stat())
        except FileNotFoundError:
            return False


def text(file: File, word: str, size: int = 0) -> bytes:
    """A text that no other turn has, filled up to a size in bytes."""
    return f"{word} auf {file.key}\n".encode().ljust(size, b"x")


class Model(RuleBasedStateMachine):
    """The daemon, the host it runs on, and the accounts of both; `chaos.machine` has the rules."""

    engine: ClassVar[str] = "scripted"
    #: Where the accounts of all examples go, if anywhere.
    into: ClassVar[World | None] = None
    #: Examples follow each other, so that their accounts can be read as one.
    began: ClassVar[float] = 1000.0
    played: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        Model.played += 1
        shm = Path("/dev/shm")  # a flush costs nothing there
        self.base = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
        self.clock = Clock(Model.began)
        self.file_events = FileEvents(self.engine)
        self.written: list[Written] = []
        self.arrived: list[Arrived] = []
        self.faults: list[Fault] = []
        self.mode, self.ping_mode = "well", "well"
        self.odd: deque[str] = deque()
        self.roots = {name: self.base / name for name in ROOTS}
        self.calm = dict.fromkeys(ROOTS, 0.0)  # since when each is there and to be trusted
        self.up_since = 0.0
        self.set_forward_s = 0.0  # by which the date was set, and the daemon may not know it yet
        self.files: dict[tuple[str, int], File] = {}
        for name, root in self.roots.items():
            root.mkdir(mode=0o700)
            for number in range(TURNS):
                turn = f"e{Model.played}-{number}"
                self.files[name, number] = File(root / f"{turn}.txt", f"{name}/{turn}")
        self.log: TextIO = (self.base / "log").open("w")
        self.state = self.base / "state"
        settings = Settings.from_environment(
            {
                "PALIADIN_CALLBACK_URL": "http://127.0.0.1:1/",
                "PALIADIN_CALLBACK_SECRET": new_secret(),
                "PALIADIN_WATCH": ":".join(f"{n}/paliadin={r}" for n, r in self.roots.items()),
                "PALIADIN_STATE_DIR": str(self.state),
                "PALIADIN_QUIET_S": str(_QUIET_S),
                "PALIADIN_RESCAN_S": str(_RESCAN_S),
                "PALIADIN_MAX_BYTES": str(MAX_BYTES),
                "PALIADIN_EVENTS": "inotify" if self.engine == "inotify" else "watchfiles",
            }
        )
        self.daemon = Daemon(settings, self.log, self.attempt, self.file_events, clock=self.clock)

    def advance(self, seconds: float) -> None:
        """Let time pass; what was there for long enough meanwhile is owed."""
        was_up = self.daemon.is_up
        self.daemon.advance(seconds)
        for file in self.files.values():
            file.latest = max(file.latest, self.clock.now)
            self._may_be_taken_from_a_writer(file)
        if not self.daemon.is_up:
            self.up_since = float("inf")
            self.miss_what_was_set()
            return
        if seconds > 2 * _RESCAN_S:
            self.set_forward_s = 0.0
        if not was_up or self.up_since == float("inf"):
            self.up_since = self.clock.now
        for (root, _), file in self.files.items():
            self._record_owed(root, file)

    def _may_be_taken_from_a_writer(self, file: File) -> None:
        # A whole answer that nobody changed for two minutes counts as complete while it is open.
        waited = self.clock.now - file.since
        if waited < HELD_S or file.held_since == file.since or not file.is_held():
            return
        content = file.path.read_bytes()
        if content.endswith(TRAILER):
            file.held_since = file.since
            file.earliest = min(file.earliest, file.since)
            self.account(file.path.stat().st_ino, content)

    def _record_owed(self, root: str, file: File) -> None:
        # It was there, complete, for long enough while we ran.
        if file.line is None:
            return
        line = self.written[file.line]
        is_first = all(one.turn != file.key for one in self.written[: file.line])
        waited = self.clock.now - max(file.since, self.calm[root], self.up_since)
        in_time = is_first or file.latest - file.earliest <= _LATE_S
        if (
            line.content_key not in {"empty", "too_large"}
            and waited >= (_FIRST_S if file.versions == 1 else _AGAIN_S)
            and in_time
        ):
            self.written[file.line] = msgspec.structs.replace(line, owed=True)

    def miss_what_was_set(self) -> None:
        """Count what the date was set forward by as time that passed: no daemon saw it be set."""
        for file in self.files.values():
            file.earliest -= self.set_forward_s
        self.set_forward_s = 0.0

    # --- the receiver -------------------------------------------------------------------------

    async def attempt(self, webhook_id: str, body: bytes) -> Outcome:
        """Stand in for the network: one request, as the receiver answers it now."""
        is_ping = webhook_id.startswith("ping_")
        how = self.odd.popleft() if self.odd else self.ping_mode if is_ping else self.mode
        status, error, stored, seconds = ANSWERS[how]
        if how != "down":
            fault = how not in {"well", "slow"}
            now = self.clock.now
            self.arrived.append(arrival(now, webhook_id, body, stored=stored, fault=fault))
        await anyio.sleep(seconds)
        return Outcome(status=status, error=error, retry_after="7" if status == 429 else None)

    # --- the account --------------------------------------------------------------------------

    def is_there(self, root: str) -> bool:
        """Whether this root's directory exists."""
        return self.roots[root].is_dir()

    def changed(self, file: File) -> None:
        """Account for what is under the name now, and send the kernel's event."""
        file.since, file.line = self.clock.now, None
        if not self.is_there(file.path.parent.name):
            return
        self.stamp(file.path.parent)
        self.file_events.notify(file.path)
        if not file.path.exists():
            return
        self.stamp(file.path)
        file.versions += 1
        file.inodes.add(inode := file.path.stat().st_ino)
        if file.is_held():
            return  # whatever it looks like
        file.line = len(self.written)
        file.latest = self.clock.now
        file.earliest = min(file.earliest, file.latest)
        self.account(inode, file.path.read_bytes(), file)

    def account(self, inode: int, content: bytes, file: File | None = None) -> None:
        """Note a complete content: under its name, or where the daemon may have it open unnamed."""
        content_key = hashlib.sha256(content).hexdigest()
        if not read_tail(content)[1]:
            content_key = "empty"
        elif len(content) > MAX_BYTES:
            content_key = "too_large"
        for each in sorted(self.files.values(), key=lambda each: each is not file):
            if inode in each.inodes:
                self.written.append(Written(self.clock.now, each.key, content_key, owed=False))

    def stamp(self, path: Path) -> None:
        """Set our clock's time, as the kernel does: what happens at once bears one time."""
        at = int(self.clock.time() * 1000) * 1_000_000 + self.clock.sets
        os.utime(path, ns=(at, at))

    def fault(self, name: str) -> None:
        """Note that something was done to the host or the receiver."""
        self.faults.append(Fault(name, self.clock.now, self.clock.now))

    # --- the end ------------------------------------------------------------------------------

    def in_the_end(self) -> None:
        """Let time pass until everything has come, and longer than any retry waits."""
        self.advance(_AGAIN_S)
        self.advance(1.0)
        end = self.clock.now + _IN_THE_END_S
        while self.missing() and self.clock.now < end:
            self.replay_what_was_given_up()
            self.advance(30.0)
        self.daemon.stop()

    def missing(self) -> list[str]:
        """The turns whose last content is not in effect at the receiver."""
        effect = in_effect(self.arrived)
        lines: dict[str, list[Written]] = {}
        for line in self.written:
            lines.setdefault(line.turn, []).append(line)
        return [
            turn
            for turn, of_turn in lines.items()
            if (ending := expected(of_turn)) and effect.get(turn) not in ending
        ]

    def replay_what_was_given_up(self) -> None:
        """Replay dead turns, as an operator does: the promise's limits name those."""
        with Outbox(self.state / FILENAME, wall=self.clock.time) as outbox:
            if not queries.counts(outbox).get("dead"):
                return
            assert any(fault.name in {"400", "404", "401", "301"} for fault in self.faults)
            outbox.transaction([partial(transitions.replay, outbox, dead=True)])
            self.fault("given up until an operator looked")

    def compare(self) -> None:
        """Compare the accounts, the outbox and the log."""
        verdict = judge(self.written, self.arrived, self.faults)
        assert verdict.holds, verdict
        with Outbox(self.state / FILENAME) as outbox:
            assert not queries.counts(outbox).get("pending")
        lines = [
            msgspec.json.decode(line) for line in (self.base / "log").read_bytes().splitlines()
        ]
        numbers = {line["event_id"] for line in lines if "event_id" in line}
        assert numbers == set(range(1, len(numbers) + 1)), "an event's line is missing"
        if self.into is not None:
            self.into.took_place(self.written, self.arrived, self.faults)
