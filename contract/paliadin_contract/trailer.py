"""Finds, reads and takes off the trailer block at the end of an answer.

That it starts with a line `[paliadin-meta]` and names three things is known; its inner
syntax is not. This module is the one place that guesses: JSON, or lines with `:` or `=`; values
that are single or lists; with or without a closing `[/paliadin-meta]`; in a code fence or not. An
unreadable trailer never costs the answer, and an unreadable field never costs the others.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
from msgspec import Struct

#: Enough of a file's end to hold any trailer: it names tools and counts, not text.
TAIL_BYTES = 16 * 1024

_TAG = "[paliadin-meta]"
_OPEN = re.compile(r"^\[paliadin-meta\][ \t]*\r?$", re.MULTILINE)
_CLOSE = re.compile(r"^\[/paliadin-meta\][ \t]*\r?$", re.MULTILINE)
_NAMES = ("used_tools", "rows_seen", "classifier_tag")
#: Where a value begins: behind a known name anywhere in an object, or any name that begins a line.
_KEY = re.compile(
    rf"(?:^|(?<=[{{,]))[ \t]*(?:[-*][ \t]+)?[\"']?({'|'.join(_NAMES)})[\"']?[ \t]*[:=]"
    r"|^[ \t]*[\"']?([\w-]+)[\"']?[ \t]*[:=]",
    re.MULTILINE,
)
#: What an unclosed block may hold: blank lines, `key: value`, list items. Prose is none of it.
_ENTRY = re.compile(r"[ \t\r]*(?:$|[-*][ \t]|[\"']?[\w-]+[\"']?[ \t]*[:=])")
#: A last line after which no more of its value can come: none is empty, in open brackets, a list's.
_LAST = re.compile(
    r"(?:[-*][ \t]+)?([\"'])?[\w-]+[\"']?[ \t]*[:=][ \t]*"
    r"(?:\[.*\]|\{.*\}|[^\s\[{>|].*?)(?(1),?|(?<!,))"
)
#: A line of text, the first one or behind a blank one: words, and no value's name before them.
_PROSE = re.compile(
    r"^[ \t\r]*\n[ \t]*(?![\"']?([a-z]|\w+_)[\w-]*[\"']?[ \t]*[:=])[^\s\"'\[\]{}`~*-]\S*[ \t]+\S",
    re.MULTILINE,
)
_ITEM = re.compile(r"\A[-*][ \t]+")
#: A line that opens or closes a block of code (CommonMark 0.31, 4.5).
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^`\n]*)$\n?", re.MULTILINE)
_object = msgspec.json.Decoder(dict[str, object])
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Trailer(Struct, frozen=True, kw_only=True):
    """What the agent says about its answer; a name that was absent or unreadable is empty."""

    used_tools: tuple[str, ...] = ()
    rows_seen: int | None = None
    """The sum, where the agent counted for each tool."""
    rows_by_tool: tuple[int, ...] = ()
    """The counts where the agent listed them, usually one for each tool."""
    classifier_tag: str | None = None


def split(answer: str) -> tuple[str, Trailer | None]:
    """The text without its trailer, and the trailer where there is one."""
    block = _block(answer)
    if block is None:
        return answer, None
    values = _values(block.inner[:TAIL_BYTES])
    rows = _counts(values.get("rows_seen"))
    trailer = Trailer(
        used_tools=_words(values.get("used_tools")),
        rows_seen=sum(rows) if rows else None,
        rows_by_tool=rows if isinstance(values.get("rows_seen"), list) else (),
        classifier_tag=", ".join(_words(values.get("classifier_tag"))) or None,
    )
    return block.before.rstrip(), trailer


def is_whole(tail: bytes) -> bool:
    """Whether a file that ends with `tail` has ended: its last lines are a whole trailer.

    Whole is the opening line, the three names, and then the closing tag or a final newline. A code
    fence that was opened before it or in it must have been closed.
    """
    return read_tail(tail)[0]


def read_tail(tail: bytes) -> tuple[bool, bool]:
    """What `is_whole` says of it, and whether anything but white space is before the trailer."""
    text = tail.decode(errors="replace")
    block = _block(text)
    if block is None:
        return False, bool(text.strip())
    return not _open_fence(text) and _is_whole(block), bool(block.before.strip())


def _is_whole(block: _Block) -> bool:
    if block.closed:
        return all(name in block.inner for name in _NAMES)
    if not block.inner.endswith("\n"):
        return False
    inner = _FENCE.sub("", block.inner)
    values = _json(inner)
    if values is None:
        # Half an object, or an answer that quotes an opening line and has not ended yet.
        lines = inner.rstrip().split("\n")
        if not (all(map(_ENTRY.match, lines)) and _LAST.fullmatch(lines[-1].strip())):
            return False
        values = dict.fromkeys(key[1] for key in _KEY.finditer(inner))
    return all(name in values for name in _NAMES)


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
    inner = rest if closing is None else rest[: closing.start()]
    after = "" if closing is None else rest[closing.end() :]
    fence = _open_fence(before)
    # Text after the block belongs to the answer, so the block was a quote as well.
    if _FENCE.sub("", after, count=1).strip() or (closing is None and _goes_on(inner, fence)):
        return None
    if fence is not None and not before[fence.end() :].strip():
        before = before[: fence.start()]  # it was opened for the trailer, and goes with it
    return _Block(before, inner, closed=closing is not None)


def _goes_on(inner: str, fence: re.Match[str] | None) -> bool:
    # Without a closing tag a block ends where the code does that it stands in, or text begins.
    ends = (each.end() for each in _FENCE.finditer(inner) if fence and _closes(each, fence))
    end = next(ends, len(inner))
    return bool(_FENCE.sub("", inner[end:]).strip() or _PROSE.search(inner))


def _last_opening(text: str) -> re.Match[str] | None:
    # The last one counts, since an answer may quote one. It is searched for from the end.
    at = len(text)
    while (at := text.rfind(_TAG, 0, at)) >= 0:
        if found := _OPEN.match(text, at):
            return found
    return None


def _open_fence(text: str) -> re.Match[str] | None:
    if "```" not in text and "~~~" not in text:
        return None  # at once: to search each line costs an answer more than all else here
    opened = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif _closes(fence, opened):
            opened = None
    return opened


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    return fence[1].startswith(opened[1]) and not fence[2].strip()


def _values(inner: str) -> dict[str, object]:
    inner = _FENCE.sub("", inner)
    values = _json(inner)
    return _lines(inner) if values is None else values


def _json(text: str) -> dict[str, object] | None:
    try:
        return _object.decode(text.strip())
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _lines(inner: str) -> dict[str, object]:
    keys = list(_KEY.finditer(inner))
    ends = [*[key.start() for key in keys][1:], len(inner)]
    found = zip(keys, ends, strict=False)  # without any key there is nothing to end
    return {key[1]: _value(inner[key.end() : end]) for key, end in found if key[1]}


def _value(text: str) -> object:
    # What one line, or one place in a broken object, says: a word, a list in brackets, list items.
    text = text.strip(" \t\r\n,").removesuffix("}").rstrip(" \t\r\n,")
    bare = text.removeprefix("[").removesuffix("]")
    if bare == text and not re.search(r"[,\n]", text):
        return _unquoted(_ITEM.sub("", text))
    items = (_ITEM.sub("", item.strip()) for item in re.split(r"[,\n]", bare))
    return [_unquoted(item) for item in items if item]


def _unquoted(value: str) -> str:
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def _counts(value: object) -> tuple[int, ...]:
    items = value if isinstance(value, list) else [value]
    texts = [str(item).strip() for item in items if not isinstance(item, bool | float)]
    # A count's place says which tool it belongs to. With one that is unreadable, none is known.
    if len(texts) < len(items) or not all(map(_COUNT.fullmatch, texts)):
        return ()
    return tuple(map(int, texts))


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split(",")  # JSON with one string, where others have a list
    if not isinstance(value, list):
        return ()
    words = (_unquoted(item) for item in value if isinstance(item, str))
    # JSON can spell half a surrogate pair, which no file or database takes.
    return tuple(word for word in words if word and not _SURROGATE.search(word))
