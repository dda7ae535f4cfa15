"""Tokens beside the answers: read once, and never believed."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.tokens import unsigned_token
from support.watched import (
    KEY,
    WHOLE,
    Place,
    texts,
)
from support.writer import Writer

from paliadin_contract.ids import is_turn_id
from paliadin_sidecar.errors import Changed
from paliadin_sidecar.intake.events import (
    Hint,
)
from paliadin_sidecar.intake.tokens import read_claims

if TYPE_CHECKING:
    from pathlib import Path

ME = os.geteuid()


def claims(directory: Path, content: bytes | None = None) -> tuple[str, str] | None:
    """What the token there says, once this is written into it."""
    if content is not None:
        (directory / "t.jwt").write_bytes(content)
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return read_claims(root, "t.jwt", ME)
    finally:
        os.close(root)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for many examples."""
    return tmp_path_factory.mktemp("tokens")


TOKEN = unsigned_token(jti="submitted", sub="user")


HINT = Hint(KEY, "submitted", "user")


def test_a_token_before_the_answer(heard: Place) -> None:
    """A token is read when it is seen, and not again."""
    (heard / "t.jwt").write_text(TOKEN)
    assert heard.notice("t.jwt") == [HINT]
    assert heard.notice("t.jwt") == []
    (heard / "t.jwt").unlink()
    heard.publish()
    assert heard.notice("t.txt") == []
    assert texts(heard.look()) == [WHOLE]


def test_a_token_with_the_answer(heard: Place) -> None:
    """A token that nobody announced is read before the answer is taken."""
    heard.publish()
    heard.notice("t.txt")
    (heard / "t.jwt").write_text(TOKEN)
    hint, *rest = heard.look()
    assert hint == HINT
    assert texts(rest) == [WHOLE]


def test_a_token_after_the_answer(heard: Place) -> None:
    """A token that comes after the answer is read all the same."""
    heard.publish()
    heard.notice("t.txt")
    assert texts(heard.look()) == [WHOLE]
    (heard / "t.jwt").write_text(TOKEN)
    assert heard.notice("t.jwt") == [HINT]


def test_half_a_token(heard: Place) -> None:
    """A token that is half written says nothing, and is read again when it is whole."""
    with Writer(heard / "t.jwt") as writer:
        assert heard.notice("t.jwt") == []
        writer.write(TOKEN)
        assert heard.notice("t.jwt") == []
    assert [*heard.notice("t.jwt"), *heard.every_file()] == [HINT]


def test_a_token_that_is_gone(heard: Place) -> None:
    """A token that went before it was read is no error."""
    (heard / "t.jwt").write_text(TOKEN)
    (heard / "t.jwt").unlink()
    assert heard.notice("t.jwt") == []
    assert heard.wait(60) == []


def test_a_token_for_the_next_time(heard: Place) -> None:
    """Once a scan saw that a token went, a new one of the same name is read again."""
    (heard / "t.jwt").write_text(TOKEN)
    heard.notice("t.jwt")
    (heard / "t.jwt").unlink()
    heard.every_file()
    (heard / "t.jwt").write_text(unsigned_token(jti="other", sub="user"))
    assert heard.notice("t.jwt") == [Hint(KEY, "other", "user")]


def test_a_bad_token_is_read_once(place: Place, looks: list[float]) -> None:
    """Empty ones and rubbish are opened once, until they change; scans do not ask again."""
    for n in range(50):
        (place / f"x{n}.jwt").write_text("rubbish" * (n % 2))
    place.every_file()
    assert looks
    del looks[:]
    for _ in range(3):
        (place / "a.moves").touch()
        place.scan()
        (place / "a.moves").unlink()
        assert place.every_file() == []
    assert looks == []
    (place / "x7.jwt").write_text(TOKEN)
    (hint,) = place.every_file()
    assert isinstance(hint, Hint)


