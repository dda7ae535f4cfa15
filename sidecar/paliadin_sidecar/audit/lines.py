"""One structured line for each event, printed from the event's row and nothing else."""

from __future__ import annotations

import hmac
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from paliadin_sidecar.audit.catalogue import level_of
from paliadin_sidecar.host import streams

if TYPE_CHECKING:
    from structlog.dev import ConsoleRenderer


#: Among a turn's few contents, no two have the same of so many.
_CONTENT_DIGITS = 16
_RANK = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_to_json = msgspec.json.Encoder().encode
_DIGEST = re.compile(r"_[0-9a-f]{16}\Z")


class Audit:
    """Prints events, as JSON or for a person.

    Args:
        stream: where to; a terminal gets readable lines, everything else JSON.
        level: lines below it are not printed.
        readable: lines for a person also where no terminal is. Colours are for terminals alone,
            and only where the environment does not refuse them.

    Attributes:
        stream: where lines go.
    """

    def __init__(self, stream: TextIO, level: str = "info", *, readable: bool = False) -> None:
        self.stream = stream
        self._shown = {each for each, rank in _RANK.items() if rank >= _RANK[level]}
        self._console: ConsoleRenderer | None = None
        if readable or stream.isatty():
            colors = streams.wants_colors(stream, os.environ)
            self._console = _console_renderer(colors=colors)
        else:
            streams.as_utf8(stream)

    def render(self, name: str, at: float, fields: Mapping[str, Any]) -> str:
        """One event's line, with its end; empty where its level is not shown.

        Args:
            name: the event's.
            at: epoch seconds.
            fields: what it says.
        """
        level = level_of(name)
        if level not in self._shown:
            return ""
        stamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        event = {"timestamp": f"{stamp[:-6]}Z", "level": level, "event": name, **fields}
        if self._console is None:
            return f"{_to_json(event).decode()}\n"
        return f"{self._console(None, '', _printable(event))}\n"

    def write(self, lines: str) -> None:
        """Write what was rendered.

        Raises:
            OSError: the stream is closed or full.
        """
        self.stream.write(lines)
        self.stream.flush()

    def line(self, name: str, at: float, fields: Mapping[str, Any]) -> None:
        """Print one event, see `render` and `write`."""
        self.write(self.render(name, at, fields))

    def print_unrecorded(self, name: str, fields: Mapping[str, Any]) -> None:
        """Print one event that has no row, of this moment.

        A stream that takes nothing, as on the same full disk, ends nothing.
        """
        with suppress(OSError):
            self.line(name, time.time(), fields)


def _console_renderer(*, colors: bool) -> ConsoleRenderer:
    # structlog loads rich where it is installed, for what is never printed here: 6 MB, and 50 ms
    # more than the 70 that it takes itself.
    loaded = sys.modules.get("rich")
    sys.modules["rich"] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        from structlog.dev import ConsoleRenderer  # noqa: PLC0415 - slow to load
    finally:
        if loaded is None:
            del sys.modules["rich"]
        else:
            sys.modules["rich"] = loaded
    return ConsoleRenderer(colors=colors, sort_keys=False)


def redacted(fields: Mapping[str, Any], key: bytes) -> dict[str, Any]:
    """An event's fields, with nothing by which somebody could confirm what an answer says.

    Whoever guesses a small answer can compute its SHA-256, of which a webhook id has 16 digits.
    So the journal has `content` instead: it distinguishes two contents of one turn, and only who
    has the key can compute it. Of the ids it has all before the digits, by which they are still
    found.

    Args:
        fields: as the outbox has them.
        key: this outbox's own.
    """
    shown: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "webhook_id":
            shown[name] = _without_digest(value)
        elif name == "superseded":
            shown[name] = [_without_digest(one) for one in value]
        elif name != "sha256":
            shown[name] = value
        elif value is not None:
            turn = [fields.get(part) for part in ("backend", "persona", "turn_id")]
            shown["content"] = _content(key, *turn, value)
    return shown


@lru_cache(maxsize=256)  # a turn has several events
def _content(key: bytes, *parts: str) -> str:
    return hmac.digest(key, _to_json(parts), "sha256").hex()[:_CONTENT_DIGITS]


def _without_digest(webhook_id: str) -> str:
    return _DIGEST.sub("", webhook_id)


def _printable(event: dict[str, Any]) -> dict[str, Any]:
    # A name on the disk must not steer the terminal of whoever looks.
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = ascii(value)
    return event
