"""What is sent in a rehearsal: good callbacks are as a sender makes them, and nobody's."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from paliadin_contract.callback import (
    Ping,
    TurnCompleted,
    TurnFailed,
    Unknown,
    decode,
)
from paliadin_contract.errors import MalformedCallback
from paliadin_sidecar.operator.rehearsal.callbacks import Author, Message

AUTHOR = Author("mriver", datetime(2026, 11, 22, 8, tzinfo=UTC))
GOOD = {
    "a ping": (AUTHOR.ping, Ping),
    "an answer": (AUTHOR.answer, TurnCompleted),
    "a failure": (AUTHOR.failure, TurnFailed),
    "an unknown type": (AUTHOR.later_type, Unknown),
    "unknown fields": (AUTHOR.later_fields, TurnCompleted),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_ones(name: str) -> None:
    """They are read by the types that read every other, and have ids of their own."""
    make, shape = GOOD[name]
    messages: list[Message] = [make(), make()]
    for message in messages:
        callback = decode(message.body)
        assert isinstance(callback, shape)
        assert re.fullmatch("[A-Za-z0-9_-]{1,200}", message.id)
        if not isinstance(callback, Unknown):
            assert callback.data.host == "rehearsal of mriver"
    assert messages[0].id != messages[1].id


def test_revisions_are_of_one_turn() -> None:
    """As of a file that was changed: one turn, and two ids."""
    first, second = (AUTHOR.answer("t1", revision=number) for number in (1, 2))
    assert first.id.startswith("aichat_rehearsal_t1_1_")
    assert second.id.startswith("aichat_rehearsal_t1_2_")


@pytest.mark.parametrize(
    "message",
    [AUTHOR.no_json(), AUTHOR.wrong_shape(response=7), AUTHOR.wrong_shape(turn_id="../x")],
    ids=["no JSON", "a wrong type", "a path"],
)
def test_bad_ones(message: Message) -> None:
    """They are no callbacks, whoever signed them."""
    with pytest.raises(MalformedCallback):
        decode(message.body)
