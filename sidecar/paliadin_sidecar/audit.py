"""One structured line for each event, printed from the event's row and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LEVELS", "Audit"]

#: What an operator should look at; everything else is `info`.
LEVELS = {
    "root.missing": "warning",
    "root.untrusted": "warning",
    "root.unreadable": "warning",
    "watch.failed": "warning",
    "turn.failed": "warning",
    "turn.stalled": "warning",
    "delivery.refused": "warning",
    "delivery.dead": "error",
    "receiver.paused": "warning",
    "outbox.blocked": "error",
    "service.crashed": "error",
    "service.unknown_variable": "warning",
}
_RANK = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Audit:
    """Prints events, as JSON or for a person.

    Args:
        stream: where to; a terminal gets readable lines, everything else JSON.
        level: lines below it are not printed.
    """

    def __init__(self, stream: TextIO, level: str = "info") -> None:
        self._least = _RANK[level]
        readable = stream.isatty()
        processors: list[structlog.typing.Processor] = (
            [_printable, structlog.dev.ConsoleRenderer(colors=True, sort_keys=False)]
            if readable
            else [_json_line]
        )
        # No processor that renders exceptions: a traceback's text is nobody's to promise.
        self._log: structlog.BoundLogger = structlog.wrap_logger(
            structlog.PrintLogger(stream),
            processors=processors,
            wrapper_class=structlog.BoundLogger,
        ).bind()  # once, and not for each line

    def line(self, name: str, at: float, fields: Mapping[str, Any]) -> None:
        """Print one event.

        Args:
            name: the event's.
            at: epoch seconds.
            fields: what it says.

        Raises:
            OSError: the stream is closed or full.
        """
        level = LEVELS.get(name, "info")
        if _RANK[level] < self._least:
            return
        stamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        self._log.msg(name, timestamp=stamp.replace("+00:00", "Z"), level=level, **fields)


def _printable(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    # A name on the disk must not steer the terminal of whoever looks.
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = ascii(value)
    return event


def _json_line(_: object, __: str, event: structlog.typing.EventDict) -> str:
    first = {name: event.pop(name) for name in ("timestamp", "level", "event")}
    return msgspec.json.encode(first | dict(event)).decode()
