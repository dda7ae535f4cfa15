"""Writes turn files: each by a process of its own, in one of many manners.

    python -m demo.writers MANNER FILE LOG

Each writes down what it completed and when: the clock is read just before the step that
completes the file, so that no latency is flattered.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


#: Seconds between two steps of one turn: long enough for the sidecar to notice the first.
_MOMENT_S = 0.3
#: A token is there for as long as its turn runs: always longer than a scan takes to come round.
_TOKEN_S = 3.0
_ANSWER = b"Morgen laufen drei Fristen ab.\n"
_LINES = b"\n[paliadin-meta]\nused_tools: search_deadlines\nrows_seen: 3\nclassifier_tag: fristen\n"
_JSON = (
    b'\n[paliadin-meta]\n{"used_tools": ["search_deadlines"], "rows_seen": 3,'
    b' "classifier_tag": "fristen"}\n[/paliadin-meta]\n'
)


class Manner(NamedTuple):
    """One way to write a turn file."""

    title: str
    write: Callable[[Writer], None]


class Writer:
    """One turn to be written.

    Args:
        path: the turn file.
        log: where the writer keeps account of what it completed.
    """

    def __init__(self, path: Path, log: Path) -> None:
        self.path = path
        self.hints: dict[str, str] = {}
        self._log = log

    def text(self, more: bytes = _ANSWER) -> bytes:
        """An answer without its trailer."""
        return f"## Antwort auf {self.path.stem}\n\n".encode() + more

    def complete(self, content: bytes, step: Callable[[], object]) -> None:
        """Do the step after which the file is complete, and account for it."""
        at = time.time()
        step()
        line = {"at": at, "sha256": hashlib.sha256(content).hexdigest(), **self.hints}
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


def _in_place(writer: Writer) -> None:
    content = writer.text() + _JSON
    writer.complete(content, lambda: writer.path.write_bytes(content))


def _empty_first(writer: Writer) -> None:
    writer.path.touch()
    time.sleep(_MOMENT_S)
    _in_place(writer)


def _without_trailer(writer: Writer) -> None:
    content = writer.text()
    writer.complete(content, lambda: writer.path.write_bytes(content))


def _slow(writer: Writer) -> None:
    content = writer.text(_ANSWER * 8) + _JSON
    file = writer.path.open("wb", buffering=0)
    for place in range(0, len(content), step := len(content) // 7):
        file.write(content[place : place + step])
        time.sleep(_MOMENT_S)
    writer.complete(content, file.close)


def _renamed(*texts: bytes) -> Callable[[Writer], None]:
    def write(writer: Writer) -> None:
        for text in texts:
            content = writer.text(text) + _LINES
            temp = writer.path.with_name(f"{writer.path.name}.tmp.{secrets.token_hex(4)}")
            with temp.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            writer.complete(content, partial(temp.rename, writer.path))
            time.sleep(0 if text is texts[-1] else _MOMENT_S)

    return write


def _token_first(writer: Writer) -> None:
    writer.hints = {"submitted_turn_id": str(uuid.uuid4()), "user_id": str(uuid.uuid4())}
    claims = {"jti": writer.hints["submitted_turn_id"], "sub": writer.hints["user_id"]}
    parts = (b'{"alg":"HS256","typ":"JWT"}', json.dumps(claims).encode(), os.urandom(32))
    token = writer.path.with_suffix(".jwt")
    token.touch(mode=0o600)
    token.write_bytes(b".".join(base64.urlsafe_b64encode(p).rstrip(b"=") for p in parts))
    time.sleep(_TOKEN_S)
    token.unlink()
    _in_place(writer)


def _by_command(script: str, text: bytes = _ANSWER) -> Callable[[Writer], None]:
    def write(writer: Writer) -> None:
        content = writer.text(text) + _LINES
        draft = writer.path.parents[1] / "drafts" / writer.path.name  # on the same file system
        draft.write_bytes(content)
        command = ["sh", "-c", script, "sh", str(draft), str(writer.path)]
        writer.complete(content, lambda: subprocess.run(command, check=True))

    return write


def _in_parts(*rest: bytes, first: str, then: str) -> Callable[[Writer], None]:
    def write(writer: Writer) -> None:
        def run(script: str, part: bytes) -> None:
            subprocess.run(["sh", "-c", script, "sh", writer.path], input=part, check=True)

        run(first, text := writer.text())
        for part in rest[:-1]:
            time.sleep(_MOMENT_S / len(rest))
            run(then, part)
        time.sleep(_MOMENT_S / len(rest))
        writer.complete(text + b"".join(rest), lambda: run(then, rest[-1]))

    return write


_by_tee = partial(_in_parts, first='tee "$1" > /dev/null', then='tee -a "$1" > /dev/null')
_by_redirects = partial(_in_parts, first='cat > "$1"', then='cat >> "$1"')

#: All manners by name. The sidecar waits for an answer without a trailer to be quiet for 5 s.
MANNERS = {
    "slow": Manner("kept open for 2 s, written bit by bit", _slow),
    "lines": Manner("the trailer line by line", _by_tee(*_LINES.splitlines(keepends=True))),
    "empty": Manner("an empty file first", _empty_first),
    "replaced": Manner("replaced by a second answer", _renamed(b"Vorab.\n", _ANSWER)),
    "rename": Manner("temp file, fsync, rename, as agents do", _renamed(_ANSWER)),
    "in-place": Manner("open, write, close", _in_place),
    "appended": Manner("the trailer by another process", _by_tee(_JSON)),
    "redirect": Manner("shell: cat > file", _by_command('cat "$1" > "$2"')),
    "redirects": Manner("shell: text > file, trailer >> file", _by_redirects(_LINES)),
    "copy": Manner("cp, a megabyte", _by_command('cp "$1" "$2"', _ANSWER * 33_000)),
    "move": Manner("mv", _by_command('mv "$1" "$2"')),
    "languages": Manner(
        "German and Chinese", _renamed("Prüfungen: 明天有三个截止日期。\n".encode())
    ),
    "not-utf8": Manner("a byte that is no UTF-8", _renamed(b"Gr\xfc\xdfe\n")),
    "token": Manner("a token first, gone before the answer", _token_first),
    "no-trailer": Manner("no trailer, so 5 s of quiet are awaited", _without_trailer),
}

if __name__ == "__main__":
    MANNERS[sys.argv[1]].write(Writer(Path(sys.argv[2]), Path(sys.argv[3])))
