"""Each command on streams that are closed, full, of another encoding, or a plain terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from support.sidecar import COMMAND, Sidecar
from support.slow import slow
from support.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from support.receiver import Receiver

COMMANDS = ["status", "turns", "show t1", "log", "check", "--help", "--version", "status --json"]


#: Whatever started the tests may ignore a signal, and its children then do so too.
HEARS_SIGNALS = ["env", "--default-signal"]


def shell(host: Sidecar, line: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A shell's line, in which `$0` is the command."""
    return subprocess.run(
        ["sh", "-c", line, COMMAND],
        env=host.environ | environ, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def delivered(host: Sidecar, receiver: Receiver) -> Sidecar:
    host.start()
    host.answer("t1")
    host.wait_event("delivery.delivered", turn_id="t1")
    return host


@pytest.mark.parametrize("unbuffered", ["", slow("1")])
def test_a_full_output(delivered: Sidecar, unbuffered: str) -> None:
    """One sentence and exit 1 for each command, `--help` as well."""
    for command in COMMANDS:
        line = f'"$0" {command} > /dev/full'
        done = shell(delivered, line, PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 1, command
        assert done.stderr == (
            "paliadin-sidecar: the output cannot be written: No space left on device\n"
        )


@pytest.mark.slow
def test_a_closed_output(delivered: Sidecar) -> None:
    """The exit code says it, as with --quiet, and nothing else is written to the outbox's file."""
    # Where the coverage is measured, its file would be opened in the place of the output.
    unwatched = "unset COVERAGE_PROCESS_CONFIG COVERAGE_PROCESS_START"
    for command in COMMANDS:
        for closed in (">&-", "<&- >&- 2>&-", "2>&-"):
            done = shell(delivered, f'{unwatched}; "$0" {command} {closed}')
            assert (done.returncode, done.stderr) == (0, ""), command
    delivered.stop()
    assert shell(delivered, f'{unwatched}; "$0" status >&-').returncode == 1


@pytest.mark.parametrize("encoding", ["ascii", slow("latin-1"), slow("utf-8")])
def test_an_output_of_another_encoding(host: Sidecar, receiver: Receiver, encoding: str) -> None:
    """JSON is UTF-8 and what cannot be printed otherwise is escaped; the daemon starts."""
    host.environ |= {"PALIADIN_HOST_LABEL": "müller 你好", "PYTHONIOENCODING": encoding}
    host.start()
    assert host.wait_event("service.started")["host"] == "müller 你好"
    host.answer("t1")
    host.wait_event("delivery.delivered", turn_id="t1")
    for command in COMMANDS:
        done = subprocess.run(
            [COMMAND, *command.split()], env=host.environ, capture_output=True, check=False
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode == 0
        if "--json" in command:
            json.loads(done.stdout)
    done = subprocess.run([COMMAND, "log"], env=host.environ, capture_output=True, check=False)
    assert b"ller" in done.stdout


@pytest.mark.parametrize(
    ("environ", "colored"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_a_plain_terminal(
    host: Sidecar,
    environ: dict[str, str],
    colored: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    """NO_COLOR and TERM=dumb are heeded by all that colours, `run` first."""
    host.state.mkdir(mode=0o700)
    for command in ("run", "log", "status"):
        ours, theirs = pty.openpty()
        with os.fdopen(ours, "rb", buffering=0) as screen:
            process = subprocess.Popen(
                [COMMAND, command], env=host.environ | environ,
                stdin=theirs, stdout=theirs, stderr=theirs,
            )  # fmt: skip
            os.close(theirs)
            text = b""
            with suppress(OSError):  # EIO: the other end is closed
                while part := screen.read(4096):
                    text += part
                    if command == "run" and b"service.started" in text:
                        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
        assert text
        assert (b"\x1b" in text) is (colored and command != "status"), (command, text)


def test_a_terminal_that_is_closed(host: Sidecar, receiver: Receiver) -> None:
    """SIGHUP ends the daemon in order, as SIGTERM does."""
    host.prefix = HEARS_SIGNALS
    host.start()
    assert host.stop(signal.SIGHUP) == 0
    assert host.events("service.stopped")


def test_a_terminal_whose_end_does_not_matter(host: Sidecar, receiver: Receiver) -> None:
    """Under nohup it goes on."""
    host.prefix = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    host.start()
    assert host.process is not None
    host.process.send_signal(signal.SIGHUP)
    host.answer("t1")
    receiver.wait("t1")
    assert host.stop() == 0


def test_a_terminal_that_goes_away(host: Sidecar, receiver: Receiver) -> None:
    """Its lines cannot be written any more, and it ends in time all the same."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*HEARS_SIGNALS, COMMAND, "run"], env=host.environ,
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        until("its start", lambda: b"service.started" in os.read(ours, 65536))
    finally:
        os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(PATIENCE_S) == 0


def test_a_pipe_whose_reader_went_away(host: Sidecar, receiver: Receiver) -> None:
    """As where journald was restarted: that lines are lost does not become the exit code."""
    process = subprocess.Popen(
        [COMMAND, "run"], env=host.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout as lines:
        assert any(b"service.started" in line for line in lines)
    host.answer("t1")
    receiver.wait("t1")
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
