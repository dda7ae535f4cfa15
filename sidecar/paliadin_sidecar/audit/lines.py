"""One structured line for each event, printed from the event's row and nothing else."""

from __future__ import annotations

import hmac
import os
import re
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
import structlog

from paliadin_sidecar.host import streams

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LEVELS", "Audit", "unconfirmable"]

#: What an operator should look at; everything else is `info`.
LEVELS = {
    "root.missing": "warning",
    "root.untrusted": "warning",
    "root.unreadable": "warning",
    "root.flooded": "warning",
    "watch.failed": "warning",
    "turn.failed": "warning",
    "turn.stalled": "warning",
    "delivery.refused": "warning",
    "delivery.dead": "error",
    "receiver.paused": "warning",
    "outbox.blocked": "error",
    "metrics.failed": "warning",
    "service.crashed": "error",
    "service.unknown_variable": "warning",
}
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
    """

    def __init__(self, stream: TextIO, level: str = "info", *, readable: bool = False) -> None:
        self._stream = stream
        self._shown = {each for each, rank in _RANK.items() if rank >= _RANK[level]}
        processors: list[structlog.typing.Processor]
        if readable or stream.isatty():
            colors = streams.wants_colors(stream, os.environ)
            console = structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False)
            processors = [_printable, console]
        else:
            streams.as_utf8(stream)
            processors = [_json_line]
        # No processor that renders exceptions: their text may hold an answer. The lines are
        # returned, so that whoever has many of them can write them together.
        self._log: structlog.BoundLogger = structlog.wrap_logger(
            structlog.ReturnLogger(), processors=processors, wrapper_class=structlog.BoundLogger
        ).bind()  # once, and not for each line

    def render(self, name: str, at: float, fields: Mapping[str, Any]) -> str:
        """One event's line, with its end; empty where its level is not shown.

        Args:
            name: the event's.
            at: epoch seconds.
            fields: what it says.
        """
        level = LEVELS.get(name, "info")
        if level not in self._shown:
            return ""
        stamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        return f"{self._log.msg(name, timestamp=f'{stamp[:-6]}Z', level=level, **fields)}\n"

    def write(self, lines: str) -> None:
        """Write what was rendered.

        Raises:
            OSError: the stream is closed or full.
        """
        self._stream.write(lines)
        self._stream.flush()

    def line(self, name: str, at: float, fields: Mapping[str, Any]) -> None:
        """Print one event, see `render` and `write`."""
        self.write(self.render(name, at, fields))

    def print_unrecorded(self, name: str, fields: Mapping[str, Any]) -> None:
        """Print one event that has no row, of this moment.

        A stream that takes nothing, as on the same full disk, ends nothing.
        """
        with suppress(OSError):
            self.line(name, time.time(), fields)


def unconfirmable(fields: Mapping[str, Any], key: bytes) -> dict[str, Any]:
    """An event's fields, with nothing by which somebody could confirm what an answer says.

    Whoever guesses a small answer can compute its SHA-256, of which a webhook id has 16 digits.
    So the journal has `content` instead: it tells two contents of one turn apart, and only who has
    the key can compute it. Of the ids it has all before the digits, by which they are still found.

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
            told = _to_json([*turn, value])
            shown["content"] = hmac.digest(key, told, "sha256").hex()[:_CONTENT_DIGITS]
    return shown


def _without_digest(webhook_id: str) -> str:
    return _DIGEST.sub("", webhook_id)


def _printable(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    # A name on the disk must not steer the terminal of whoever looks.
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = ascii(value)
    return event


def _json_line(_: object, __: str, event: structlog.typing.EventDict) -> str:
    first = {"timestamp": event.pop("timestamp"), "level": event.pop("level")}
    return _to_json({**first, "event": event.pop("event"), **event}).decode()
