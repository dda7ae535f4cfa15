"""Makes text safe to be typed into a pane or printed on a terminal."""

from __future__ import annotations

import re

_BREAK = re.compile(r"[\t-\r\x85\u2028\u2029]+")
#: C0, DEL and C1: among them ESC, and CSI as a single character.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]+")
_ENVELOPE = re.compile(r"\[(?=PALIADIN:)", re.IGNORECASE)


def one_line(text: str) -> str:
    """`text` as the agent's prompt may hold it: one line, and no second envelope in it.

    Line breaks and tabs become a blank, control characters go, `[PALIADIN:` is broken up,
    and what UTF-8 cannot hold (half a surrogate pair) becomes `?`.
    """
    flat = _CONTROL.sub("", _BREAK.sub(" ", text)).strip()
    if flat.endswith("\\"):
        flat += " "  # an agent's prompt takes Enter after a backslash for a line break
    return _ENVELOPE.sub("[ ", flat).encode(errors="replace").decode()


def strip_controls(text: str) -> str:
    """`text` for a terminal: with its lines and tabs, without anything that a terminal obeys."""
    return _CONTROL_BUT_LINES.sub("", text)


def excerpt(text: str, limit: int = 200) -> str:
    """The beginning of `text` as one line of at most `limit` characters."""
    return one_line(text[: 4 * limit])[:limit]


def last_lines(text: str, limit: int = 200) -> str:
    """The last lines of `text` that fit into `limit` characters, as one line."""
    kept = ""
    for line in filter(None, map(one_line, reversed(text.splitlines()))):
        joined = f"{line} {kept}".rstrip()
        if len(joined) > limit:
            return kept or line[-limit:]
        kept = joined
    return kept
