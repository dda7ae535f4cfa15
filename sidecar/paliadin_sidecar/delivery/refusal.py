"""What a receiver said when it refused → the text that is kept of it. Pure.

An operator reads in it what mends the refusal. A receiver may echo what it got, in many spellings,
and an answer must not be kept in this place. So a text that shares as much with what was sent is
left out, and that is said instead.
"""

from __future__ import annotations

import base64
import html
import re
import unicodedata
from collections.abc import Iterator, Mapping
from urllib.parse import unquote_plus

#: So many characters are kept.
MAX_SAID = 1000
#: A text that shares so many characters in a row with what was sent is left out, also where neither
#: case nor white space counts.
_SHARED = 40
#: Of such a run, at any place in a text, a half begins at a multiple of its length.
_HALF = _SHARED // 2
#: What was sent is compared in pieces, so that nobody waits for the largest turn.
_PIECE = 32 * 1024
#: A piece begins within the one before: what is shared may lie between two. In JSON a character may
#: be twelve.
_OVERLAP = 12 * _SHARED
#: Spellings within spellings, such as JSON in HTML in JSON.
_MAX_FORMS = 24

ECHO = "(left out: it repeats what was sent)"
CODED = "(left out: it is compressed)"

_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{40,}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){40,}")
_UNSEEN = re.compile(
    r"[\s\x00-\x1f\x7f-\x9f\xad\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+"
)
_URL_SAFE = str.maketrans("+/", "-_")
#: Between what does not belong together.
_GAP = "\0"
_SECRET = re.compile(r"whsec_[A-Za-z0-9+/=_-]+")


def is_coded(headers: Mapping[str, str]) -> bool:
    """Whether an answer's body is compressed, although nobody asked for that."""
    return headers.get("content-encoding", "identity").lower() not in {"", "identity"}


def body(headers: Mapping[str, str], data: bytes) -> bytes:
    """An answer's body without the marks of its transfer, as far as it was read."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return b"".join(_chunks(data))
    return data


def said(data: bytes, user_id: str | None = None) -> str:
    """What is kept of a body: without control characters, secrets, and a user's whole id."""
    text = _SECRET.sub("whsec_…", data.decode(errors="replace"))
    if user_id and len(user_id) > 8:  # noqa: PLR2004 - as many are shown everywhere
        text = text.replace(user_id, f"{user_id[:8]}…")
    return " ".join("".join(map(_visible, text)).split())[:MAX_SAID]


class EchoDetector:
    """Compares what the receiver said with what was sent, a piece at a time.

    Args:
        data: the body of its answer, of whatever encoding.
    """

    def __init__(self, data: bytes) -> None:
        forms = _forms({data.decode(errors="replace"), data.decode("latin-1")})
        forms |= {_loosened(form) for form in forms}
        self._runs, self._halves = _runs(forms, _SHARED), _runs(forms, _HALF)

    def is_in(self, piece: str) -> bool:
        """Whether it shares too much with a piece of what was sent."""
        unescaped = _unescaped(piece)
        return any(map(self._has_run_of, (piece, unescaped, _loosened(unescaped))))

    def _has_run_of(self, text: str) -> bool:
        if not self._runs:
            return False
        for at in range(0, len(text) - _HALF + 1, _HALF):
            if text[at : at + _HALF] in self._halves and self._has_run_around(text, at):
                return True
        return False

    def _has_run_around(self, text: str, at: int) -> bool:
        first = max(0, at + _HALF - _SHARED)
        return any(text[n : n + _SHARED] in self._runs for n in range(first, at + 1))


def pieces(body: bytes) -> Iterator[str]:
    """What was sent, in pieces that overlap."""
    for start in range(0, max(1, len(body) - _OVERLAP), _PIECE - _OVERLAP):
        yield body[start : start + _PIECE].decode(errors="ignore")


def _runs(texts: set[str], length: int) -> set[str]:
    return {text[n : n + length] for text in texts for n in range(len(text) - length + 1)}


def _forms(texts: set[str]) -> set[str]:
    # The texts, and whatever they are when they are decoded, and decoded again.
    found, new = set(texts), list(texts)
    while new and len(found) < _MAX_FORMS:
        for decoded in _decoded(new.pop()):
            if decoded not in found:
                found.add(decoded)
                new.append(decoded)
    return found


def _decoded(text: str) -> Iterator[str]:
    # What it is in each of the encodings that it may be in.
    yield _unescaped(text)
    yield html.unescape(text)
    yield _TAG.sub("", text)
    yield unquote_plus(text)
    if not text.isascii():  # UTF-8 that was taken for another encoding, a character for each byte
        yield text.encode("latin-1", "replace").decode("utf-8", "replace")
    yield from _from_base64(text)
    yield from _from_hex(text)


def _unescaped(text: str) -> str:
    # As JSON and Python write strings; surrogates in pairs.
    if "\\" not in text:
        return text
    plain = _ESCAPE.sub(_character, text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _character(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2]
    return chr(int(code, 16)) if code else _ESCAPES.get(escape[3], escape[3])


def _from_base64(text: str) -> Iterator[str]:
    # Line ends within it do not count; it may begin anywhere in a run of its letters.
    runs = _BASE64.findall(re.sub(r"[\r\n]", "", text))
    for skipped in range(4 if runs else 0):
        parts = [run[skipped : skipped + (len(run) - skipped) // 4 * 4] for run in runs]
        decoded = [base64.urlsafe_b64decode(part.translate(_URL_SAFE)) for part in parts]
        yield _GAP.join(each.decode(errors="replace") for each in decoded)


def _from_hex(text: str) -> Iterator[str]:
    runs = [bytes.fromhex(re.sub("[ :]", "", run)) for run in _HEX.findall(text)]
    if runs:
        yield _GAP.join(run.decode(errors="replace") for run in runs)


def _loosened(text: str) -> str:
    # Without what a page or a log changes: case, white space, what is not seen, forms of a letter.
    return _UNSEEN.sub("", unicodedata.normalize("NFKC", text).casefold())


def _visible(character: str) -> str:
    # Also nothing that turns the direction of what follows, and no half of a character.
    return " " if unicodedata.category(character)[0] == "C" else character


def _chunks(data: bytes) -> Iterator[bytes]:
    # As far as they came; what is no chunk ends them.
    while match := re.match(rb"([0-9a-fA-F]{1,8})[^\n]*\n", data):
        size = int(match[1], 16)
        if size == 0:
            return
        yield data[match.end() : match.end() + size]
        data = data[match.end() + size :].lstrip(b"\r\n")
