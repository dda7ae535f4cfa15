"""docs/audit.md says what is recorded, and each command of it is run as it stands there.

The journal is a file: the lines that the daemon's own printer makes of the outbox's events, with
others between them and some of them twice, as a journal has them. A stand-in for journalctl gives
those of a time; what it is called with, the real one reads too where it is installed.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from support.needs import need
from support.operate import block, blocks
from support.outbox_box import USER, Box, answer, failure, key
from support.sidecar import COMMAND, Sidecar

from paliadin_sidecar.audit.catalogue import EVENTS, FIELDS
from paliadin_sidecar.audit.lines import Audit, redacted
from paliadin_sidecar.audit.pages import TURN_COLUMNS
from paliadin_sidecar.host import state_directory
from paliadin_sidecar.outbox import acceptance, event_rows, transitions
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.records import TurnKey

DOCUMENT = "audit.md"
TEXT = (Path(__file__).parents[2] / "docs" / DOCUMENT).read_text()
#: Each has a block for the outbox and one for the journal.
QUESTIONS = ("yesterday", "slowest", "late", "failed", "user", "twice", "down")

JOURNALCTL = """#!{python}
import json, sys
from datetime import datetime, timedelta

given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert sys.argv[1:6] == ["-u", "paliadin-sidecar", "-o", "cat", "--no-pager"], sys.argv
given = dict(zip(sys.argv[6::2], sys.argv[7::2]))
assert given.keys() <= {{"--since", "--until"}}, sys.argv
now = datetime.fromtimestamp({now!r}).astimezone()
midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)

def at(text):
    if text in ("today", "yesterday"):
        return midnight - timedelta(days=text == "yesterday")
    assert text[0] == "-" and text[-1] == "d", text
    return now - timedelta(days=int(text[1:-1]))

since = at(given["--since"]) if "--since" in given else None
until = at(given["--until"]) if "--until" in given else None
for line in open({journal!r}):
    if line.startswith("{{"):
        when = datetime.fromisoformat(json.loads(line)["timestamp"])
        if since and when < since or until and when >= until:
            continue
    sys.stdout.write(line)
