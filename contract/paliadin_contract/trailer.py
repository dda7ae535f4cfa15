"""The trailer block at the end of an answer.

That it starts with a line `[paliadin-meta]` and names three things is known; its inner
syntax is not. This module is the one place that guesses: JSON or `key: value` lines, with
or without a closing `[/paliadin-meta]`. An unreadable trailer never costs the answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
from msgspec import Struct

__all__ = ["TAIL_BYTES", "Trailer", "has_text", "is_whole", "split"]

#: Enough of a file's end to hold any trailer: it names tools and counts, not text.
TAIL_BYTES = 16 * 1024

_TAG = "[paliadin-meta]"
_OPEN = re.compile(r"^\[paliadin-meta\][ \t]*\r?$", re.MULTILINE)
_CLOSE = re.compile(r"^\[/paliadin-meta\][ \t]*\r?$", re.MULTILINE)
_NAMES = ("used_tools", "rows_seen", "classifier_tag")
_LINE = re.compile(rf"^[ \t]*[\"']?({'|'.join(_NAMES)})[\"']?[ \t]*[:=](.*)$", re.MULTILINE)
#: What an unclosed block may hold: blank lines, `key: value`, list items. Prose is none of it.
_ENTRY = re.compile(r"[ \t\r]*(?:$|-[ \t]|[\"']?[\w-]+[\"']?[ \t]*[:=])")


class Trailer(Struct, frozen=True, kw_only=True):
    """What the agent says about its answer; a name that was absent or unreadable is empty."""

    used_tools: tuple[str, ...] = ()
    rows_seen: int | None = None
    classifier_tag: str | None = None


def split(answer: str) -> tuple[str, Trailer | None]:
    """The text without its trailer, and the trailer where there is one."""
    block = _block(answer)
    if block is None:
        return answer, None
    values = _json(block.inner)
    if values is None:
        values = _lines(block.inner)
    rows, tag = values.get("rows_seen"), values.get("classifier_tag")
    trailer = Trailer(
        used_tools=_tools(values.get("used_tools")),
        rows_seen=int(rows) if isinstance(rows, int | str) and _is_count(str(rows)) else None,
        classifier_tag=tag if isinstance(tag, str) and tag else None,
    )
    return block.before.rstrip(), trailer


def is_whole(tail: bytes) -> bool:
    """Whether a file that ends with `tail` has ended: its last lines are a whole trailer.

    Whole is the opening line, the three names, and then the closing tag or a final newline.
    """
    block = _block(tail.decode(errors="replace"))
    if block is None:
        return False
    if block.closed:
        return all(name in block.inner for name in _NAMES)
    if not block.inner.endswith("\n"):
        return False
    values = _json(block.inner)
    if values is None:
        # Half an object, or an answer that quotes an opening line and has not ended yet.
        if not all(_ENTRY.match(line) for line in block.inner.split("\n")):
            return False
        values = _lines(block.inner)
    return all(name in values for name in _NAMES)


def has_text(content: bytes) -> bool:
    """Whether anything but white space stands before the trailer."""
    text = content.decode(errors="replace")
    block = _block(text)
    return bool((text if block is None else block.before).strip())


class _Block(NamedTuple):
    before: str
    inner: str
    closed: bool


def _block(text: str) -> _Block | None:
    opening = _last_opening(text)
    if opening is None:
        return None
    before, rest = text[: opening.start()], text[opening.end() :]
    closing = _CLOSE.search(rest)
    if closing is None:
        return _Block(before, rest, closed=False)
    # Text after the closing line belongs to the answer, so the block was a quote as well.
    ended = not rest[closing.end() :].strip()
    return _Block(before, rest[: closing.start()], closed=True) if ended else None


def _last_opening(text: str) -> re.Match[str] | None:
    # The last one: an answer may well quote one. From its end, as that is where it stands.
    at = len(text)
    while (at := text.rfind(_TAG, 0, at)) >= 0:
        if found := _OPEN.match(text, at):
            return found
    return None


def _json(inner: str) -> dict[str, object] | None:
    try:
        return msgspec.json.decode(inner.strip(), type=dict[str, object])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _lines(inner: str) -> dict[str, object]:
    return {name: _unquoted(value.strip(" \t,\r")) for name, value in _LINE.findall(inner)}


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
