"""The trailer block at the end of an answer.

That it starts with a line `[paliadin-meta]` and names three things is known; its inner
syntax is not. This module is the one place that guesses: JSON or `key: value` lines, with
or without a closing `[/paliadin-meta]`. An unreadable trailer never costs the answer.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

__all__ = ["TAIL_BYTES", "Trailer", "has_text", "is_whole", "split"]

#: Enough of a file's end to hold any trailer: it names tools and counts, not text.
TAIL_BYTES = 16 * 1024

_OPEN = re.compile(r"^\[paliadin-meta\][ \t]*\r?$", re.MULTILINE)
_CLOSE = re.compile(r"^\[/paliadin-meta\]\s*\Z", re.MULTILINE)
_NAMES = ("used_tools", "rows_seen", "classifier_tag")
_LINE = re.compile(rf"^[ \t]*[\"']?({'|'.join(_NAMES)})[\"']?[ \t]*[:=](.*)$", re.MULTILINE)


class Trailer(Struct, frozen=True, kw_only=True):
    """What the agent says about its answer; a name that was absent or unreadable is empty."""

    used_tools: tuple[str, ...] = ()
    rows_seen: int | None = None
    classifier_tag: str | None = None


def split(answer: str) -> tuple[str, Trailer | None]:
    """The text without its trailer, and the trailer where there is one."""
    start = _start(answer)
    if start is None:
        return answer, None
    inner = _CLOSE.sub("", _OPEN.sub("", answer[start:], count=1))
    values = _values(inner)
    rows, tag = values.get("rows_seen"), values.get("classifier_tag")
    trailer = Trailer(
        used_tools=_tools(values.get("used_tools")),
        rows_seen=int(rows) if isinstance(rows, int | str) and _is_count(str(rows)) else None,
        classifier_tag=tag if isinstance(tag, str) and tag else None,
    )
    return answer[:start].rstrip(), trailer


def is_whole(tail: bytes) -> bool:
    """Whether a file that ends with `tail` has ended: its last lines are a whole trailer.

    Whole is the opening line, the three names, and then the closing tag or a final newline.
    """
    text = tail.decode(errors="replace")
    start = _start(text)
    if start is None:
        return False
    block = text[start:]
    closing = _CLOSE.search(block)
    inner = _OPEN.sub("", block[: closing.start()] if closing else block, count=1)
    if closing is None and (not block.endswith("\n") or _unfinished_json(inner)):
        return False
    return all(name in _values(inner) or (closing and name in inner) for name in _NAMES)


def has_text(content: bytes) -> bool:
    """Whether anything but white space stands before the trailer."""
    text = content.decode(errors="replace")
    start = _start(text)
    return bool((text if start is None else text[:start]).strip())


def _start(text: str) -> int | None:
    # The last opening line: an answer may well quote one.
    start = None
    for opening in _OPEN.finditer(text):
        start = opening.start()
    return start


def _values(inner: str) -> dict[str, object]:
    try:
        return msgspec.json.decode(inner.strip(), type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        return {name: _unquoted(value.strip(" \t,\r")) for name, value in _LINE.findall(inner)}


def _unfinished_json(inner: str) -> bool:
    if not inner.lstrip().startswith("{"):
        return False
    try:
        msgspec.json.decode(inner.strip())
    except (msgspec.DecodeError, RecursionError):
        return True
    return False


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def _is_count(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) is not None


def _tools(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.strip("[] ").split(",")
    if not isinstance(value, list):
        return ()
    names = (_unquoted(item.strip()) for item in value if isinstance(item, str))
    return tuple(name for name in names if name)
