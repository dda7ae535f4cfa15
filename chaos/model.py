"""A model of the promise, and a machine that tries every order of what may happen to it.

The daemon is the real one (`chaos.virtual`), on real files. The model knows what was written and
whether it lay for long enough to be owed; `chaos.verdict` compares that with what came.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import hypothesis
import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.sidecar import new_secret

from chaos.verdict import Arrived, Fault, Written, arrival, expected, in_effect, judge
from chaos.virtual import Clock, Daemon, Hearing
from chaos.world import scenario
from chaos.writers import TRAILER
from paliadin_contract.trailer import has_text
from paliadin_sidecar.delivery.sender import Outcome
from paliadin_sidecar.intake.completion import HELD_S
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.outbox import Outbox
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from typing import TextIO

    from chaos.world import World

__all__ = ["ENGINES", "Promise"]

#: `inotify` is the real engine; what the other says of files is said, or kept, by the machine.
ENGINES = ("inotify", "told", "off")
_ROOTS = ("aichat", "legacy")
_TURNS = 3
_QUIET_S, _RESCAN_S, _EVERY_FILE_S = 5.0, 2.0, 60.0
_MAX_BYTES = 2000
#: A change is only audited when it comes later than 600 s after the first answer; the model does
#: not know to the second when that was accepted.
_LATE_S = 590.0
#: What a second look at a name may take, when no event tells of a change in place; and a first.
_AGAIN_S = _EVERY_FILE_S + _RESCAN_S + _QUIET_S + 1
_FIRST_S = _RESCAN_S + _QUIET_S + 1
#: Longer than any retry's pause: who is not there by then is not on the way.
_IN_THE_END_S = 2 * 3600.0
#: status, error, whether the receiver has stored it, seconds that it takes. For all, pings too.
_ANSWERS: dict[str, tuple[int | None, str | None, bool, float]] = {
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
_turns: dict[str, Any] = {"root": st.sampled_from(_ROOTS), "number": st.integers(0, _TURNS - 1)}
_words = st.sampled_from(["Anna", "Otto"])  # as long as each other
_ends = st.sampled_from([b"", TRAILER])


@dataclass
class _File:
    # A turn's file, and what the model knows of it. Times are monotonic, dates are not.
    path: Path
    key: str
    line: int | None = None  #: of the account, if what lies there is complete
    since: float = 0.0  #: when it was last touched
    versions: int = 0
    earliest: float = float("inf")  #: time of the first line
    latest: float = 0.0  #: time until which this line stood
    fd: int | None = None  #: of a writer
    held_since: float | None = None  #: when what a writer holds open counted as complete
    inodes: set[int] = field(default_factory=set)  #: that ever lay there

    def is_held(self) -> bool:
        """Whether a writer has open what lies there, and not what once did."""
        try:
            return self.fd is not None and os.path.samestat(os.fstat(self.fd), self.path.stat())
        except FileNotFoundError:
            return False


def _text(file: _File, word: str, size: int = 0) -> bytes:
    return f"{word} auf {file.key}\n".encode().ljust(size, b"x")


class Promise(RuleBasedStateMachine):
    """What was complete on disk for long enough arrives whole, in the end, once in effect."""

    engine: ClassVar[str] = "told"
    #: Where the accounts of all examples go, if anywhere.
    into: ClassVar[World | None] = None
    #: Examples follow each other, so that their accounts can be read as one.
    began: ClassVar[float] = 1000.0
    played: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        Promise.played += 1
        shm = Path("/dev/shm")  # a flush costs nothing there
        self.base = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
        self.clock = Clock(Promise.began)
        self.hearing = Hearing(self.engine)
        self.written: list[Written] = []
        self.arrived: list[Arrived] = []
        self.faults: list[Fault] = []
        self.mode, self.ping_mode = "well", "well"
        self.odd: deque[str] = deque()
        self.roots = {name: self.base / name for name in _ROOTS}
        self.calm = dict.fromkeys(_ROOTS, 0.0)  # since when each is there and to be trusted
        self.up_since = 0.0
        self.set_forward_s = 0.0  # by which the date was set, and the daemon may not know it yet
        self.files: dict[tuple[str, int], _File] = {}
        for name, root in self.roots.items():
            root.mkdir(mode=0o700)
            for number in range(_TURNS):
                turn = f"e{Promise.played}-{number}"
                self.files[name, number] = _File(root / f"{turn}.txt", f"{name}/{turn}")
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
                "PALIADIN_MAX_BYTES": str(_MAX_BYTES),
                "PALIADIN_EVENTS": "inotify" if self.engine == "inotify" else "watchfiles",
            }
        )
        self.daemon = Daemon(settings, self.log, self._attempt, self.hearing, clock=self.clock)

    # --- the daemon and the time --------------------------------------------------------------

    @initialize(seed=st.integers(0, 2**32))
    def first_start(self, seed: int) -> None:
        """Both roots are met, so nothing in them is history any more."""
        self.daemon.rng.seed(seed)
        self.daemon.start()
        self.passes(0.0)

    @rule(seconds=st.sampled_from([0.0, 0.002, 0.1, 1.0, 6.0, 9.0, 70.0, 400.0]))
    def passes(self, seconds: float) -> None:
        """Time passes."""
        was_up = self.daemon.is_up
        self.daemon.passes(seconds)
        for file in self.files.values():
            file.latest = max(file.latest, self.clock.now)
            self._may_be_taken_from_a_writer(file)
        if not self.daemon.is_up:
            self.up_since = float("inf")
            self._miss_what_was_set()
            return
        if seconds > 2 * _RESCAN_S:
            self.set_forward_s = 0.0
        if not was_up or self.up_since == float("inf"):
            self.up_since = self.clock.now
        for (root, _), file in self.files.items():
            self._owe(root, file)

    def _may_be_taken_from_a_writer(self, file: _File) -> None:
        # A whole answer that nobody changed for two minutes counts as complete while it is open.
        waited = self.clock.now - file.since
        if waited < HELD_S or file.held_since == file.since or not file.is_held():
            return
        content = file.path.read_bytes()
        if content.endswith(TRAILER):
            file.held_since = file.since
            file.earliest = min(file.earliest, file.since)
            self._account(file.path.stat().st_ino, content)

    def _owe(self, root: str, file: _File) -> None:
        # It lay there, complete, for long enough while we ran.
        if file.line is None:
            return
        line = self.written[file.line]
        is_first = all(one.turn != file.key for one in self.written[: file.line])
        waited = self.clock.now - max(file.since, self.calm[root], self.up_since)
        in_time = is_first or file.latest - file.earliest <= _LATE_S
        if (
            line.mark not in {"empty", "too_large"}
            and waited >= (_FIRST_S if file.versions == 1 else _AGAIN_S)
            and in_time
        ):
            self.written[file.line] = msgspec.structs.replace(line, owed=True)

    @rule()
    def start(self) -> None:
        """It is started, if it does not run."""
        self.daemon.start()
        self.passes(0.0)

    @rule()
    def stop(self) -> None:
        """SIGTERM."""
        self.daemon.stop()
        self.up_since = float("inf")
        self._miss_what_was_set()

    @rule(at_point=st.integers(0, 40))
    def kill(self, at_point: int) -> None:
        """SIGKILL, now or at a crash point that it will come to."""
        self._fault("kill")
        self.daemon.kill(at_point)
        self.passes(0.0)

    @rule(hours=st.sampled_from([-1, 1]))
    def clock_is_set(self, hours: int) -> None:
        """Forward or back."""
        self._fault("clock")
        self.clock.set(hours * 3600.0)
        self.set_forward_s += max(0.0, hours * 3600.0)
        self.passes(0.0)

    def _miss_what_was_set(self) -> None:
        # What a daemon did not live to see counts for the next one as time that passed.
        for file in self.files.values():
            file.earliest -= self.set_forward_s
        self.set_forward_s = 0.0

    # --- the receiver -------------------------------------------------------------------------

    @rule(mode=st.sampled_from(sorted(_ANSWERS)), ping_is_well=st.booleans())
    def receiver_is(self, mode: str, *, ping_is_well: bool) -> None:
        """Well, down or odd, from here on."""
        self.mode, self.ping_mode = mode, "well" if ping_is_well else mode
        self._fault(mode)

    @rule(answers=st.lists(st.sampled_from(sorted(_ANSWERS)), min_size=1, max_size=6))
    def receiver_is_odd_for_some_requests(self, answers: list[str]) -> None:
        """One by one, and then as before."""
        self.odd.extend(answers)

    async def _attempt(self, webhook_id: str, body: bytes) -> Outcome:
        is_ping = webhook_id.startswith("ping_")
        how = self.odd.popleft() if self.odd else self.ping_mode if is_ping else self.mode
        status, error, stored, seconds = _ANSWERS[how]
        if how != "down":
            fault = how not in {"well", "slow"}
            now = self.clock.now
            self.arrived.append(arrival(now, webhook_id, body, stored=stored, fault=fault))
        await anyio.sleep(seconds)
        return Outcome(status, error, retry_after="7" if status == 429 else None)

    # --- writers ------------------------------------------------------------------------------

    @rule(**_turns, word=_words, end=_ends, size=st.sampled_from([0, 0, 0, _MAX_BYTES]))
    def write(self, root: str, number: int, word: str, end: bytes, size: int) -> None:
        """In place: open, write, close."""
        file = self.files[root, number]
        if self._is_there(root):
            file.path.write_bytes(_text(file, word, size) + end)
            self._changed(file)

    @rule(**_turns, word=_words, end=_ends)
    def publish(self, root: str, number: int, word: str, end: bytes) -> None:
        """Beside it, then renamed."""
        file = self.files[root, number]
        if self._is_there(root):
            temp = file.path.with_name(f"{file.path.name}.tmp.1.abc")
            temp.write_bytes(_text(file, word) + end)
            temp.rename(file.path)
            self._changed(file)

    @rule(**_turns, more=st.sampled_from([TRAILER, b"mehr\n"]))
    def append(self, root: str, number: int, more: bytes) -> None:
        """To what lies there, or to nothing: also after a poller deleted it."""
        file = self.files[root, number]
        if self._is_there(root):
            with file.path.open("ab") as there:
                there.write(more)
            self._changed(file)

    @rule(**_turns)
    def empty(self, root: str, number: int) -> None:
        """Made, or cut to nothing."""
        file = self.files[root, number]
        if self._is_there(root):
            file.path.write_bytes(b"")
            self._changed(file)

    @rule(**_turns, word=_words)
    def open_and_write(self, root: str, number: int, word: str) -> None:
        """Something that looks whole, while more is to come."""
        file = self.files[root, number]
        if self._is_there(root) and file.fd is None:
            file.fd = os.open(file.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(file.fd, _text(file, word) + TRAILER)
            self._changed(file)

    @rule(**_turns, more=st.sampled_from([b"", b"mehr\n", TRAILER]))
    def write_and_close(self, root: str, number: int, more: bytes) -> None:
        """What an open file still gets, whatever became of its name."""
        file = self.files[root, number]
        if file.fd is not None:
            os.write(file.fd, more)
            lies, behind = file.is_held(), Path(f"/proc/self/fd/{file.fd}")
            content, inode = behind.read_bytes(), behind.stat().st_ino
            os.close(file.fd)
            file.fd = None
            if lies:
                self._changed(file)
            else:
                self._account(inode, content)

    @rule(**_turns)
    def unlink(self, root: str, number: int) -> None:
        """A legacy poller takes it."""
        file = self.files[root, number]
        file.path.unlink(missing_ok=True)
        self._changed(file)

    @rule(root=st.sampled_from(_ROOTS), number=st.integers(0, 1))
    def rename(self, root: str, number: int) -> None:
        """It becomes another turn's."""
        source, target = self.files[root, number], self.files[root, 2]
        if source.path.exists() and not source.is_held():
            source.path.rename(target.path)
            self._changed(source)
            self._changed(target)

    @rule(root=st.sampled_from(_ROOTS))
    def rmdir(self, root: str) -> None:
        """The directory goes, and all in it."""
        if self._is_there(root):
            self._fault("rmdir")
            shutil.rmtree(self.roots[root])
            for file in self.files.values():
                self._changed(file) if file.path.parent.name == root else None

    @rule(root=st.sampled_from(_ROOTS))
    def mkdir(self, root: str) -> None:
        """It is made again."""
        if not self._is_there(root):
            self.roots[root].mkdir(mode=0o700)
            self._stamp(self.roots[root])
            self.calm[root] = self.clock.now

    @rule(root=st.sampled_from(_ROOTS), mode=st.sampled_from([0o700, 0o702]))
    def chmod(self, root: str, mode: int) -> None:
        """Anybody may write there, or not any more."""
        if self._is_there(root):
            self._fault("chmod")
            self.roots[root].chmod(mode)
            self.calm[root] = self.clock.now if mode == 0o700 else float("inf")

    @precondition(lambda self: self.engine == "told")
    @rule()
    def overflow(self) -> None:
        """What was told and not heard is lost."""
        self._fault("overflow")
        self.hearing.overflow()

    @precondition(lambda self: self.engine == "told")
    @rule()
    def watch_fails(self) -> None:
        """As for a name that is no UTF-8."""
        self._fault("watch")
        self.hearing.fail()

    # --- the account --------------------------------------------------------------------------

    def _is_there(self, root: str) -> bool:
        return self.roots[root].is_dir()

    def _changed(self, file: _File) -> None:
        # Accounts for what lies under the name now, and tells of it.
        file.since, file.line = self.clock.now, None
        if not self._is_there(file.path.parent.name):
            return
        self._stamp(file.path.parent)
        self.hearing.tell(file.path)
        if not file.path.exists():
            return
        self._stamp(file.path)
        file.versions += 1
        file.inodes.add(inode := file.path.stat().st_ino)
        if file.is_held():
            return  # whatever it looks like
        file.line = len(self.written)
        file.latest = self.clock.now
        file.earliest = min(file.earliest, file.latest)
        self._account(inode, file.path.read_bytes(), file)

    def _account(self, inode: int, content: bytes, file: _File | None = None) -> None:
        # This is complete: under its name, or where the daemon may have it open without one.
        mark = hashlib.sha256(content).hexdigest()
        if not has_text(content):
            mark = "empty"
        elif len(content) > _MAX_BYTES:
            mark = "too_large"
        for each in sorted(self.files.values(), key=lambda each: each is not file):
            if inode in each.inodes:
                self.written.append(Written(self.clock.now, each.key, mark, owed=False))

    def _stamp(self, path: Path) -> None:
        # With our clock's time, and as the kernel does: what happens at once bears one time.
        at = int(self.clock.time() * 1000) * 1_000_000 + self.clock.sets
        os.utime(path, ns=(at, at))

    def _fault(self, name: str) -> None:
        self.faults.append(Fault(name, self.clock.now, self.clock.now))

    # --- the end ------------------------------------------------------------------------------

    def teardown(self) -> None:
        """All is mended and time passes; then the accounts must agree."""
        try:
            self._mend()
            self._in_the_end()
            self._compare()
        finally:
            Promise.began = self.clock.now + 1
            self.daemon.close()
            self.log.close()
            for file in self.files.values():
                if file.fd is not None:
                    os.close(file.fd)
            shutil.rmtree(self.base)

    def _mend(self) -> None:
        self.mode = self.ping_mode = "well"
        self.odd.clear()
        for root, number in self.files:
            self.write_and_close(root, number, b"")
        for root in _ROOTS:
            self.mkdir(root)
            self.chmod(root, 0o700)
        self.daemon.spare()
        self.start()

    def _in_the_end(self) -> None:
        self.passes(_AGAIN_S)
        self.passes(1.0)
        end = self.clock.now + _IN_THE_END_S
        while self._missing() and self.clock.now < end:
            self._replay_what_was_given_up()
            self.passes(30.0)
        self.daemon.stop()

    def _missing(self) -> list[str]:
        effect = in_effect(self.arrived)
        lines: dict[str, list[Written]] = {}
        for line in self.written:
            lines.setdefault(line.turn, []).append(line)
        return [
            turn
            for turn, of_turn in lines.items()
            if (ending := expected(of_turn)) and effect.get(turn) not in ending
        ]

    def _replay_what_was_given_up(self) -> None:
        # As an operator does. The limits of the promise name it: refused while others pass.
        with Outbox(self.state / FILENAME, wall=self.clock.time) as outbox:
            if not outbox.counts().get("dead"):
                return
            assert any(fault.name in {"400", "404", "401", "301"} for fault in self.faults)
            outbox.transaction([partial(outbox.replay, dead=True)])
            self._fault("given up until an operator looked")

    def _compare(self) -> None:
        verdict = judge(self.written, self.arrived, self.faults)
        assert verdict.holds, verdict
        with Outbox(self.state / FILENAME) as outbox:
            assert not outbox.counts().get("pending")
        lines = [
            msgspec.json.decode(line) for line in (self.base / "log").read_bytes().splitlines()
        ]
        numbers = {line["event_id"] for line in lines if "event_id" in line}
        assert numbers == set(range(1, len(numbers) + 1)), "an event's line is missing"
        if self.into is not None:
            self.into.took_place(self.written, self.arrived, self.faults)


@scenario()
def model(world: World) -> None:
    """Model: random histories of all of this, in virtual time, with every engine of events."""
    tried = 30 if world.quick else 1000
    for engine in ENGINES:
        machine = type(f"Promise_{engine}", (Promise,), {"engine": engine, "into": world})
        run_state_machine_as_test(
            hypothesis.seed(world.rng.getrandbits(32))(machine),
            settings=hypothesis.settings(
                max_examples=tried, stateful_step_count=40, deadline=None, database=None
            ),
        )
