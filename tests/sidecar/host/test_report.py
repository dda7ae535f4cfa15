"""`report.py`: the daemon's word about itself, written in place, read while it is written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.users import without_privilege

from paliadin_sidecar.host import report
from paliadin_sidecar.host.report import Reporter, fingerprints

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = {"PALIADIN_CALLBACK_URL": "https://paliad.example.org", "PALIADIN_CALLBACK_SECRET": "s"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """From the start, when the first scan is done, with each problem and after it."""
    reporter = Reporter(tmp_path, "1.0", SETTINGS)
    read = report.read(tmp_path)
    assert read is not None
    assert (read.pid, read.version, read.ready, read.problems) == (os.getpid(), "1.0", False, ())
    reporter.ready()
    reporter.problem("outbox", "no room")
    since = reporter.report.problems[0].since
    reporter.problem("events", "no watches")
    reporter.problem("outbox", "the quota")
    read = report.read(tmp_path)
    assert read is not None
    assert read.ready
    said = {problem.what: problem.why for problem in read.problems}
    assert said == {"outbox": "the quota", "events": "no watches"}
    assert {p.since for p in read.problems if p.what == "outbox"} == {since}
    reporter.problem("outbox", None)
    reporter.problem("events", None)
    assert reporter.report.problems == ()


def test_it_never_changes_its_size(tmp_path: Path) -> None:
    """So that it needs no room on a full disk, however long a reason is."""
    reporter = Reporter(tmp_path, "1.0", SETTINGS)
    (file,) = tmp_path.iterdir()
    size, inode = file.stat().st_size, file.stat().st_ino
    reporter.problem("outbox", "x" * 100_000)
    assert (file.stat().st_size, file.stat().st_ino) == (size, inode)
    assert file.stat().st_mode & 0o077 == 0
    read = report.read(tmp_path)
    assert read is not None
    assert len(read.problems[0].why) == 500


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b"{}", b"\xff", b" " * 16_384])
def test_what_is_no_report_is_none(tmp_path: Path, left: bytes) -> None:
    """Half of one, somebody else's, or none at all."""
    assert report.read(tmp_path) is None
    Reporter(tmp_path, "1.0", SETTINGS)
    (file,) = tmp_path.iterdir()
    file.write_bytes(left)
    assert report.read(tmp_path) is None


def test_one_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    """It is tried again with the next change."""
    reporter = Reporter(tmp_path / "later", "1.0", SETTINGS)
    (tmp_path / "later").mkdir()
    assert report.read(tmp_path / "later") is None
    reporter.ready()
    assert report.read(tmp_path / "later") is not None


def test_one_that_may_not_be_read(tmp_path: Path) -> None:
    """Is for the command to explain."""
    Reporter(tmp_path, "1.0", SETTINGS)
    (file,) = tmp_path.iterdir()
    file.chmod(0)
    with without_privilege(), pytest.raises(PermissionError):
        report.read(tmp_path)


def test_a_fingerprint_tells_nothing_without_the_key_and_the_value(tmp_path: Path) -> None:
    """Equal values have equal ones under one key, and none is in the file."""
    first, second = fingerprints(SETTINGS, "key"), fingerprints(SETTINGS, "other")
    assert first == fingerprints(dict(SETTINGS), "key")
    assert first.keys() == SETTINGS.keys()
    assert not set(first.values()) & set(second.values())
    Reporter(tmp_path, "1.0", SETTINGS | {"PALIADIN_CALLBACK_SECRET": "whsec_secret"})
    (file,) = tmp_path.iterdir()
    assert "whsec_" not in file.read_text()
    assert "paliad.example.org" not in file.read_text()
