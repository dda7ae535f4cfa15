"""A watched root with real files, and clocks that the test moves."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from paliadin_sidecar.intake.completion import IntakeRules
from paliadin_sidecar.intake.events import (
    IntakeEvent,
)
from paliadin_sidecar.intake.inspection import inspect_due
from paliadin_sidecar.intake.roots import Root
from paliadin_sidecar.intake.scan import Depth, find_history, scan
from paliadin_sidecar.intake.tracking import WatchedRoot
from paliadin_sidecar.outbox.records import Arrival, TurnKey
from paliadin_sidecar.settings import RootSpec

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET_S, MAX_BYTES = 5.0, 4 * 1024 * 1024


TEXT = "Yes.\n"


TRAILER = "\n[paliadin-meta]\nused_tools: a\nrows_seen: 1\nclassifier_tag: b\n"


WHOLE = TEXT + TRAILER


KEY = TurnKey("aichat", "paliadin", "t")


class Place:
    """One root with real files, an intake on it, and clocks that are ours."""

    def __init__(self, path: Path, *, owner: int | None = None, max_held: int = 256) -> None:
        self.path = path
        self.spec = RootSpec("aichat", "paliadin", path)
        owner = os.geteuid() if owner is None else owner
        self.root = Root(path, owner)
        assert self.root.check() == "armed"
        self.now = 4096.0
        #: Far enough from the files' times that none of them is young.
        self.wall = time.time() + 60
        #: What happens while a file is read: at the first time, the second, …
        self.acts: list[Callable[[], object]] = []
        rules = IntakeRules(
            owner=owner,
            quiet_s=QUIET_S,
            max_bytes=MAX_BYTES,
            max_open_files=max_held,
            monotonic=lambda: self.now,
            wall=self._wall,
        )
        self.files = WatchedRoot(self.spec, self.root, rules)
        self.hears = True

    def rules(self, **changes: Any) -> None:  # noqa: ANN401 - of any attribute
        """From now on others hold, as after a start with other variables."""
        self.files.rules = replace(self.files.rules, **changes)

    def _wall(self) -> float:
        # Dates are asked for between a look and the reading that follows it.
        if self.acts:
            self.acts.pop(0)()
        return self.wall

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def publish(self, name: str = "t.txt", content: str | bytes = WHOLE) -> None:
        """Write beside it and rename."""
        temp = self / "a.tmp"
        temp.write_bytes(content.encode() if isinstance(content, str) else content)
        temp.rename(self / name)

    def notice(self, *names: str) -> list[IntakeEvent]:
        """Something happened to these: an event says so, or a scan must find it."""
        if self.hears:
            return list(self.files.notice(names))
        return self.scan()

    def look(self) -> list[IntakeEvent]:
        return inspect_due(self.files)

    def scan(self, depth: Depth = Depth.MOVED) -> list[IntakeEvent]:
        return [one for one in scan(self.files, depth) if one is not None]

    def history(self) -> list[Arrival]:
        return [one for one in find_history(self.files) if one is not None]

    def wait(self, seconds: float) -> list[IntakeEvent]:
        """What is found while time passes."""
        found: list[IntakeEvent] = []
        end = self.now + seconds
        while (due_in := self.files.due_in()) is not None and self.now + due_in <= end:
            self.now += due_in
            found += self.look()
        self.now = end
        return found

    def every_file(self) -> list[IntakeEvent]:
        return [*self.scan(Depth.EVERY_FILE), *self.look()]


def make(path: Path, *, max_held: int = 256) -> Place:
    path.mkdir(mode=0o700)
    return Place(path, max_held=max_held)


def append(path: Path, text: str) -> None:
    """As another process does it: open, write, close."""
    subprocess.run(["/bin/sh", "-c", 'cat >>"$1"', "sh", path], input=text.encode(), check=True)


def texts(findings: list[IntakeEvent]) -> list[str]:
    """The contents that settled, or why they are none; nothing else may be among them."""
    found = []
    for finding in findings:
        assert isinstance(finding, Arrival), finding
        found.append(finding.reason or (finding.data or b"").decode())
    return found


def settled(findings: list[IntakeEvent]) -> list[str]:
    """The turns that became answers."""
    return [f.key.turn_id for f in findings if isinstance(f, Arrival) and f.reason is None]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
