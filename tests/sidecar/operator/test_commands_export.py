"""`export`, as the real command."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.outbox_box import USER, Box
from support.receiver import Receiver, Reply
from support.sidecar import COMMAND, Sidecar
from support.tokens import unsigned_token
from support.waiting import PATIENCE_S

from paliadin_sidecar.audit.pages import TURN_COLUMNS
from paliadin_sidecar.operator.commands.export import EVENT_COLUMNS
from paliadin_sidecar.outbox import event_rows
from paliadin_sidecar.outbox.database import FILENAME

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTILE = '=HYPERLINK("http://example.org")\n<script>\x1b[31m\'"'


def lines(host: Sidecar, *args: str) -> list[dict[str, Any]]:
    done = host.typed("export", "--format", "jsonl", *args)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows(host: Sidecar, *args: str) -> list[dict[str, str]]:
    done = host.typed("export", *args)
    assert (done.returncode, done.stderr) == (0, "")
    return list(csv.DictReader(io.StringIO(done.stdout)))


@pytest.fixture
def box(host: Sidecar) -> Iterator[Box]:
    """The outbox of a host whose daemon does not run."""
    host.state.mkdir(mode=0o700)
    made = Box(host.state / FILENAME, create=True)
    with made.outbox:
        yield made


def record(box: Box, count: int, **fields: Any) -> None:  # noqa: ANN401 - JSON values
    one = partial(event_rows.record_service_event, box.outbox, "receiver.paused", fields)
    box.outbox.transaction([one] * count)


def test_events_are_those_of_the_journal(delivered: Sidecar) -> None:
    """In the same order and with the same fields; only what could confirm a guess differs."""
    delivered.stop()
    exported = lines(delivered)
    printed = [line for line in delivered.lines if "event_id" in line]
    assert len(exported) == len(printed)
    for ours, theirs in zip(exported, printed, strict=True):
        if "sha256" in ours:
            assert ours.pop("webhook_id").startswith(theirs.pop("webhook_id"))
            assert (ours.pop("sha256") is None) == (theirs.pop("content", None) is None)
        ours.pop("superseded", None)
        theirs.pop("superseded", None)
        assert ours == theirs
        assert list(ours)[:4] == ["event_id", "timestamp", "level", "event"]


def test_events_as_csv(delivered: Sidecar) -> None:
    """A column for each field there is, and in each row what its event has."""
    exported = rows(delivered)
    assert tuple(exported[0]) == EVENT_COLUMNS
    by_line = lines(delivered)
    for row, line in zip(exported, by_line, strict=False):
        assert row["event_id"] == str(line["event_id"])
        assert row["timestamp"] == line["timestamp"]
        assert row["turn_id"] == line.get("turn_id", "")
        assert row["other"] == ""
    started = next(row for row in exported if row["event"] == "service.started")
    assert json.loads(started["roots"]) == [str(delivered.aichat), str(delivered.legacy)]


def test_turns(delivered: Sidecar) -> None:
    """A row for each revision, in both forms the same."""
    exported = rows(delivered, "--turns")
    assert tuple(exported[0]) == TURN_COLUMNS
    found = sorted((row["turn_id"], row["revision"], row["state"]) for row in exported)
    assert found == [("t1", "1", "delivered"), ("t2", "1", "delivered"), ("t2", "2", "delivered")]
    for row, line in zip(exported, lines(delivered, "--turns"), strict=True):
        assert list(line) == list(TURN_COLUMNS)
        assert row == {name: "" if value is None else str(value) for name, value in line.items()}
        assert row["accepted_at"].endswith("Z")


def test_after(box: Box, host: Sidecar) -> None:
    """A job that asks for what comes after its last event has each once."""
    had: list[int] = []
    for count in (3, 0, 2):
        record(box, count)
        had += [line["event_id"] for line in lines(host, "--after", str(max(had, default=0)))]
    assert had == [1, 2, 3, 4, 5]


def test_after_an_event_that_was_never_recorded(box: Box, host: Sidecar) -> None:
    """The outbox was begun anew: to print nothing, day after day, would lose what it has."""
    record(box, 2)
    done = host.typed("export", "--after", "3")
    assert (done.returncode, done.stdout) == (1, "")
    assert "its last one is 2" in done.stderr
    assert "--after 0" in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("--turns", "--after", "1"), ("--since", "yesterday"), ("--until", "x"),
        ("--format", "xlsx"), ("--after", "-1"), ("--after", "x"),
    ],
)  # fmt: skip
def test_wrong_usage(box: Box, host: Sidecar, args: tuple[str, ...]) -> None:
    """Exit 2, and the option that is wrong."""
    done = host.typed("export", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert args[0] in done.stderr or "--after" in done.stderr


def test_since_and_until(box: Box, host: Sidecar) -> None:
    """An age or a date; the end does not belong to it."""
    for _ in range(4):
        record(box, 1)
        box.now += 60
    # 08:00 UTC was the first.
    period = ("--since", "2026-11-22T08:01Z", "--until", "2026-11-22T08:03:00+00:00")
    assert [line["event_id"] for line in lines(host, *period)] == [2, 3]
    assert lines(host, "--since", "2026-11-22T10:00+01:00") == []
    assert lines(host, "--until", "36500d") == []


def test_nothing(box: Box, host: Sidecar) -> None:
    """CSV says what there is none of."""
    assert host.typed("export").stdout == ",".join(EVENT_COLUMNS) + "\n"
    assert host.typed("export", "--turns").stdout == ",".join(TURN_COLUMNS) + "\n"
    assert host.typed("export", "--format", "jsonl").stdout == ""


def test_hostile_values(box: Box, host: Sidecar) -> None:
    """A spreadsheet runs none of it; a program gets it as it was."""
    record(box, 1, why=HOSTILE, path=f"a;{HOSTILE}")
    (row,) = rows(host)
    assert row["why"].startswith("'=HYPERLINK")
    assert row["path"].startswith("a;'=HYPERLINK")
    assert "\x1b" not in str(row)
    (line,) = lines(host)
    assert (line["why"], line["path"]) == (HOSTILE, f"a;{HOSTILE}")


def test_an_event_of_another_version(box: Box, host: Sidecar) -> None:
    """Nothing of it is left out."""
    record(box, 1, why="x", colour="blue", size=3)
    (row,) = rows(host)
    assert (row["why"], json.loads(row["other"])) == ("x", {"colour": "blue", "size": 3})


def test_without_an_outbox(host: Sidecar) -> None:
    """As each command that reads one."""
    done = host.typed("export")
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no outbox" in done.stderr


def test_nothing_is_written(box: Box, host: Sidecar) -> None:
    """An export leaves the outbox as it was."""
    record(box, 3)
    box.outbox.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = box.path.read_bytes()
    assert len(lines(host)) == 3
    assert box.path.read_bytes() == before
    assert not Path(f"{box.path}-wal").read_bytes()


@pytest.mark.parametrize("what", ["--events", "--turns"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_no_answer_no_token_and_no_whole_user(
    host: Sidecar, receiver: Receiver, what: str, form: str
) -> None:
    """Neither of what was delivered nor of what was refused."""
    receiver.behaviour = lambda request: Reply(400 if b'"t2"' in request.body else 204)
    host.start()
    token = unsigned_token(jti="asked-t1", sub=USER)
    (host.aichat / "t1.jwt").write_text(token)
    for turn_id in ("t1", "t2"):
        host.answer(turn_id, "PLANTED")
    host.wait_event("delivery.delivered", turn_id="t1")
    host.wait_event("delivery.refused", turn_id="t2")
    done = host.typed("export", what, "--format", form)
    assert "asked-t1" in done.stdout
    assert USER[:8] in done.stdout
    for secret in ("PLANTED", token, token.split(".")[1], USER, host.secret):
        assert secret not in done.stdout


# --- as a process ---------------------------------------------------------------------------


def test_who_reads_only_the_beginning_ends_it(box: Box, host: Sidecar) -> None:
    """As with `| head`: without a word, and at once."""
    record(box, 20_000, why="x" * 100)
    with subprocess.Popen(
        [COMMAND, "export"], env=host.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"event_id,")
        process.stdout.close()
        assert process.wait(PATIENCE_S) == -signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize("count", [0, 5000])
def test_a_full_disk_behind_the_output(box: Box, host: Sidecar, count: int) -> None:
    """It says so and fails, so that nobody takes the beginning for the whole."""
    record(box, count)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [COMMAND, "export"], env=host.environ, stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "paliadin-sidecar: the output cannot be written: No space left on device\n"
    )


def test_a_file_that_may_not_grow(box: Box, host: Sidecar, tmp_path: Path) -> None:
    """The same in the middle of it."""
    record(box, 5000)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    with (tmp_path / "out").open("wb") as output:
        done = subprocess.run(
            [COMMAND, "export"],
            # What watches it for coverage could not write its own file either.
            env=host.environ | {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=limit,
        )
    assert done.returncode == 1
    assert done.stderr == "paliadin-sidecar: the output cannot be written: File too large\n"


def test_it_takes_no_more_memory_for_more(box: Box, host: Sidecar) -> None:
    """What is printed is not gathered before."""
    peaks = []
    for count in (2000, 40_000):
        record(box, count, why="x" * 200)
        with subprocess.Popen(
            [COMMAND, "export"], env=host.environ, stdout=subprocess.DEVNULL
        ) as process:
            _, status, usage = _wait(process)
            assert status == 0
            peaks.append(usage.ru_maxrss)
    assert peaks[1] - peaks[0] < 4096  # KiB; all of it takes 20 times as much


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int, resource.struct_rusage]:
    found = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(found[1])
    return found
