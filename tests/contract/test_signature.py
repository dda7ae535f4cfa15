from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook
from support.needs import need
from support.vectors import ACCEPTED, CALLBACKS, PATH, REJECTED, Request, Vector

from paliadin_contract.errors import BadSecret, BadSignature
from paliadin_contract.signature import TOLERANCE_S, Keys

if TYPE_CHECKING:
    from pathlib import Path

every_callback = pytest.mark.parametrize("vector", CALLBACKS, ids=lambda v: v.name)

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


def headers(vector: Vector) -> dict[str, str]:
    return {
        "webhook-id": vector.id,
        "webhook-timestamp": str(vector.timestamp),
        "webhook-signature": vector.signature,
    }


@every_callback
def test_sign(vector: Vector) -> None:
    """We sign exactly as the vectors say, one signature for each secret."""
    at = datetime.fromtimestamp(vector.timestamp, UTC)
    assert Keys(vector.secrets).sign(vector.id, vector.body.encode(), at) == headers(vector)


@every_callback
def test_the_vectors_are_the_standard(vector: Vector) -> None:
    """The vectors follow from the standard's text, and the reference library signs alike."""
    signed = f"{vector.id}.{vector.timestamp}.{vector.body}".encode()
    at = datetime.fromtimestamp(vector.timestamp, UTC)
    for secret, signature in zip(vector.secrets, vector.signature.split(" "), strict=True):
        mac = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256)
        assert signature == "v1," + base64.b64encode(mac).decode()
        assert signature == Webhook(secret).sign(vector.id, at, vector.body)


@every_callback
def test_verify(vector: Vector) -> None:
    """A receiver that has one of the sender's secrets gets the webhook id."""
    now = datetime.fromtimestamp(vector.timestamp, UTC)
    for secret in vector.secrets:
        assert Keys([secret]).verify(headers(vector), vector.body.encode(), now) == vector.id


@every_callback
def test_the_reference_library_verifies(vector: Vector) -> None:
    """What we sign now, the reference library verifies by each of the secrets."""
    signed = Keys(vector.secrets).sign(vector.id, vector.body.encode(), datetime.now(UTC))
    for secret in vector.secrets:
        assert Webhook(secret).verify(vector.body, signed) == json.loads(vector.body)


@pytest.mark.parametrize("sent", ACCEPTED, ids=lambda v: v.name)
def test_accepted(sent: Request) -> None:
    """What the standard allows is accepted: clocks 300 s apart, other signatures beside ours."""
    now = datetime.fromtimestamp(sent.now, UTC)
    verified = Keys(sent.secrets).verify(sent.headers, sent.body.encode(), now)
    assert verified == sent.headers["webhook-id"]


@pytest.mark.parametrize("sent", REJECTED, ids=lambda v: v.name)
def test_rejected(sent: Request) -> None:
    """Whatever is missing, malformed, stale or wrong, it is one error, which quotes nothing."""
    now = datetime.fromtimestamp(sent.now, UTC)
    with pytest.raises(BadSignature) as caught:
        Keys(sent.secrets).verify(sent.headers, sent.body.encode(), now)
    assert len(str(caught.value)) < 80


def test_a_fraction_of_a_second_counts() -> None:
    """A clock that is 300.5 s ahead of the timestamp is too far ahead."""
    keys = Keys([SECRET])
    signed = keys.sign("id", b"{}", NOW)
    with pytest.raises(BadSignature, match="more than 300 s"):
        keys.verify(signed, b"{}", NOW + timedelta(seconds=TOLERANCE_S + 0.5))


@pytest.mark.parametrize(
    ("off_s", "said"), [(-600, r"\+600 s from this"), (600, "-600 s from this")]
)
def test_a_clock_that_is_off(off_s: int, said: str) -> None:
    """By how much is said: the sender's is ahead of ours, or behind it."""
    keys = Keys([SECRET])
    signed = keys.sign("id", b"{}", NOW)
    with pytest.raises(BadSignature, match=said):
        keys.verify(signed, b"{}", NOW + timedelta(seconds=off_s))


@pytest.mark.parametrize("body", [b"\xff", b"\xed\xa0\x80"])
def test_a_body_that_is_not_utf8(body: bytes) -> None:
    """A body that is not UTF-8 is refused, also where its signature would be right."""
    mac = hmac.digest(KEY, b"id.%d." % NOW.timestamp() + body, hashlib.sha256)
    signed = {
        "webhook-id": "id",
        "webhook-timestamp": str(int(NOW.timestamp())),
        "webhook-signature": "v1," + base64.b64encode(mac).decode(),
    }
    with pytest.raises(BadSignature, match="not UTF-8"):
        Keys([SECRET]).verify(signed, body, NOW)


def test_header_names_in_any_case() -> None:
    """Header names are matched in any case."""
    keys = Keys([SECRET])
    signed = {name.title(): value for name, value in keys.sign("id", b"{}", NOW).items()}
    assert keys.verify(signed, b"{}", NOW) == "id"


def test_any_time_zone() -> None:
    """The clock's time zone changes neither what is signed nor what is accepted."""
    east = NOW.astimezone(timezone(timedelta(hours=13)))
    keys = Keys([SECRET])
    assert keys.sign("id", b"{}", east) == keys.sign("id", b"{}", NOW)
    assert keys.verify(keys.sign("id", b"{}", NOW), b"{}", east) == "id"


