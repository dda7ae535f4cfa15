from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from io import StringIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from support.vectors import CALLBACKS, Vector

from paliadin_contract.callback import (
    Answer,
    Failure,
    Host,
    Ping,
    Reason,
    TurnCompleted,
    TurnFailed,
    Unknown,
    decode,
    encode,
)
from paliadin_contract.errors import MalformedCallback
from paliadin_contract.ids import webhook_id

AT = datetime(2026, 11, 22, 8, 0, 0, 120000, tzinfo=UTC)
TURN_ID = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11"
USER_ID = "5f3c0f6a-8a41-4c55-9d0e-3a7f2b1c9e44"
MARKER = "MARKER which must not be quoted"

by_name = {vector.name: vector for vector in CALLBACKS}
every_callback = pytest.mark.parametrize("vector", CALLBACKS, ids=lambda v: v.name)
every_file = pytest.mark.parametrize(
    "vector", [vector for vector in CALLBACKS if vector.file], ids=lambda v: v.name
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(MARKER),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "host"]), inner),
    max_leaves=4,
)


def changed(vector: Vector, path: str, value: object) -> bytes:
    body = json.loads(vector.body)
    *parents, field = path.split(".")
    owner = body[parents[0]] if parents else body
    owner[field] = value
    return json.dumps(body).encode()


def error_of(body: bytes) -> str:
    try:
        decode(body)
    except MalformedCallback as exc:
        return str(exc)
    return ""


@every_file
def test_encode_an_answer(vector: Vector) -> None:
    """A turn file becomes exactly the vector's body, and its id the vector's id."""
    assert vector.file is not None
    content = base64.b64decode(vector.file)
    known = json.loads(vector.body)["data"]
    data = Answer(
        turn_id=known["turn_id"],
        submitted_turn_id=known["submitted_turn_id"],
        revision=known["revision"],
        backend=known["backend"],
        persona=known["persona"],
        host="mriver",
        user_id=known["user_id"],
        response=content.decode(errors="replace"),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        lossy=known["lossy"],
        completed_at=datetime.fromisoformat(known["completed_at"]),
    )
    body = encode(TurnCompleted(timestamp=data.completed_at, data=data))
    assert body.decode() == vector.body
    assert data.lossy == (data.response.encode() != content)
    assert vector.id == webhook_id(
        data.backend, data.persona, data.turn_id, data.revision, data.sha256
    )


@pytest.mark.parametrize(
    ("reason", "size"), [("too_large", 5 * 1024 * 1024), ("empty", 0), ("untrusted", 4021)]
)
def test_encode_a_failure(reason: Reason, size: int) -> None:
    """A failure becomes exactly the vector's body, without any response."""
    vector = by_name[f"a failure: {reason}"]
    data = Failure(
        turn_id=TURN_ID,
        submitted_turn_id=TURN_ID,
        revision=1,
        backend="aichat",
        persona="paliadin",
        host="mriver",
        user_id=USER_ID,
        reason=reason,
        bytes=size,
        completed_at=AT,
    )
    assert encode(TurnFailed(timestamp=AT, data=data)).decode() == vector.body
    assert vector.id == webhook_id("aichat", "paliadin", TURN_ID, 1, reason)


def test_encode_a_ping() -> None:
    """A ping becomes exactly the vector's body."""
    ping = Ping(timestamp=AT, data=Host(host="mriver"))
    assert encode(ping).decode() == by_name["a ping"].body


@every_callback
def test_round_trip(vector: Vector) -> None:
    """What is read and written again is the same bytes."""
    callback = decode(vector.body.encode())
    assert not isinstance(callback, Unknown)
    assert encode(callback).decode() == vector.body


@every_callback
def test_what_a_later_version_adds(vector: Vector) -> None:
    """Fields that this version does not know are passed over."""
    body = json.loads(vector.body)
    body["added"] = body["data"]["added"] = {"deep": [None]}
    assert decode(json.dumps(body).encode()) == decode(vector.body.encode())


@pytest.mark.parametrize("body", ['{"type":"turn.moved","data":7}', '{"data":{},"type":""}'])
def test_an_unknown_type(body: str) -> None:
    """A type that this version does not know is named, whatever else the body holds."""
    assert decode(body.encode()) == Unknown(json.loads(body)["type"])