"""


def table(heading: str, head: str) -> dict[str, list[str]]:
    """The rows of a table of this heading, by the names in its first column."""
    _, _, below = TEXT.partition(f"\n## {heading}\n")
    section = re.split(r"^## ", below, maxsplit=1, flags=re.MULTILINE)[0]
    _, _, rows = section.partition(f"\n| {head} |")
    assert rows, head
    found: dict[str, list[str]] = {}
    for row in rows.partition("\n\n")[0].splitlines()[2:]:
        first, *others = re.split(r" ?(?<!\\)\| ?", row.strip("| "))
        found |= dict.fromkeys(re.findall(r"`(\w[\w.]*)`", first), others)
    return found


GROUPS = {
    "turn": ("turn_id", "backend", "persona", "submitted_turn_id", "user"),
    "root": ("backend", "persona", "path"),
}
GROUPS["delivery"] = (*GROUPS["turn"], "revision", "webhook_id", "bytes", "sha256")


def test_each_event_is_explained() -> None:
    """With its level and its fields, in their order; and none that there is not."""
    rows = table("Events", "event")
    explained = {}
    for name, (level, fields, *_) in rows.items():
        groups = [GROUPS[group] for group in re.findall(r"\*(\w+)\*", fields)]
        explained[name] = (level, (*sum(groups, ()), *re.findall(r"`(\w+)`", fields)))
    assert explained == EVENTS
    assert all(len(cells) == 4 and all(cells[2:]) for cells in rows.values())


def test_each_field_is_explained() -> None:
    """And none that there is not."""
    assert set(table("Fields", "field")) == set(FIELDS)


def test_each_column_of_turns_is_explained() -> None:
    """In the order in which they are printed, and none that there is not."""
    assert tuple(table("Export", "column")) == TURN_COLUMNS


# --- the commands -----------------------------------------------------------------------------


@pytest.fixture
def audited(host: Sidecar) -> Sidecar:
    """A host whose audit has one of each of what is asked for, from yesterday."""
    need("jq")
    host.state.mkdir(mode=0o700)
    box = Box(host.state / FILENAME, create=True)
    now = datetime.now().astimezone()
    noon = now.replace(hour=12, minute=0, second=0, microsecond=0)
    yesterday = (noon - timedelta(days=1)).timestamp()
    with box.outbox:
        happen(box, yesterday)
        events = event_rows.events(box.outbox, 0)
    stream = io.StringIO("Started paliadin-sidecar.service - Paliadin sidecar.\n")
    stream.seek(0, io.SEEK_END)
    audit, outbox_key = Audit(stream), state_directory.journal_key(host.state, create=True)
    for event in (*events, *events[-3:]):
        fields = {"event_id": event.id, **redacted(event.fields, outbox_key)}
        audit.line(event.name, event.at, fields)
    audit.line("outbox.blocked", yesterday, {"path": "/x", "why": "{"})
    stubs = host.base / "stubs"
    stubs.mkdir()
    journal = host.base / "journal"
    journal.write_text(stream.getvalue() + "Stopped paliadin-sidecar.service.\n")
    (stubs / "journalctl").write_text(
        JOURNALCTL.format(python=sys.executable, journal=str(journal), now=now.timestamp())
    )
    # At midnight, what is yesterday would be another day in the middle of the test.
    days = f"'-d yesterday +%F') echo {now - timedelta(days=1):%F};; +%F) echo {now:%F}"
    (stubs / "date").write_text(f'#!/bin/sh\ncase "$*" in\n{days};;\n*) exit 1\nesac\n')
    (stubs / "date").chmod(0o755)
    (stubs / "journalctl").chmod(0o755)
    host.environ["PATH"] = f"{stubs}:{Path(COMMAND).parent}:{os.environ['PATH']}"
    return host


def happen(box: Box, noon: float) -> None:
    """What is asked for, and beside it what is not meant."""
    legacy = TurnKey("legacy", "paliadin", "of-legacy")
    # The day before: not of yesterday.
    box.now = noon - 86_400
    accept(box, key("of-another-day"))
    # 140 s from the question to the answer, by the user that is asked for.
    box.now = noon
    box(acceptance.record_hint, key("late"), "asked-late", USER)
    box.now += 140
    accept(box, key("late"), took=2.0)
    # 3 s, by another user.
    box(acceptance.record_hint, key("quick"), "asked-quick", "7777aaaa-0000")
    box.now += 3
    accept(box, key("quick"), took=0.5)
    accept(box, legacy, took=0.25)
    # Refused until it was given up, then sent again and acknowledged: no time of ours.
    box(acceptance.accept, answer("given up", key("dead"), at=box.now))
    box.give_up(box.due()[0], "refused")
    box(acceptance.accept, failure("too_large", key("large"), at=box.now, why="5 bytes"))
    box.deliver()
    box(acceptance.mark_vanished, key("vanished"))
    # Acknowledged, and once more after a replay.
    accept(box, key("again"), took=0.125)
    box.now += 600
    box(transitions.replay, turn_id="again")
    box.deliver()
    # An attempt of which nobody knows whether it came through.
    box(acceptance.accept, answer("unsure", key("unsure"), at=box.now))
    box.retry(box.due()[0], 0.0, status=None, error="timeout")
    box.deliver()
    box(transitions.pause, "status_503")
    box.now += 90
    box(transitions.resume, 90.0)


def accept(box: Box, key: TurnKey, took: float = 0.0) -> None:
    box(acceptance.accept, answer(key.turn_id, key, at=box.now))
    box.now += took
    box.deliver()


def run(host: Sidecar, *names: str) -> str:
    text = "".join(block(name, DOCUMENT) for name in names)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=host.environ, capture_output=True, text=True, check=False, cwd=host.base,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def answers(host: Sidecar, question: str) -> tuple[str, str]:
    """From the outbox, and from the journal."""
    return run(host, f"{question}: outbox"), run(host, "journal", f"{question}: journal")


def test_every_block_is_run() -> None:
    """A command that nobody ran is not in the document."""
    both = {f"{question}: {place}" for question in QUESTIONS for place in ("outbox", "journal")}
    others = {"journal", "export", "nightly", "report", "without digests"}
    # Installed, slowly, by tests/test_installation.py.
    assert blocks(DOCUMENT).keys() == both | others | {"install the report"}


def test_yesterday(audited: Sidecar) -> None:
    """Answers by backend, none of another day and no failure."""
    ours, journal = answers(audited, "yesterday")
    assert [line.split() for line in ours.splitlines()] == [["5", "aichat"], ["1", "legacy"]]
    assert journal == ours


def test_slowest(audited: Sidecar) -> None:
    """The longest first, and nothing that was sent again."""
    ours, journal = answers(audited, "slowest")
    assert ours.splitlines()[:3] == ["2000 late 1", "500 quick 1", "250 of-legacy 1"]
    assert "again" not in ours
    assert sorted(journal.splitlines()) == sorted(ours.splitlines())
    assert journal.splitlines()[:3] == ours.splitlines()[:3]


def test_late(audited: Sidecar) -> None:
    """That of which nobody waited for the answer any more."""
    ours, journal = answers(audited, "late")
    assert ours == "140 s late delivered\n"
    assert journal == "140 s late\n"


def test_failed(audited: Sidecar) -> None:
    """Given up, no answer, taken away: each with its reason."""
    ours, journal = answers(audited, "failed")
    assert ours.endswith(journal)
    assert [line.split()[1:] for line in journal.splitlines()] == [
        ["delivery.dead", "dead", "refused"],
        ["turn.failed", "large", "too_large", "5", "bytes"],
        ["turn.vanished", "vanished"],
    ]
    listed = ours.removesuffix(journal)
    assert "dead (refused)" in listed
    assert "failed (too_large)" in listed


def test_user(audited: Sidecar) -> None:
    """Of the one that was asked for, and of nobody else."""
    ours, journal = answers(audited, "user")
    assert [line.split()[1:] for line in ours.splitlines()] == [["late", "delivered"]]
    assert [line.split()[1:] for line in journal.splitlines()] == [
        ["late", "turn.accepted"], ["late", "delivery.attempted"], ["late", "delivery.delivered"],
    ]  # fmt: skip


def test_twice(audited: Sidecar) -> None:
    """Acknowledged twice, or perhaps: and what was sent once is not listed."""
    ours, journal = answers(audited, "twice")
    assert sorted(ours.splitlines()) == [
        "again 1: 2 acknowledged, 2 sent", "unsure 1: 1 acknowledged, 2 sent",
    ]  # fmt: skip
    assert sorted(journal.splitlines()) == sorted(ours.splitlines())


def test_down(audited: Sidecar) -> None:
    """From when, why, and for how long."""
    ours, journal = answers(audited, "down")
    assert [line.split(" ", 1)[1] for line in ours.splitlines()] == [
        "receiver.paused status_503", "receiver.resumed after 90 s",
    ]  # fmt: skip
    assert journal == ours


def test_export(audited: Sidecar) -> None:
    """A year of either, and what went wrong within a week."""
    (line,) = run(audited, "export").splitlines()
    assert json.loads(line)["event"] == "delivery.dead"
    assert (audited.base / "events-2026.csv").read_text().startswith("event_id,")
    assert (audited.base / "turns-2026.csv").read_text().startswith("turn_id,")


def test_report(audited: Sidecar) -> None:
    """A week, a year without names, and one in a pipe."""
    assert run(audited, "report").splitlines() == ["report.html", "2026.html"]
    assert "5f3c0000" in (audited.base / "report.html").read_text()
    assert "5f3c0000" not in (audited.base / "2026.html").read_text()
    assert b"<!DOCTYPE html>" in gzip.decompress((audited.base / "report.html.gz").read_bytes())


def test_without_digests(audited: Sidecar) -> None:
    """Nothing is left by which a guess could be confirmed."""
    found = run(audited, "without digests")
    assert '"turn_id":"late"' in found
    assert not re.search(r"[0-9a-f]{16}", found)


def test_nightly(audited: Sidecar) -> None:
    """Each event once, in however many runs, also where one of them was cut short."""
    folder = audited.base / "audit"
    folder.mkdir()

    def night() -> None:
        text = block("nightly", DOCUMENT).replace("/var/lib/paliadin-audit", str(folder))
        subprocess.run(["sh", "-c", text], env=audited.environ, check=True)

    night()
    night()
    assert len(list(folder.iterdir())) == 2  # what there is, and an empty one
    with Box(audited.state / FILENAME).outbox as outbox:
        before = event_rows.newest_id(outbox)
        for n in range(3):
            record = partial(event_rows.record_service_event, outbox, "receiver.paused", {"n": n})
            outbox.transaction([record])
    (folder / "new").write_text('{"event_id":99999')  # a run that was killed
    night()
    had = [
        json.loads(line)["event_id"]
        for path in sorted(folder.glob("events-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert had == list(range(1, before + 4))


def test_the_real_journalctl_takes_the_same_times(tmp_path: Path) -> None:
    """It is asked for an empty directory's lines: what it cannot read, it says."""
    if shutil.which("journalctl") is None:
        pytest.skip("journalctl not installed: make check-host has one")
    times = set(re.findall(r"journal((?: --(?:since|until) [\w-]+)+)", TEXT))
    assert times
    for given in times:
        done = subprocess.run(
            ["journalctl", "-u", "x", "-o", "cat", "--no-pager", "-D", tmp_path, *given.split()],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Failed to parse" not in done.stderr, done.stderr
