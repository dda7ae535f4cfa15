"""An agent for a pane: it reads envelope lines from its terminal and answers each into a file.

It answers what it was asked, so that whoever asked can compare. Words in a question steer it:
`think 3` seconds, `no trailer`, `slow write` (half the file, the same time again, the rest).

    python demo/agent.py ANSWERS [--think SECONDS]
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import sys
import tempfile
import time
import tty
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


_ENVELOPE = re.compile(r"\[PALIADIN:([A-Za-z0-9][A-Za-z0-9_-]{0,63})\] (.*)")
_THINK = re.compile(r"\bthink (\d+(?:\.\d+)?)\b")
_TRAILER = """
[paliadin-meta]
used_tools: demo
rows_seen: 1
classifier_tag: echo
[/paliadin-meta]
"""
#: What ends a stretch of input: a paste's brackets, Enter, and Ctrl-U (forget the draft).
_KEYS = re.compile(rb"\x1b\[200~|\x1b\[201~|[\r\n\x15]")
_PASTE, _PASTE_END, _FORGET = b"\x1b[200~", b"\x1b[201~", b"\x15"


def main() -> None:
    """Answer until the terminal closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--think", type=float, default=0.2, metavar="SECONDS")
    options = parser.parse_args()
    # A terminal that edits lines itself cuts them at 4095 bytes.
    tty.setcbreak(0)
    _say("\x1b[?2004h")  # bracketed paste
    _prompt()
    for line in _lines():
        _say("\n")
        _prompt()
        if envelope := _ENVELOPE.fullmatch(line):
            _answer(options.answers / f"{envelope[1]}.txt", envelope[2], options.think)
            _prompt(f"answered {envelope[1]}")


def _answer(path: Path, question: str, think_s: float) -> None:
    asked = _THINK.search(question)
    seconds = float(asked[1]) if asked else think_s
    user = _subject(path.with_suffix(".jwt"))
    _prompt(f"thinking for {seconds:g} s")
    time.sleep(seconds)
    text = f"{user or 'Somebody'} asked:\n\n> {question}\n"
    content = (text if "no trailer" in question else text + _TRAILER).encode()
    if "slow write" in question:
        with path.open("wb", buffering=0) as file:
            file.write(content[: len(content) // 2])
            time.sleep(seconds)
            file.write(content[len(content) // 2 :])
        return
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(name).replace(path)


def _subject(token: Path) -> str | None:
    """Whose token it is; a real agent's skill hands its claims to the database, which verifies."""
    try:
        payload = token.read_text().split(".")[1]
        return str(json.loads(base64.urlsafe_b64decode(payload + "=="))["sub"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _lines() -> Iterator[str]:
    """What is typed or pasted, line by line: inside a paste, Enter is a character."""
    pending, draft, pasted = b"", b"", False
    while chunk := os.read(0, 65536):
        pending += chunk
        while key := _KEYS.search(pending):
            draft += pending[: key.start()]
            pending = pending[key.end() :]
            if key[0] in {_PASTE, _PASTE_END}:
                pasted = key[0] == _PASTE
            elif pasted:
                draft += key[0]
            elif key[0] == _FORGET:
                draft = b""
            else:
                yield draft.decode(errors="replace")
                draft = b""
        if not pasted:
            _prompt(draft=len(draft) + len(pending))


def _prompt(news: str = "", draft: int = 0) -> None:
    """Show the prompt, empty but for a draft's size, as the last line; news go above it."""
    above = f"{news}\n" if news else ""
    _say(f"\r\x1b[K{above}demo agent> " + (f"({draft} bytes)" if draft else ""))


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
