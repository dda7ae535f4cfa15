"""`top`, as the real command on a terminal of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock, patch

import pytest
from support.sidecar import COMMAND, Sidecar
from support.terminal import Terminal
from support.waiting import PATIENCE_S, until

from paliadin_sidecar.operator.commands import top
from paliadin_sidecar.operator.glance import Glance
from paliadin_sidecar.operator.language import Language

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The other screen of a terminal, and back: what was there before is there again.
ALTERNATE, MAIN = "\x1b[?1049h", "\x1b[?1049l"
HOME = "\x1b[H"


@pytest.fixture
def watching(delivered: Sidecar) -> Iterator[Terminal]:
    with Terminal([COMMAND, "top"], delivered.environ) as terminal:
        terminal.wait_for("q quits")
        yield terminal


@pytest.mark.parametrize(("key", "code"), [(b"q", 0), (b"Q", 0), (b"\x03", 0)])
def test_q_and_ctrl_c_end_it(watching: Terminal, key: bytes, code: int) -> None:
    """At once, and the terminal is as it was; other keys do nothing."""
    watching.type(b"x\n")
    watching.type(key)
    assert watching.wait() == code
    assert watching.attributes == watching.before
    assert watching.output.index(ALTERNATE) < watching.output.rindex(MAIN)
    assert "Traceback" not in watching.output


def test_a_key_that_is_taken_away() -> None:
    """As Ctrl-C does with what was typed before it: nobody waits for that key any more."""
    master, slave = pty.openpty()
    with (
        os.fdopen(master, "wb", buffering=0) as typing,
        os.fdopen(slave, "rb") as stdin,
        patch.object(sys, "stdin", stdin),
        top._keys() as keyboard,
    ):
        assert keyboard is not None
        typing.write(b"x")
        until("the key is there", lambda: select.select([keyboard], [], [], 0)[0])
        termios.tcflush(keyboard, termios.TCIFLUSH)
        assert os.read(keyboard, 1) == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(watching: Terminal, number: signal.Signals) -> None:
    """As when an ssh connection is lost, or a machine shuts down."""
    watching.process.send_signal(number)
    assert watching.wait() == 128 + number
    assert watching.attributes == watching.before
    assert watching.output.index(ALTERNATE) < watching.output.rindex(MAIN)


def test_it_is_drawn_when_something_happens(delivered: Sidecar, watching: Terminal) -> None:
    """And not otherwise: an idle host costs an ssh connection nothing."""
    # Longer than the second after which it draws at the latest what has happened.
    until("rest", lambda: watching.rest(2.2) == "")
    delivered.answer("new-one")
    watching.wait_for("new-one")
    delivered.stop()
    watching.wait_for("not running")


def test_it_is_drawn_once_a_second_at_most(delivered: Sidecar, watching: Terminal) -> None:
    """However much happens."""
    before = watching.output.count(HOME)
    for n in range(30):
        delivered.answer(f"turn-{n}")
        delivered.wait_event("delivery.delivered", turn_id=f"turn-{n}")
    watching.wait_for("turn-29")
    at = [datetime.fromisoformat(e["timestamp"]) for e in delivered.events("delivery.delivered")]
    # One as it begins, one as it ends, and one in each whole second between.
    assert watching.output.count(HOME) - before <= 2 + (at[-1] - at[3]).total_seconds()


def test_a_terminal_that_is_resized(delivered: Sidecar, watching: Terminal) -> None:
    """The next look fills it."""
    assert "aichat/paliadin " not in watching.output
    watching.resize(200, 50)
    watching.wait_for("aichat/paliadin ")


def test_german(delivered: Sidecar) -> None:
    """As for the report; also where the locale knows no umlaut."""
    for locale in ("C.UTF-8", "C"):
        command = [COMMAND, "top", "--language", "de"]
        with Terminal(command, delivered.environ | {"LC_ALL": locale}) as terminal:
            terminal.wait_for("q beendet")
            terminal.type(b"q")
            assert terminal.wait() == 0


def test_in_a_pipe(delivered: Sidecar) -> None:
    """A line a second; it ends with who reads."""
    with subprocess.Popen(
        [COMMAND, "top"], env=delivered.environ | {"TERM": "xterm"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.stdout.close()
        assert process.wait(PATIENCE_S) == -signal.SIGPIPE
    assert len({line[:19] for line in lines}) == 3
    for line in lines:
        assert re.fullmatch(
            r"\S{10} \S{14}  running  undelivered 0  under way 0  receiver well\n", line
        )


def test_a_second_that_ends_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks at the clock, of which the first found it not ended yet."""
    clock = count(0.0, 0.4)
    watched = Mock(version=Mock(side_effect=[None, None, KeyboardInterrupt]))
    watched.look.return_value = Glance(at=time.time(), alive=False)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt):
        top._print_lines(watched, Language("en"))


def test_a_full_disk_behind_the_pipe(delivered: Sidecar) -> None:
    """It says so."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [COMMAND, "top"], env=delivered.environ, stdout=full, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr


def test_an_outbox_that_is_moved_aside(delivered: Sidecar, watching: Terminal) -> None:
    """What is shown would be of an outbox that nobody uses."""
    (delivered.state / "outbox.db").rename(delivered.state / "aside")
    assert watching.wait() == 1
    assert "was moved aside" in watching.output.rpartition(MAIN)[2]


def test_without_rich(host: Sidecar) -> None:
    """It names what has it."""
    with patch.dict(sys.modules, {"rich": None}):
        done = host.typed("top")
    assert done.returncode == 1
    assert "requirements/sidecar.txt" in done.stderr


def test_without_an_outbox(host: Sidecar) -> None:
    """As each command that reads one."""
    done = host.typed("top")
    assert done.returncode == 1
    assert "There is no outbox" in done.stderr


@pytest.mark.slow
def test_idle_it_costs_next_to_nothing(delivered: Sidecar, watching: Terminal) -> None:
    """Less than 1 % of a core, and the daemon no more than without it."""
    assert delivered.process is not None
    watching.rest(2.0)
    before = cpu_s(watching.process.pid), cpu_s(delivered.process.pid)
    watching.rest(20.0)
    after = cpu_s(watching.process.pid), cpu_s(delivered.process.pid)
    assert after[0] - before[0] < 0.2
    watched_s = after[1] - before[1]
    watching.type(b"q")
    watching.wait()
    before_s = cpu_s(delivered.process.pid)
    watching.rest(20.0)
    assert watched_s <= cpu_s(delivered.process.pid) - before_s + 0.1


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
