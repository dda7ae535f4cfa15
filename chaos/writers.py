"""A process that writes turn files, in all manners, and keeps account of what it completed.

    python -m chaos.writers ROOT LOG [--manner M] [--count N] [--rate R] [--bytes B] …

The account is written just before the step that completes a file. SIGTERM ends it after the
turn that it is at.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import time
from pathlib import Path

from chaos.verdict import Written, append

TRAILER = b"\n[paliadin-meta]\nused_tools: search\nrows_seen: 3\nclassifier_tag: fristen\n"


class Turn:
    """One turn file.

    Args:
        root: its directory, named as its backend.
        log: the account.
        turn_id: its name.
        size: how long its text is, in bytes.
    """

    def __init__(self, root: Path, log: Path, turn_id: str, size: int = 200) -> None:
        self.path = root / f"{turn_id}.txt"
        self.key = f"{root.name}/{turn_id}"
        self._log = log
        self._size = size

    def text(self, word: str = "Antwort") -> bytes:
        """A text that no other turn has."""
        head = f"{word} auf {self.key}\n".encode()
        return head + b"x" * (self._size - len(head))

    def completed(
        self, content: bytes, *, owed: bool = True, content_key: str | None = None
    ) -> None:
        """Account for a content."""
        content_key = content_key or hashlib.sha256(content).hexdigest()
        append(self._log, Written(time.monotonic(), self.key, content_key, owed))

    def put(self, content: bytes, *, owed: bool = True) -> None:
        """By temp + rename, as agents do."""
        temp = self.path.with_name(f"{self.path.name}.tmp.1.abc")
        temp.write_bytes(content)
        self.completed(content, owed=owed)
        temp.rename(self.path)


def rename(turn: Turn) -> None:
    """Whole at once."""
    turn.put(turn.text() + TRAILER)


def in_place(turn: Turn) -> None:
    """Open, write, close."""
    turn.completed(turn.text() + TRAILER)
    turn.path.write_bytes(turn.text() + TRAILER)


def slow(turn: Turn) -> None:
    """Bit by bit, kept open."""
    content = turn.text() + TRAILER
    with turn.path.open("wb", buffering=0) as file:
        file.write(content[:20])
        time.sleep(0.05)
        file.write(content[20:-20])
        time.sleep(0.05)
        turn.completed(content)
        file.write(content[-20:])


def appended(turn: Turn) -> None:
    """The trailer by a second opening."""
    turn.completed(turn.text(), owed=False)  # should this process be held for long just here
    turn.path.write_bytes(turn.text())
    turn.completed(turn.text() + TRAILER)
    with turn.path.open("ab") as file:
        file.write(TRAILER)


def without_trailer(turn: Turn) -> None:
    """Nothing but quiet says that it has ended; empty at first."""
    turn.path.touch()
    turn.completed(turn.text())
    turn.path.write_bytes(turn.text())


def replaced(turn: Turn) -> None:
    """A second answer follows the first at once."""
    turn.put(turn.text("Vorab") + TRAILER)
    turn.put(turn.text() + TRAILER)


MANNERS = {f.__name__: f for f in (rename, in_place, slow, appended, without_trailer, replaced)}


def main() -> None:
    """Write until the count is reached or SIGTERM comes."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("root", type=Path)
    arguments.add_argument("log", type=Path)
    arguments.add_argument("--manner", choices=MANNERS)
    arguments.add_argument("--name", default="t")
    arguments.add_argument("--count", type=int, default=1_000_000)
    arguments.add_argument("--rate", type=float, default=0.0, help="a second; 0: at once")
    arguments.add_argument("--bytes", type=int, default=200)
    arguments.add_argument("--seed", default="")
    given = arguments.parse_args()
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    rng = random.Random(given.seed)
    began = time.monotonic()
    for n in range(given.count):
        if stopped:
            break
        if given.rate:
            time.sleep(max(0.0, began + n / given.rate - time.monotonic()))
        turn = Turn(given.root, given.log, f"{given.name}{n}", given.bytes)
        MANNERS[given.manner or rng.choice(list(MANNERS))](turn)


if __name__ == "__main__":
    main()
