"""The process's own standard streams, however it was started."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TextIO


def prepare() -> None:
    """Make the three streams safe to use: none closed, and no character that cannot be written.

    A file that is opened while one is closed would get its number, and with it all that is
    printed. A character that the locale does not have is escaped; it ends no command.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    # A daemon without an output still delivers, and its outbox keeps the events.
    sys.stdout = _buffered(sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _buffered(stream: TextIO) -> TextIO:
    # With PYTHONUNBUFFERED what could not be written is forgotten, and `has_failed` finds nothing.
    if not (isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.FileIO)):
        return stream
    encoding, errors = stream.encoding, stream.errors
    return io.TextIOWrapper(
        io.BufferedWriter(stream.detach()), encoding, errors, write_through=True
    )


def as_utf8(stream: TextIO) -> None:
    """JSON is UTF-8, whatever the locale says (RFC 8259, section 8.1)."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8")


def has_failed(stream: TextIO) -> bool:
    """Whether what was printed could not be written; it is let go then.

    A stream that failed while only a part of a text was written may not fail again: who writes much
    sees that by the error itself.
    """
    try:
        stream.flush()
    except OSError:
        discard_unwritten(stream)
        return True
    return False


def discard_unwritten(stream: TextIO) -> None:
    """Discard what could not be written.

    Kept, the interpreter would try it once more at its end, and fail in a traceback.
    """
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def wants_colors(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether whoever reads it wants colours: see https://no-color.org, and terminfo's `dumb`."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
