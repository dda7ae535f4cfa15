"""A machine that tries every order of what may happen to the promise (`chaos.model`)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from chaos.model import ANSWERS, ENGINES, MAX_BYTES, ROOTS, TURNS, Model, text
from chaos.world import scenario
from chaos.writers import TRAILER

if TYPE_CHECKING:
    from chaos.world import World


_turns: dict[str, Any] = {"root": st.sampled_from(ROOTS), "number": st.integers(0, TURNS - 1)}
_words = st.sampled_from(["Anna", "Otto"])  # as long as each other
_ends = st.sampled_from([b"", TRAILER])


class Promise(Model):
    """What was complete on disk for long enough arrives whole, in the end, once in effect."""

    # --- the daemon and the time --------------------------------------------------------------

    @initialize(seed=st.integers(0, 2**32))
    def first_start(self, seed: int) -> None:
        """Both roots are met, so nothing in them is history any more."""
        self.daemon.rng.seed(seed)
        self.daemon.start()
        while b'"service.started"' not in (self.base / "log").read_bytes():
            self.advance(0.01)

    @rule(seconds=st.sampled_from([0.0, 0.002, 0.1, 1.0, 6.0, 9.0, 70.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        """Time passes."""
        self.advance(seconds)

    @rule()
    def start(self) -> None:
        """It is started, if it does not run."""
        self.daemon.start()
        self.advance(0.0)

    @rule()
    def stop(self) -> None:
        """SIGTERM."""
        self.daemon.stop()
        self.up_since = float("inf")
        self.miss_what_was_set()

    @rule(at_point=st.integers(0, 40))
    def kill(self, at_point: int) -> None:
        """SIGKILL, now or at a failpoint that it will come to."""
        self.fault("kill")
        self.daemon.kill(at_point)
        self.advance(0.0)

    @rule(hours=st.sampled_from([-1, 1]))
    def clock_is_set(self, hours: int) -> None:
        """Forward or back."""
        self.fault("clock")
        self.clock.set(hours * 3600.0)
        self.set_forward_s += max(0.0, hours * 3600.0)
        self.advance(0.0)

    @rule(slept_s=st.sampled_from([0.0, 30.0]))
    def interrupted(self, slept_s: float) -> None:
        """The machine slept, or came to another network."""
        self.fault("interrupted")
        self.daemon.interrupt(slept_s)
        self.advance(0.0)

    # --- the receiver -------------------------------------------------------------------------

    @rule(mode=st.sampled_from(sorted(ANSWERS)), ping_is_well=st.booleans())
    def receiver_is(self, mode: str, *, ping_is_well: bool) -> None:
        """Well, down or odd, from here on."""
        self.mode, self.ping_mode = mode, "well" if ping_is_well else mode
        self.fault(mode)

    @rule(answers=st.lists(st.sampled_from(sorted(ANSWERS)), min_size=1, max_size=6))
    def receiver_is_odd_for_some_requests(self, answers: list[str]) -> None:
        """One by one, and then as before."""
        self.odd.extend(answers)

    # --- writers ------------------------------------------------------------------------------

    @rule(**_turns, word=_words, end=_ends, size=st.sampled_from([0, 0, 0, MAX_BYTES]))
    def write(self, root: str, number: int, word: str, end: bytes, size: int) -> None:
        """In place: open, write, close."""
        file = self.files[root, number]
        if self.is_there(root):
            file.path.write_bytes(text(file, word, size) + end)
            self.changed(file)

    @rule(**_turns, word=_words, end=_ends)
    def publish(self, root: str, number: int, word: str, end: bytes) -> None:
        """Beside it, then renamed."""
        file = self.files[root, number]
        if self.is_there(root):
            temp = file.path.with_name(f"{file.path.name}.tmp.1.abc")
            temp.write_bytes(text(file, word) + end)
            temp.rename(file.path)
            self.changed(file)

    @rule(**_turns, more=st.sampled_from([TRAILER, b"mehr\n"]))
    def append(self, root: str, number: int, more: bytes) -> None:
        """To what is there, or to nothing: also after a poller deleted it."""
        file = self.files[root, number]
        if self.is_there(root):
            with file.path.open("ab") as there:
                there.write(more)
            self.changed(file)

    @rule(**_turns)
    def empty(self, root: str, number: int) -> None:
        """Made, or cut to nothing."""
        file = self.files[root, number]
        if self.is_there(root):
            file.path.write_bytes(b"")
            self.changed(file)

    @rule(**_turns, word=_words)
    def open_and_write(self, root: str, number: int, word: str) -> None:
        """Something that looks whole, while more is to come."""
        file = self.files[root, number]
        if self.is_there(root) and file.fd is None:
            file.fd = os.open(file.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(file.fd, text(file, word) + TRAILER)
            self.changed(file)

    @rule(**_turns, more=st.sampled_from([b"", b"mehr\n", TRAILER]))
    def write_and_close(self, root: str, number: int, more: bytes) -> None:
        """What an open file still gets, whatever became of its name."""
        file = self.files[root, number]
        if file.fd is not None:
            os.write(file.fd, more)
            is_named, behind = file.is_held(), Path(f"/proc/self/fd/{file.fd}")
            content, inode = behind.read_bytes(), behind.stat().st_ino
            os.close(file.fd)
            file.fd = None
            if is_named:
                self.changed(file)
            else:
                self.account(inode, content)

    @rule(**_turns)
    def unlink(self, root: str, number: int) -> None:
        """A legacy poller takes it."""
        file = self.files[root, number]
        file.path.unlink(missing_ok=True)
        self.changed(file)

    @rule(root=st.sampled_from(ROOTS), number=st.integers(0, 1))
    def rename(self, root: str, number: int) -> None:
        """It becomes another turn's."""
        source, target = self.files[root, number], self.files[root, 2]
        if source.path.exists() and not source.is_held():
            source.path.rename(target.path)
            self.changed(source)
            self.changed(target)

    @rule(root=st.sampled_from(ROOTS))
    def rmdir(self, root: str) -> None:
        """The directory goes, and all in it."""
        if self.is_there(root):
            self.fault("rmdir")
            shutil.rmtree(self.roots[root])
            for file in self.files.values():
                self.changed(file) if file.path.parent.name == root else None

    @rule(root=st.sampled_from(ROOTS))
    def mkdir(self, root: str) -> None:
        """It is made again."""
        if not self.is_there(root):
            self.roots[root].mkdir(mode=0o700)
            self.stamp(self.roots[root])
            self.calm[root] = self.clock.now

    @rule(root=st.sampled_from(ROOTS), mode=st.sampled_from([0o700, 0o702]))
    def chmod(self, root: str, mode: int) -> None:
        """Anybody may write there, or not any more."""
        if self.is_there(root):
            self.fault("chmod")
            self.roots[root].chmod(mode)
            self.calm[root] = self.clock.now if mode == 0o700 else float("inf")

    @precondition(lambda self: self.engine == "scripted")
    @rule()
    def overflow(self) -> None:
        """Events that were raised and not read yet are lost."""
        self.fault("overflow")
        self.file_events.overflow()

    @precondition(lambda self: self.engine == "scripted")
    @rule()
    def watch_fails(self) -> None:
        """As for a name that is no UTF-8."""
        self.fault("watch")
        self.file_events.fail()

    # --- the end ------------------------------------------------------------------------------

    def teardown(self) -> None:
        """All is mended and time passes; then the accounts must agree."""
        try:
            self.mend()
            self.in_the_end()
            self.compare()
        finally:
            Model.began = self.clock.now + 1
            self.daemon.close()
            self.log.close()
            for file in self.files.values():
                if file.fd is not None:
                    os.close(file.fd)
            shutil.rmtree(self.base)

    def mend(self) -> None:
        """Repair whatever was broken, and start the daemon."""
        self.mode = self.ping_mode = "well"
        self.odd.clear()
        for root, number in self.files:
            self.write_and_close(root, number, b"")
        for root in ROOTS:
            self.mkdir(root)
            self.chmod(root, 0o700)
        self.daemon.cancel_kill()
        self.start()


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