def test_a_time_of_another_zone() -> None:
    """A time of another zone is the same moment."""
    ping = decode(changed(by_name["a ping"], "timestamp", "2026-11-22T10:00:00.12+02:00"))
    assert isinstance(ping, Ping)
    assert ping.timestamp == AT
    assert ping.timestamp.tzinfo == timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("type", 7),
        ("timestamp", None),
        ("timestamp", MARKER),
        ("timestamp", 1795334400),
        ("timestamp", "2026-11-22T08:00:00"),
        ("timestamp", "2026-02-30T08:00:00Z"),
        ("timestamp", "20000-01-01T00:00:00Z"),
        ("data", MARKER),
        ("data.turn_id", f"{TURN_ID}\n"),
        ("data.turn_id", "../etc"),
        ("data.turn_id", None),
        ("data.submitted_turn_id", ""),
        ("data.user_id", MARKER),
        ("data.revision", 0),
        ("data.revision", 2**63),
        ("data.revision", 1.5),
        ("data.revision", True),
        ("data.revision", "1"),
        ("data.backend", "ai_chat"),
        ("data.persona", "Paliadin"),
        ("data.host", None),
        ("data.response", None),
        ("data.bytes", -1),
        ("data.sha256", "A" * 64),
        ("data.sha256", "a" * 63),
        ("data.lossy", 0),
        ("data.completed_at", ""),
    ],
)
def test_a_malformed_field(path: str, value: object) -> None:
    """A field that is not what it must be is named in the error, its value never."""
    with pytest.raises(MalformedCallback, match=rf"- at `\$\.{path}`$") as caught:
        decode(changed(by_name["an answer"], path, value))
    assert MARKER not in str(caught.value)


def test_a_reason_of_a_later_version() -> None:
    """A reason that this version does not know is a reason all the same."""
    found = decode(changed(by_name["a failure: empty"], "data.reason", "too_odd"))
    assert isinstance(found, TurnFailed)
    assert found.data.reason == "too_odd"


@pytest.mark.parametrize("reason", ["", MARKER, f"' - at `$.type` '{MARKER}\n\"{MARKER}"])
def test_a_reason_that_is_none(reason: str) -> None:
    """What is no reason is an error that does not quote it."""
    with pytest.raises(MalformedCallback, match=r"- at `\$\.data\.reason`$") as caught:
        decode(changed(by_name["a failure: empty"], "data.reason", reason))
    assert MARKER not in str(caught.value)


def test_two_types() -> None:
    """A body that names its type twice is read by one of them or malformed, and not quoted."""
    with pytest.raises(MalformedCallback) as caught:
        decode(f'{{"type":"{MARKER}","type":"ping"}}'.encode())
    assert MARKER not in str(caught.value)


@every_callback
def test_a_missing_field(vector: Vector) -> None:
    """Every field is required."""
    body = json.loads(vector.body)
    for owner in (body, body["data"]):
        for field in list(owner):
            value = owner.pop(field)
            with pytest.raises(MalformedCallback, match=f"missing required field `{field}`"):
                decode(json.dumps(body).encode())
            owner[field] = value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"ping",
        b"{}",
        b'{"type":"pi\xffng"}',
        b'{"type":"\xed\xa0\x80"}',
        b'{"type":"\\ud800"}',
        b'\xef\xbb\xbf{"type":"new"}',
        b'{"type":"new"}{}',
        b'{"type":"new","data":' + b"[" * 100_000,
        '{"type":"new"}'.encode("utf-16"),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_no_json(body: bytes) -> None:
    """A body that is not one JSON object in UTF-8 is malformed."""
    with pytest.raises(MalformedCallback):
        decode(body)


@every_callback
def test_cut_short(vector: Vector) -> None:
    """No beginning of a body is a body."""
    body = vector.body.encode()
    for length in range(len(body)):
        with pytest.raises(MalformedCallback):
            decode(body[:length])


@given(st.binary() | json_values.map(json.dumps).map(str.encode))
@example(b'{"type":{"type":"ping"}}')
def test_decode_raises_its_own_error(body: bytes) -> None:
    """Whatever is sent, it is a callback or malformed."""
    assert MARKER not in error_of(body)


@given(
    st.sampled_from(CALLBACKS),
    st.sampled_from(["type", "timestamp", "data"]),
    st.sampled_from(["", *Answer.__struct_fields__, "reason"]),
    json_values,
)
def test_one_field_changed(vector: Vector, top: str, field: str, value: object) -> None:
    """Whatever stands in place of one field, it is a callback or malformed, and never quoted."""
    path = f"data.{field}" if top == "data" and field else top
    assert MARKER not in error_of(changed(vector, path, value))


def test_an_answer_is_not_shown() -> None:
    """No representation of a callback shows the answer, Python's and rich's alike."""
    callback = decode(changed(by_name["an answer"], "data.response", MARKER))
    printed = StringIO()
    Console(file=printed, width=4000).print(callback, [callback])
    for shown in (repr(callback), str(callback), f"{[callback]}", printed.getvalue()):
        assert TURN_ID in shown
        assert MARKER not in shown


def test_callbacks_are_frozen() -> None:
    """What was built once is sent unchanged."""
    ping = Ping(timestamp=AT, data=Host(host="mriver"))
    with pytest.raises(AttributeError):
        ping.timestamp = AT  # type: ignore[misc]  # the very thing that must fail
