from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.answers import CLEAN, ODD

from paliadin_sidecar.delivery.response import Response


def read(data: bytes, *, pieces: int = 1) -> Response:
    response = Response()
    size = max(1, len(data) // pieces)
    for start in range(0, len(data), size):
        response.feed(data[start : start + size])
    return response


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize("what", ODD)
def test_a_2xx_is_one_whatever_stands_behind_it(what: str, pieces: int) -> None:
    """Only its connection is not used again."""
    response = read(ODD[what], pieces=pieces)
    assert response.status is not None
    assert response.status // 100 == 2
    assert not response.is_clean


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize("what", CLEAN)
def test_a_clean_answer(what: str, pieces: int) -> None:
    """It was read to its end, and the connection can be used again."""
    response = read(CLEAN[what], pieces=pieces)
    assert response.has_ended
    assert response.is_clean
    assert not response.is_partial
    response.feed(b"x")
    assert not response.is_clean


def test_a_body_that_is_still_to_come() -> None:
    """The answer is there; the connection waits for the rest."""
    response = read(b"HTTP/1.1 200 x\r\ncontent-length: 4\r\n\r\nnu")
    assert (response.has_ended, response.is_clean, response.is_partial) == (True, False, True)
    response.feed(b"ll")
    assert (response.has_ended, response.is_clean, response.is_partial) == (True, True, False)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 204",
        b"HTTP/1.1 204 No Con",
        b"HTTP/1.1 204 No Content\r",
        b"HTTP/1.",
        b"\r\nHTTP/1.1 204 x\r\n\r\n",
        b" HTTP/1.1 204 x\r\n\r\n",
        b"HTTP/1.1  204 x\r\n\r\n",
        b"HTTP/1.1 20 x\r\n\r\n",
        b"HTTP/1.1 2040 x\r\n\r\n",
        b"HTTP/1.1 204x\r\n\r\n",
        b"HTTP/1.1 2O4 x\r\n\r\n",
        b"HTTP/1.1\t204 x\r\n\r\n",
        b"HTTP/2 204\r\n\r\n",
        b"HTTP/2.0 204 x\r\n\r\n",
        b"http/1.1 204 x\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"<html>200</html>\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 204 " + b"x" * 100_000,
        b"x" * 100_000,
    ],
)
@pytest.mark.parametrize("pieces", [1, 1000])
def test_what_is_no_status_line_is_no_answer(data: bytes, pieces: int) -> None:
    """Cut, malformed, of another protocol, or endless."""
    response = read(data, pieces=pieces)
    assert response.status is None
    assert not response.is_clean


def test_what_is_no_http_is_known_at_once() -> None:
    """Nobody waits for the end of it."""
    assert read(b"SSH-2.0").has_ended
    assert not read(b"HTT").has_ended


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 x\r\na: b\r\n\r\n"]
)
@pytest.mark.parametrize("pieces", [1, 1000])
def test_an_interim_answer_is_none(interim: bytes, pieces: int) -> None:
    """The one that follows counts, and a row without an end is given up."""
    response = read(3 * interim, pieces=pieces)
    assert (response.status, response.has_ended) == (None, False)
    response = read(3 * interim + b"HTTP/1.1 204 x\r\n\r\n", pieces=pieces)
    assert (response.status, response.is_clean) == (204, True)
    response = read(10_000 * interim, pieces=pieces)
    assert response.status is None


@pytest.mark.parametrize("status", [101, 199 + 101, 404, 429, 500, 999])
def test_any_other_answer_costs_its_connection(status: int) -> None:
    """What a balancer chose for the one must not be kept for the next."""
    response = read(f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n".encode())
    assert (response.status, response.has_ended, response.is_clean) == (status, True, False)


def test_headers() -> None:
    """By small letters, without the space around them; the first of several counts."""
    response = read(
        b"HTTP/1.1 429 x\r\nRetry-After: \t7 \r\nretry-after: 9\r\nbad\r\nDate:now\r\n\r\n"
    )
    assert response.headers == {"retry-after": "7", "date": "now"}


@given(st.lists(st.binary() | st.sampled_from([b"HTTP/1.1 ", b"204", b" ", b"\r\n", b"a: b"])))
def test_whatever_comes(pieces: list[bytes]) -> None:
    """Nothing raises; a status is three digits; the pieces make no difference."""
    one, many = Response(), Response()
    one.feed(b"".join(pieces))
    for piece in pieces:
        many.feed(piece)
    assert (one.status, one.headers, one.is_clean) == (many.status, many.headers, many.is_clean)
    assert one.status is None or 0 <= one.status <= 999
