from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from support.vectors import ACCEPTED, CALLBACKS, Request, Vector

from paliadin_contract.callback import decode
from paliadin_contract.errors import MalformedCallback
from paliadin_contract.schema import callback_schema, main

DOCUMENT = Path(__file__).parents[2] / "docs" / "callback.schema.json"


def is_rfc3339(value: object) -> bool:
    try:
        return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


formats = FormatChecker(())
formats.checks("date-time")(is_rfc3339)
VALIDATOR = Draft202012Validator(json.loads(DOCUMENT.read_text()), format_checker=formats)


def is_decoded(body: bytes) -> bool:
    try:
        decode(body)
    except MalformedCallback:
        return False
    return True


def test_the_document_is_made_from_the_types(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """It is what the module prints, and a schema of the version that it names."""
    main()
    assert DOCUMENT.read_bytes() == capsysbinary.readouterr().out
    assert json.loads(DOCUMENT.read_text()) == callback_schema()
    assert Draft202012Validator.META_SCHEMA["$id"] == callback_schema()["$schema"]
    Draft202012Validator.check_schema(callback_schema())


@pytest.mark.parametrize("vector", [*CALLBACKS, *ACCEPTED], ids=lambda v: v.name)
def test_every_callback_is_valid(vector: Vector | Request) -> None:
    """Each that a sender makes, and each that a receiver accepts."""
    VALIDATOR.validate(json.loads(vector.body))


VALUES: list[Any] = [
    None, True, -1, 0, 1, 7.5, "", "a", "x" * 64, "x" * 65, "../a", "a_b", "-a", "A", "f" * 64,
    "2026-11-22T08:00:00Z", "2026-11-22T08:00:00", "tomorrow", [], {}, {"host": "mriver"},
]  # fmt: skip
BY_TYPE = {json.loads(vector.body)["type"]: vector for vector in CALLBACKS}
FIELDS = [
    (kind, path)
    for kind, vector in sorted(BY_TYPE.items())
    for path in [
        *((name,) for name in json.loads(vector.body)),
        *(("data", name) for name in json.loads(vector.body)["data"]),
    ]
]


def owner(body: Any, path: tuple[str, ...]) -> Any:  # noqa: ANN401 - JSON of any shape
    return body["data"] if len(path) > 1 else body


@pytest.mark.parametrize(("kind", "path"), FIELDS)
def test_it_wants_what_the_types_want(kind: str, path: tuple[str, ...]) -> None:
    """Of each field any value, and none, is valid exactly where it is decoded."""
    body = json.loads(BY_TYPE[kind].body)
    tried = []
    for value in VALUES:
        owner(body, path)[path[-1]] = value
        tried.append(json.dumps(body).encode())
    del owner(body, path)[path[-1]]
    tried.append(json.dumps(body).encode())
    decoded = [is_decoded(each) for each in tried]
    assert [VALIDATOR.is_valid(json.loads(each)) for each in tried] == decoded
    assert not decoded[-1]


@pytest.mark.parametrize("kind", BY_TYPE)
def test_what_is_not_known_yet_is_valid(kind: str) -> None:
    """Fields of a later version, and its types, whatever they hold."""
    body = json.loads(BY_TYPE[kind].body)
    body["later"] = body["data"]["later"] = {"any": ["thing"]}
    assert VALIDATOR.is_valid(body)
    assert is_decoded(json.dumps(body).encode())
    assert VALIDATOR.is_valid({"type": f"{kind}.later"})
    assert VALIDATOR.is_valid({"type": f"{kind}.later", "data": 7})


@pytest.mark.parametrize("body", ["null", "[]", "7", '"ping"', "{}"])
def test_no_callback_at_all(body: str) -> None:
    """What names no type is none."""
    assert not VALIDATOR.is_valid(json.loads(body))
