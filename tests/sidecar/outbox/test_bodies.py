from __future__ import annotations

import os
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.noise import noise

from paliadin_sidecar.outbox.bodies import pack, select_fitting, size_limit, unpack

MIB = 1024 * 1024


@given(
    st.one_of(st.binary(), st.builds(lambda text, n: text * n, st.binary(), st.integers(0, 999)))
)
def test_a_body_comes_back_byte_for_byte(body: bytes) -> None:
    """However it was packed, and it never takes more than it did."""
    data, deflated = pack(body)
    assert unpack(data, deflated, len(body)) == body
    assert len(data) <= len(body)


@pytest.mark.parametrize(
    ("body", "deflated", "most"),
    [
        (os.urandom(50_000), 0, 50_000),
        (b"A small one. " * 600, 0, 8000),
        (noise(16_384).encode(), 1, 24_000),
        (b'"' + rb"\u0000" * (4 * MIB) + b'"', 2, 4096),
        (b"A" * (24 * MIB), 2, 4096),
        (b"A long line, and the same again and again.\n" * 100_000, 2, 4096),
    ],
    ids=["nothing gained", "small", "text", "NUL", "one letter", "one line"],
)
def test_what_it_costs(body: bytes, deflated: int, most: int) -> None:
    """A body of one thing again and again costs nearly nothing."""
    data, times = pack(body)
    assert times == deflated
    assert len(data) <= most


def test_a_packed_body_that_is_damaged() -> None:
    """It is reported, never sent: one flipped bit, a missing end, another's size."""
    body = noise(16_384).encode()
    size, (data, _) = len(body), pack(body)
    flipped = bytearray(data)
    flipped[len(flipped) // 2] ^= 1
    for bad in (
        (bytes(flipped), 1, size),
        (data[:-1], 1, size),
        (data, 1, size + 1),
        (data, 2, size),
        (b"plain", 0, 4),
    ):
        assert unpack(*bad) is None


@pytest.mark.parametrize("deflated", [1, 2])
def test_a_row_that_would_grow(deflated: int) -> None:
    """What inflates to more than its size says is damaged, and takes no more than that."""
    data = bytes(64 * MIB)
    for _ in range(deflated):
        data = zlib.compress(data)
    for size in (4096, 0, -1):
        tracemalloc.start()
        try:
            assert unpack(data, deflated, size) is None
            assert tracemalloc.get_traced_memory()[1] < MIB
        finally:
            tracemalloc.stop()


def test_small_ones_are_not_held_up() -> None:
    """Eight of them fit beside whatever is under way."""
    sizes = [4096] * 8
    for held in ([], [24 * MIB], [400 * MIB]):
        assert select_fitting(sizes, held) == list(range(8))


def test_large_ones_share_what_there_is() -> None:
    """32 MiB together; those that do not fit wait, and smaller ones behind them do not."""
    assert select_fitting([24 * MIB, 24 * MIB, 4 * MIB, 1000], []) == [0, 2, 3]
    assert select_fitting([12 * MIB] * 8, []) == [0, 1]
    assert size_limit([24 * MIB]) == 8 * MIB


@pytest.mark.parametrize("held", [[], [MIB], [4096] * 7])
def test_one_is_always_taken(held: list[int]) -> None:
    """However large, where no other large one is under way: each is sent in the end."""
    assert select_fitting([384 * MIB, 384 * MIB], held) == [0]
    assert size_limit(held) is None


@given(st.lists(st.integers(0, 400 * MIB)), st.lists(st.integers(0, 400 * MIB), max_size=8))
def test_what_is_held_is_bounded(sizes: list[int], held: list[int]) -> None:
    """At most 32 MiB and the small ones, or one that is larger than that."""
    taken = [sizes[place] for place in select_fitting(sizes, held)]
    large = [size for size in taken if size > MIB]
    if large and max(held, default=0) <= MIB:
        assert len(large) == 1 or sum(large) <= 32 * MIB
    elif large:
        assert sum(large) + max(held) <= 32 * MIB
