"""How bodies are kept in the database, and how many may be in memory at a time."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable

#: Bodies that are sent at the same time take so many bytes, unless a single one is larger; then no
#: other large one is sent beside it.
_MAX_HELD = 32 * 1024 * 1024
_LARGE = 1024 * 1024
#: A body that shrinks to a fraction of one in so many repeats itself, and shrinks once more.
_REPETITIVE = 50
#: To deflate a body of this size spares a page or two for 72 h, and costs a fifth of the time that
#: its turn takes in the outbox.
_SMALL = 8 * 1024
#: The fastest level: an answer waits for it.
_LEVEL = 1


def pack(body: bytes) -> tuple[bytes, int]:
    """Deflate a body (RFC 1950) that is not small, where that makes it smaller.

    JSON writes a NUL as six bytes: 4 MiB of them, which cost nothing as a sparse file, are a body
    of 24 MiB. Deflated once that is some 100 KB, since deflate has a best ratio; twice, some 500
    bytes.

    Returns:
        What is kept, and how many times it was deflated: 0, 1 or 2.
    """
    once = body if len(body) <= _SMALL else zlib.compress(body, _LEVEL)
    if len(once) >= len(body):
        return body, 0
    if len(once) * _REPETITIVE > len(body):
        return once, 1
    return zlib.compress(once, _LEVEL), 2


def unpack(data: bytes, deflated: int, size: int) -> bytes | None:
    """Give back a body of this size, byte for byte; None where it is damaged.

    Args:
        data: what `pack` returned.
        deflated: the same.
        size: of the body, in bytes.
    """
    for _ in range(deflated):
        inflating = zlib.decompressobj()
        try:
            # A damaged body takes no more memory than a whole one would.
            data = inflating.decompress(data, max(size, 0) + 1)
        except zlib.error:
            return None
        if not inflating.eof or inflating.unused_data:
            return None
    return data if len(data) == size else None


def size_limit(held: Collection[int]) -> int | None:
    """The size of the largest body that may be in memory beside others of these sizes.

    None: it may have any size. One may always be large, so that each is sent in the end.
    """
    if max(held, default=0) <= _LARGE:
        return None
    return max(_LARGE, _MAX_HELD - sum(held))


def select_fitting(sizes: Iterable[int], held: Collection[int]) -> list[int]:
    """The indexes of the bodies of these sizes that may come into memory beside those held."""
    beside, taken = list(held), []
    for index, size in enumerate(sizes):
        limit = size_limit(beside)
        if limit is None or size <= limit:
            beside.append(size)
            taken.append(index)
    return taken
