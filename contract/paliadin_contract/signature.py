"""Signs and verifies callbacks as Standard Webhooks says, with the clock passed in.

Source: https://www.standardwebhooks.com, version 1, symmetric keys.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hmac
import re
from collections.abc import Iterable, Mapping
from datetime import datetime

from paliadin_contract.errors import BadSecret, BadSignature

#: How far, in seconds, a timestamp may be from the receiver's clock (the standard's figure).
TOLERANCE_S = 300
#: The standard asks for 24 to 64 bytes; a longer key does no harm.
_MIN_KEY_BYTES = 24
_PREFIX = "whsec_"
#: A body is read in such steps, so that no copy of a large one is made.
_STEP_BYTES = 1024 * 1024
_NOT_UTF8 = "the body or a header is not UTF-8"
_TIMESTAMP = re.compile(r"\A[0-9]{1,11}\Z", re.ASCII)


class Keys:
    """One secret, or several while they are being rotated.

    Args:
        secrets: each `whsec_<base64>` of at least 24 bytes.

    Raises:
        BadSecret: none given, or some are malformed. The text says which by their places.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._keys: list[bytes] = []
        wrong = []
        for place, secret in enumerate(secrets, 1):
            try:
                self._keys.append(_key(place, secret))
            except BadSecret as exc:
                wrong.append(str(exc))
        if wrong or not self._keys:
            raise BadSecret("; ".join(wrong) or "no secret")

    def __repr__(self) -> str:
        return f"Keys(<{len(self._keys)} masked>)"

    def sign(self, webhook_id: str, body: bytes, now: datetime) -> dict[str, str]:
        """The three headers that prove `body`, one signature for each secret.

        Raises:
            UnicodeDecodeError: `body` is not UTF-8.
        """
        _check_utf8(body)
        timestamp = int(now.timestamp())
        macs = self._macs(webhook_id, timestamp)
        for mac in macs:
            mac.update(body)
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(_signature(mac).decode() for mac in macs),
        }

    def verify(self, headers: Mapping[str, str], body: bytes, now: datetime) -> str:
        """The webhook id, where one of the signatures is of one of these secrets.

        Args:
            headers: the request's, names in any case.
            body: the request's, untouched.
            now: the receiver's clock, with a time zone.

        Raises:
            BadSignature: in every other case, whatever is wrong.
        """
        verification = self.begin(headers, now)
        verification.update(body)
        return verification.finish()

    def begin(self, headers: Mapping[str, str], now: datetime) -> Verification:
        """Verify a body as its bytes come, without holding it.

        Raises:
            BadSignature: the headers alone show that no body could be proven: one is missing or
                malformed, or the time is too far off.
        """
        found = {name.lower(): value for name, value in headers.items()}
        try:
            webhook_id = found["webhook-id"]
            timestamp = found["webhook-timestamp"]
            offered = found["webhook-signature"]
        except KeyError as exc:
            raise BadSignature(f"the header {exc.args[0]} is missing") from None
        if not _TIMESTAMP.match(timestamp):
            raise BadSignature("webhook-timestamp is no whole number of seconds")
        if abs(off_s := int(timestamp) - now.timestamp()) > TOLERANCE_S:
            off = f"{off_s:+.0f} s from this clock, more than {TOLERANCE_S} s"
            raise BadSignature(f"webhook-timestamp is {off}")
        try:
            candidates = [part.encode() for part in offered.split(" ")]
            return Verification(webhook_id, candidates, self._macs(webhook_id, int(timestamp)))
        except UnicodeError:
            raise BadSignature(_NOT_UTF8) from None

    def _macs(self, webhook_id: str, timestamp: int) -> list[hmac.HMAC]:
        # What is signed begins with these two, and the body follows.
        begin = f"{webhook_id}.{timestamp}.".encode()
        return [hmac.new(key, begin, "sha256") for key in self._keys]


class Verification:
    """One body's signature, computed as the bytes come. Made by `Keys.begin`.

    Attributes:
        matched: the places of the secrets that proved the body, counted from 0; empty until
            `finish` has returned.
    """

    def __init__(self, webhook_id: str, offered: list[bytes], macs: list[hmac.HMAC]) -> None:
        self._webhook_id = webhook_id
        self._offered = offered
        self._macs = macs
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._is_utf8 = True
        self.matched: frozenset[int] = frozenset()

    def update(self, chunk: bytes) -> None:
        """The next bytes of the body."""
        for mac in self._macs:
            mac.update(chunk)
        self._decode(chunk, final=False)

    def finish(self) -> str:
        """The webhook id, where one of the signatures is of one of the secrets.

        Raises:
            BadSignature: none is.
        """
        self._decode(b"", final=True)
        if not self._is_utf8:
            raise BadSignature(_NOT_UTF8)
        wanted = [_signature(mac) for mac in self._macs]
        # Every pair is compared, so that the time shows nothing of which secret matched.
        matches = [[hmac.compare_digest(a, b) for b in self._offered] for a in wanted]
        self.matched = frozenset(place for place, each in enumerate(matches) if any(each))
        if not self.matched:
            raise BadSignature("no signature is of a known secret")
        return self._webhook_id

    def _decode(self, chunk: bytes, *, final: bool) -> None:
        try:
            self._decoder.decode(chunk, final)
        except UnicodeDecodeError:
            self._is_utf8 = False
            self._decoder.reset()


def _check_utf8(body: bytes) -> None:
    steps = (body[start : start + _STEP_BYTES] for start in range(0, len(body), _STEP_BYTES))
    for _ in codecs.iterdecode(steps, "utf-8"):
        pass


def _signature(mac: hmac.HMAC) -> bytes:
    return b"v1," + base64.b64encode(mac.digest())


def _key(place: int, secret: str) -> bytes:
    if not secret.startswith(_PREFIX):
        raise BadSecret(f"secret {place} does not begin with {_PREFIX}")
    encoded = secret.removeprefix(_PREFIX)
    try:
        # Some generators leave the padding off; the standard's libraries accept that.
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadSecret(f"secret {place} is not base64 after {_PREFIX}") from None
    if len(key) < _MIN_KEY_BYTES:
        raise BadSecret(f"secret {place} is {len(key)} bytes long, at least 24 are needed")
    return key
