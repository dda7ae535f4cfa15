"""What came back on a connection → the answer, and whether the connection can be used again.

Pure: bytes in, no I/O. The status line alone is the answer: nothing that stands behind it, or is
missing there, makes it another one. Everything else only decides about the connection. Source:
RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from http import HTTPStatus

#: A proxy's policies and cookies can be long; a longer head costs the connection.
_MAX_HEAD = 64 * 1024
#: A body up to this length is read, so that the connection can be used again.
_MAX_BODY = 4096
#: Of the body of a refusal so much is read: what an operator is shown of it is shorter.
_MAX_SAID = 4096
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([0-9]{3})(?: [^\n]*)?\r?\n")
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n\0]*?)[ \t]*\r?")
_MIN_STATUS_LINE = len("HTTP/1.1 204\n")
_END_OF_CHUNKS = re.compile(rb"(?:\A|\n)0+\r?\n")


class Response:
    """The answer to one request, as far as it has come.

    Attributes:
        status: None until the status line is whole.
        headers: by their names in small letters, the first of each; empty until the head is
            whole, or where it is none.
        has_ended: nothing that still comes is of any interest, but to the connection.
        is_clean: the answer was read to its very end, and another may follow on the connection.
        is_partial: some of its body is still to come, and then it will be clean.
        said: the body of a refusal (4xx), as far as it was read.
        has_more_to_say: some of that may still come.
        rest: done when no more of it comes; None where nobody waits for it. Set by who feeds this.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.has_ended = False
        self.is_clean = False
        self.said = bytearray()
        self.rest: Awaitable[None] | None = None
        self._said_left = 0
        self._buffer = bytearray()
        self._seen = 0  # bytes of heads
        self._left: int | None = None  # of the body, where that is worth reading

    @property
    def is_partial(self) -> bool:  # noqa: D102 - see above
        return (self._left or 0) > 0

    @property
    def has_more_to_say(self) -> bool:  # noqa: D102 - see above
        return self._said_left > 0

    def feed(self, data: bytes) -> None:
        """Take what came next."""
        if self._left is not None:
            self._skip(len(data))
        elif self._said_left > 0:
            self._keep(data)
        elif not self.has_ended:
            self._buffer += data
            self._seen += len(data)
            # Nothing begins or ends within a line: one that comes byte by byte is not read anew.
            if b"\n" in data or len(self._buffer) < _MIN_STATUS_LINE or self._seen > _MAX_HEAD:
                while self._read_head():
                    pass

    def _read_head(self) -> bool:
        # True where it was an interim answer, and another head may follow.
        head = bytes(self._buffer[:_MAX_HEAD])
        line = _STATUS_LINE.match(head)
        if line is None:
            is_cut = b"\n" not in head and _is_start_of_status_line(head)
            if not is_cut or self._seen > _MAX_HEAD:
                self._give_up()
            return False
        status = int(line[2])
        is_interim = status // 100 == 1 and status != HTTPStatus.SWITCHING_PROTOCOLS
        if not is_interim:
            self.status = status
        end = _END_OF_HEAD.search(head, line.end() - 1)
        if end is None:
            if self._seen > _MAX_HEAD:
                self._give_up()
            return False
        del self._buffer[: end.end()]
        if not is_interim:
            lines = head[line.end() : end.start() + 1].split(b"\n")[:-1]
            self._read_headers(lines, status, is_old=line[1] == b"0")
        return is_interim

    def _give_up(self) -> None:
        self.has_ended = True
        self._buffer.clear()

    def _read_headers(self, lines: list[bytes], status: int, *, is_old: bool) -> None:
        found = [_HEADER.fullmatch(line) for line in lines]
        fields = [(m[1].decode().lower(), m[2].decode("latin-1")) for m in found if m]
        for name, value in reversed(fields):
            self.headers[name] = value
        self.has_ended = True
        if len(fields) == len(lines) and not is_old:
            self._left = _body_length(status, fields)
        if self._left is not None:
            self._skip(len(self._buffer))
        elif status // 100 == 4:  # noqa: PLR2004 - HTTP's own classes
            self._said_left = _said_length(self.headers)
            self._keep(bytes(self._buffer))

    def _keep(self, data: bytes) -> None:
        self.said += data[: self._said_left]
        self._said_left = max(0, self._said_left - len(data))
        if "transfer-encoding" in self.headers and _END_OF_CHUNKS.search(self.said):
            self._said_left = 0

    def _skip(self, count: int) -> None:
        # More than the body's length is an answer that nobody asked for.
        assert self._left is not None
        self._left -= count
        self.is_clean = self._left == 0


def _said_length(headers: dict[str, str]) -> int:
    # Without a length that can be read, it ends with the connection.
    length = headers.get("content-length", "")
    if "transfer-encoding" not in headers and re.fullmatch("[0-9]{1,9}", length, re.ASCII):
        return min(int(length), _MAX_SAID)
    return _MAX_SAID


def _is_start_of_status_line(head: bytes) -> bool:
    start = b"HTTP/1."
    return head[: len(start)] == start[: len(head)]


def _body_length(status: int, fields: list[tuple[str, str]]) -> int | None:
    # None where it is not worth reading, or may end elsewhere than it says.
    named = {name for name, _ in fields}
    if not 200 <= status < 300 or named & {"transfer-encoding", "upgrade"}:  # noqa: PLR2004 - HTTP's own classes
        return None
    tokens = ",".join(value for name, value in fields if name == "connection").lower().split(",")
    if "close" in map(str.strip, tokens):
        return None
    lengths = [value for name, value in fields if name == "content-length"]
    if status == HTTPStatus.NO_CONTENT:
        return 0 if lengths in ([], ["0"]) else None
    if len(lengths) != 1 or not re.fullmatch("[0-9]{1,9}", lengths[0], re.ASCII):
        return None
    length = int(lengths[0])
    return length if length <= _MAX_BODY else None
