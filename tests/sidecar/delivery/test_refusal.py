"""What is kept of a refusal's body: what an operator needs, and nothing of an answer."""

from __future__ import annotations

import base64
import html
import json
import random
import string
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliadin_sidecar.delivery import refusal
from paliadin_sidecar.delivery.refusal import EchoDetector

ID = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11"
TEXT = (
    'Die Frist endet am "Montag", dem\n1. März 2027 <b>um</b> 24 Uhr & nicht früher; 😀 siehe '
    "§ 193 Absatz 2 des Gesetzes."
)
SENT = json.dumps(
    {"type": "turn.completed", "data": {"turn_id": ID, "response": TEXT}}, ensure_ascii=False
)


def is_echo(text: str, sent: str = SENT) -> bool:
    echo = EchoDetector(text.encode())
    return any(echo.is_in(piece) for piece in refusal.pieces(sent.encode()))


SPELLINGS = {
    "as it is": TEXT,
    "as JSON": json.dumps(TEXT, ensure_ascii=False),
    "as ASCII JSON": json.dumps(TEXT),
    "as JSON in JSON": json.dumps({"got": json.dumps({"response": TEXT})}),
    "as HTML": html.escape(TEXT),
    "as HTML of JSON": f"<pre>{html.escape(json.dumps(SENT))}</pre>",
    "as numeric entities": "".join(f"&#{ord(c)};" for c in TEXT),
    "as hexadecimal entities": "".join(f"&#x{ord(c):x};" for c in TEXT),
    "in tags": TEXT.replace(" ", "<span> </span>"),
    "in a URL": quote(TEXT),
    "in a form": quote_plus(TEXT),
    "as Python": repr(TEXT),
    "as Python bytes": repr(TEXT.encode()),
    "as base64": base64.b64encode(TEXT.encode()).decode(),
    "as base64 for URLs": base64.urlsafe_b64encode(f"x{SENT}".encode()).decode(),
    "as base64 in lines": base64.encodebytes(f"xx{TEXT}".encode()).decode(),
    "as base64 in JSON": json.dumps({"body": base64.b64encode(SENT.encode()).decode()}),
    "as base64 with escaped slashes": base64.b64encode(SENT.encode()).decode().replace("/", "\\/"),
    "as hexadecimal": TEXT.encode().hex(),
    "as bytes": TEXT.encode().hex(" "),
    "in capitals": TEXT.upper(),
    "in lines": TEXT.replace(" ", "\r\n    "),
    "without white space": "".join(TEXT.split()),
    "with spaces that do not break": TEXT.replace(" ", "\u00a0"),
    "with soft hyphens": "\u00ad".join(TEXT),
    "as UTF-16": TEXT.encode("utf-16-le").decode("latin-1"),
    "all of it": SENT,
    "all of it with indents": json.dumps(json.loads(SENT), indent=4),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_echo_is_found(spelling: str) -> None:
    """However it is spelt, alone and within a page."""
    assert is_echo(SPELLINGS[spelling])
    assert is_echo(f"<html><p>bad request: {SPELLINGS[spelling]}</p></html>")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-be", "utf-32"])
def test_an_echo_in_another_encoding_is_found(encoding: str) -> None:
    """Whatever it says of that."""
    data = TEXT.replace("😀", "").encode(encoding)
    echo = EchoDetector(data)
    assert any(echo.is_in(piece) for piece in refusal.pieces(SENT.encode()))


@pytest.mark.parametrize(
    "text",
    [
        "unknown field: data.foo",
        f"turn {ID} is not known here",
        f'{{"error":"no turn {ID}"}}',
        TEXT[:39],
        SENT[5:44],
        "",
    ],
)
def test_what_is_no_echo_is_kept(text: str) -> None:
    """An id, or what is shorter than forty characters."""
    assert not is_echo(text)


def test_forty_characters_are_an_echo_and_fewer_are_not() -> None:
    """Wherever they are, also between two pieces of what is compared."""
    chance = random.Random(40)
    letters = string.ascii_letters + string.digits
    sent = "".join(chance.choices(letters, k=3 * 64 * 1024)) + "ä" * 3
    for at in (0, 1, 19, 20, 21, 65_000, 65_056, 65_500, 65_536, 130_900, len(sent) - 43):
        assert is_echo(f"-{sent[at : at + 40]}-", sent), at
        assert not is_echo(f"-{sent[at : at + 39]}-", sent), at


def test_control_characters_go() -> None:
    """What steers a terminal, turns the direction of text, or is no character at all."""
    text = "\x1b[2Jno\r\n\tsuch\x00 turn\u202e \u2028here\u200b"
    assert refusal.said(text.encode()) == "[2Jno such turn here"


def test_a_user_and_a_secret_are_cut() -> None:
    """As everywhere."""
    user = "5f3c0a7e-0000-4000-8000-000000000000"
    said = refusal.said(f"no user {user}, key whsec_AbC+/=".encode(), user)
    assert said == "no user 5f3c0a7e…, key whsec_…"
    assert refusal.said(b"no user", None) == "no user"


def test_its_first_thousand_characters_are_kept() -> None:
    """Of characters, not of bytes."""
    assert refusal.said(("ä" * 1500).encode()) == "ä" * 1000


def test_chunks() -> None:
    """As far as they came; what is none ends them."""
    coded = {"transfer-encoding": "chunked"}
    for data, text in (
        (b"4\r\nWiki\r\n5;x=y\r\npedia\r\n0\r\n\r\n", b"Wikipedia"),
        (b"4\r\nWiki\r\n5\r\npe", b"Wikipe"),
        (b"4\r\nWiki\r\nzz", b"Wiki"),
        (b"", b""),
    ):
        assert refusal.body(coded, data) == text
    assert refusal.body({}, b"\xff4\r\n") == b"\xff4\r\n"


def test_what_is_compressed() -> None:
    """Nobody asked for that, and it could not be compared."""
    assert refusal.is_coded({"content-encoding": "gzip"})
    assert not refusal.is_coded({"content-encoding": "Identity"})
    assert not refusal.is_coded({})


@given(st.text(), st.text(min_size=40))
def test_whatever_is_said(other: str, sent: str) -> None:
    """Nothing raises, and all of what was sent is an echo."""
    is_echo(other, sent)
    assert is_echo(other + sent, sent)