def test_claims(tmp_path: Path) -> None:
    """A token says who waits and for whom, with white space around it or not."""
    token = unsigned_token(jti="turn-1", sub="user-1", role="authenticated", exp=1).encode()
    assert claims(tmp_path, token) == ("turn-1", "user-1")
    assert claims(tmp_path, b" " + token + b"\n") == ("turn-1", "user-1")


@pytest.mark.parametrize("text", ["a?", "a??", "a???"])
def test_claims_of_any_length(tmp_path: Path, text: str) -> None:
    """Padding is not asked for, and base64 is that of URLs."""
    token = unsigned_token(jti="t", sub="u", note=text + "\x7f\x3e\x3f" * 5).encode()
    assert claims(tmp_path, token) == ("t", "u")


def encoded(raw: bytes) -> bytes:
    return b"e30." + base64.urlsafe_b64encode(raw).rstrip(b"=") + b".c2ln"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no token",
        b"..",
        b"...",
        b"a.b.c",
        b"\xff.\xff.\xff",
        b"e30.!!!!.c2ln",
        unsigned_token(jti="t", sub="u").replace("J", "!!!!J", 2).encode(),
        encoded(b""),
        encoded(b"{"),
        encoded(b"[]"),
        encoded(b"null"),
        encoded(b"\xff"),
        encoded(b"{}"),
        encoded(b'{"jti": "t"}'),
        encoded(b'{"sub": "u"}'),
        encoded(b'{"jti": 1, "sub": "u"}'),
        encoded(b'{"jti": null, "sub": "u"}'),
        encoded(b'{"jti": "../t", "sub": "u"}'),
        encoded(b'{"jti": "t", "sub": "a b"}'),
        encoded(b'{"jti": "t", "sub": ""}'),
        encoded(b'{"jti": "' + b"t" * 65 + b'", "sub": "u"}'),
        encoded(b'{"jti": "t", "sub": "\xff"}'),
        encoded(b'{"jti": "t", "sub": "\\ud800"}'),
        encoded(b"[" * 4000),
        unsigned_token(jti="t", sub="u").encode()[:-40],
        unsigned_token(jti="t", sub="u", note="x" * 8 * 1024).encode(),
    ],
    ids=lambda content: ascii(content)[:30],
)
def test_no_claims(tmp_path: Path, content: bytes) -> None:
    """What is no token, or one of no ids, or a huge one, says nothing."""
    assert claims(tmp_path, content) is None


def test_a_token_of_8_kib(tmp_path: Path) -> None:
    """A token may be as large as the limit, and no larger."""
    token = unsigned_token(jti="t", sub="u").encode()
    assert claims(tmp_path, token.ljust(8 * 1024)) == ("t", "u")
    assert claims(tmp_path, token.ljust(8 * 1024 + 1)) is None


def test_a_token_that_cannot_be_had(tmp_path: Path) -> None:
    """A token that is not there, has a second name or is being written says nothing."""
    with pytest.raises(FileNotFoundError):
        claims(tmp_path)
    assert claims(tmp_path, unsigned_token(jti="t", sub="u").encode()) == ("t", "u")
    with Writer(tmp_path / "t.jwt"), pytest.raises(Changed):
        claims(tmp_path)
    os.link(tmp_path / "t.jwt", tmp_path / "other")
    assert claims(tmp_path) is None


json_values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())
contents = st.one_of(
    st.binary(),
    st.lists(st.binary()).map(b".".join),
    st.binary().map(encoded),
    st.builds(
        lambda jti, sub: unsigned_token(jti=jti, sub=sub).encode(),
        json_values | st.just("t"),
        json_values | st.just("u"),
    ),
)


@given(contents)
@example(b"e30." + b"A" * 5 + b".c2ln")
def test_claims_of_anything(scratch: Path, content: bytes) -> None:
    """Whatever a token file holds, it says two ids or nothing."""
    found = claims(scratch, content)
    assert found is None or all(map(is_turn_id, found))
