from __future__ import annotations

import re
from base64 import b64decode
from datetime import UTC, datetime
from email import message_from_string
from pathlib import Path

import pytest
from support.vectors import CALLBACKS

from paliadin_contract.callback import Answer, Failure, Host, Unknown, decode
from paliadin_contract.signature import Keys

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def test_the_worked_example() -> None:
    """The worked example is one of the vectors, and its signature is right."""
    given = dict(line.split("  ", 1) for line in blocks("text")[0].splitlines())
    facts = {name: value.strip() for name, value in given.items()}
    head, _, body = blocks("http")[0].removesuffix("\n").partition("\n\n")
    request = message_from_string(head.partition("\n")[2])

    assert bytes.fromhex(facts["key (hex)"]) == b64decode(facts["secret"].removeprefix("whsec_"))
    keys = Keys([facts["secret"]])
    now = datetime.fromtimestamp(int(facts["now"]), UTC)
    assert keys.verify(dict(request.items()), body.encode(), now) == CALLBACKS[0].id
    assert body == CALLBACKS[0].body
    assert request["content-length"] == str(len(body.encode()))
    start = f"{request['webhook-id']}.{request['webhook-timestamp']}.{body[:8]}"
    assert f"`{start}`" in DOCUMENT


def test_the_bodies() -> None:
    """Every body that is shown is one, and all types are shown."""
    types = set()
    for block in blocks("json"):
        callback = decode(block.encode())
        assert not isinstance(callback, Unknown)
        types.add(type(callback.data))
    assert types == {Answer, Failure, Host}


@pytest.mark.parametrize("shape", [Answer, Failure, Host])
def test_the_fields(shape: type[Answer | Failure | Host]) -> None:
    """Every field has a row in a table."""
    for field in shape.__struct_fields__:
        assert re.search(rf"^\| `{field}` \|", DOCUMENT, re.MULTILINE)
