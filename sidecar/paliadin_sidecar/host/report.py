"""What the running daemon says of itself, in a file beside the outbox.

The outbox cannot say that it takes nothing more. This file has its full size from the start and
is overwritten in place, which needs no room: so `status` knows of a full disk, and `check` of a
configuration that was corrected without a restart.
"""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

_FILENAME = "daemon.json"
#: More than any report takes: its texts are cut to this length.
_BYTES, _WHY_CHARS = 16 * 1024, 500
#: A report that is read while it is written is not whole; the next look finds it so.
_TRIES, _TRY_S = 5, 0.02


class Problem(msgspec.Struct, frozen=True):
    """Something that keeps the daemon from its work.

    Attributes:
        what: `outbox`, `disk`, `intake`, `events` or `metrics`.
        why: the reason, without secrets and answers.
        since: epoch seconds.
    """

    what: str
    why: str
    since: float


class Report(msgspec.Struct):
    """What a daemon says of itself.

    Attributes:
        pid: its process.
        version: of the program that it runs.
        started_at: epoch seconds.
        ready: whether it has done its first scan.
        problems: what is wrong now.
        key: of the fingerprints, hexadecimal; another one for each start.
        settings: a fingerprint of the value of each variable that it runs with.
    """

    pid: int
    version: str
    started_at: float
    ready: bool
    problems: tuple[Problem, ...]
    key: str
    settings: dict[str, str]


class Reporter:
    """Writes the report. One that cannot be written is dropped, and the next change writes it anew.

    Args:
        state_dir: the daemon's, under its lock.
        version: the program's.
        settings: each variable's value, see `Settings.variables`.

    Attributes:
        report: what it says now.
    """

    def __init__(self, state_dir: Path, version: str, settings: Mapping[str, str]) -> None:
        self._path = state_dir / _FILENAME
        key = os.urandom(16).hex()
        self.report = Report(
            os.getpid(), version, time.time(), ready=False, problems=(), key=key,
            settings=fingerprints(settings, key),
        )  # fmt: skip
        self._write()

    def ready(self) -> None:
        """The first scan is done."""
        self.report.ready = True
        self._write()

    def problem(self, what: str, why: str | None) -> bool:
        """Something is wrong from now on; with None, no more. Returns whether that is new."""
        before = self.report.problems
        since = next((each.since for each in before if each.what == what), time.time())
        found = tuple(each for each in before if each.what != what)
        if why is not None:
            found += (Problem(what, why[:_WHY_CHARS], since),)
        if found == before:
            return False
        self.report.problems = found
        self._write()
        return True

    def _write(self) -> None:
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self._path, flags, 0o600)
            try:
                os.pwrite(fd, msgspec.json.encode(self.report).ljust(_BYTES), 0)
            finally:
                os.close(fd)


def read(state_dir: Path) -> Report | None:
    """The report of the daemon that runs here, or of the last one; None where none is whole.

    Raises:
        PermissionError: this user may not read it.
    """
    for _ in range(_TRIES):
        try:
            return msgspec.json.decode((state_dir / _FILENAME).read_bytes(), type=Report)
        except PermissionError:
            raise
        except OSError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError):
            time.sleep(_TRY_S)  # nothing signals that its writer is done
    return None


def fingerprints(values: Mapping[str, str], key: str) -> dict[str, str]:
    """Each value's fingerprint, which says nothing of it to who has not the key and the value."""
    return {
        name: hmac.digest(key.encode(), value.encode(errors="surrogateescape"), "sha256").hex()[:32]
        for name, value in values.items()
    }