@given(
    st.binary(),
    st.dictionaries(
        st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "Webhook-ID"]),
        st.one_of(
            st.text(st.characters(codec=None)),
            st.integers().map(str),
            st.just(str(int(NOW.timestamp()))),
            st.binary(min_size=32, max_size=32).map(
                lambda mac: "v1," + base64.b64encode(mac).decode()
            ),
        ),
    ),
    st.datetimes(timezones=st.just(UTC)),
)
def test_verify_raises_its_own_error(body: bytes, hostile: dict[str, str], now: datetime) -> None:
    """Whatever a stranger sends, at whatever time, is a bad signature and nothing else."""
    keys = Keys([SECRET])
    for at in (now, NOW):
        with pytest.raises(BadSignature):
            keys.verify(hostile, body, at)


@given(st.text(min_size=1), st.text(), st.integers(0, 99_999_999_999))
def test_round_trip(webhook_id: str, body: str, seconds: int) -> None:
    """What is signed is verified; with one byte more it is not."""
    now = datetime.fromtimestamp(seconds, UTC)
    keys = Keys([SECRET])
    signed = keys.sign(webhook_id, body.encode(), now)
    assert keys.verify(signed, body.encode(), now) == webhook_id
    with pytest.raises(BadSignature):
        keys.verify(signed, body.encode() + b" ", now)


@pytest.mark.parametrize("size", [24, 25, 26, 32, 64, 65])
def test_good_secrets(size: int) -> None:
    """A secret of 24 bytes or more is accepted, with its padding or without."""
    padded = "whsec_" + base64.b64encode(bytes(size)).decode()
    signed = Keys([padded]).sign("id", b"{}", NOW)
    assert Keys([padded.rstrip("=")]).verify(signed, b"{}", NOW) == "id"


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("", "does not begin with whsec_"),
        (SECRET.removeprefix("whsec_"), "does not begin with whsec_"),
        (f" {SECRET}", "does not begin with whsec_"),
        (f"{SECRET}\n", "is not base64"),
        ("whsec_" + "A" * 33, "is not base64"),
        ("whsec_" + "-_" * 22, "is not base64"),
        ("whsec_" + "ä" * 44, "is not base64"),
        ("whsec_", "is 0 bytes long"),
        ("whsec_" + base64.b64encode(bytes(23)).decode(), "is 23 bytes long"),
    ],
)
def test_bad_secrets(secret: str, why: str) -> None:
    """A secret that cannot be one is named by its place, and never shown."""
    with pytest.raises(BadSecret, match=f"^secret 2 {why}") as caught:
        Keys([SECRET, secret])
    assert secret.removeprefix("whsec_")[1:-1] not in str(caught.value) or len(secret) <= 6


def test_all_bad_secrets() -> None:
    """Whoever mends them sees all of them at once."""
    with pytest.raises(BadSecret, match=r"^secret 1 does not .*; secret 3 is not base64"):
        Keys(["plain", SECRET, "whsec_?"])


def test_no_secret() -> None:
    """Without a secret there is nothing to sign with."""
    with pytest.raises(BadSecret, match="no secret"):
        Keys([])


@given(st.sampled_from(["", "whsec_"]), st.text(st.characters(codec=None)))
def test_secrets_raise_their_own_error(prefix: str, text: str) -> None:
    """Whatever is configured as a secret, it is one, or it is a bad one."""
    with suppress(BadSecret):
        assert repr(Keys([prefix + text])) == "Keys(<1 masked>)"


def test_a_large_body() -> None:
    """It is signed without copies of it, as the reference library signs it; also not UTF-8."""
    body = ("ä" * 700_000).encode()
    keys = Keys([SECRET])
    signed = keys.sign("id", b"x" + body, NOW)
    assert signed["webhook-signature"] == Webhook(SECRET).sign("id", NOW, (b"x" + body).decode())
    for bad in (body[:-1], body + b"\xff", b"\xff" + body):
        with pytest.raises(UnicodeDecodeError):
            keys.sign("id", bad, NOW)


def test_masked() -> None:
    """A representation of the keys holds none of them."""
    assert repr(Keys([SECRET, SECRET])) == "Keys(<2 masked>)"


JAVASCRIPT = """
const { Webhook } = require("standardwebhooks");
const { callbacks } = JSON.parse(require("fs").readFileSync(process.argv[1]));
for (const { name, secrets, id, timestamp, body, signature } of callbacks) {
  const webhooks = secrets.map((secret) => new Webhook(secret));
  const sent = new Date(timestamp * 1000);
  const headers = {
    "webhook-id": id, "webhook-timestamp": `${timestamp}`, "webhook-signature": signature,
  };
  if (webhooks.map((webhook) => webhook.sign(id, sent, body)).join(" ") !== signature)
    throw new Error(name);
  Date.now = () => sent.getTime();
  webhooks.forEach((webhook) => webhook.verify(body, headers));
}
console.log(`${callbacks.length} verified`);
"""


@pytest.mark.slow
def test_the_javascript_library_verifies(tmp_path: Path) -> None:
    """The standard's library for JavaScript signs and verifies every callback alike."""
    need("npm")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(tmp_path)]
    subprocess.run([*install, "standardwebhooks@1.1.1"], check=True)
    verified = subprocess.run(
        ["node", "-e", JAVASCRIPT, str(PATH)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert verified.stdout == f"{len(CALLBACKS)} verified\n"
