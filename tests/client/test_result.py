"""How a submit ended, as it is written down for others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliadin_client import errors
from paliadin_client.backend import Reply
from paliadin_client.result import Response, decode, encode
from paliadin_contract.trailer import Trailer

_words = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.builds(
        Response,
        reply=st.builds(
            Reply,
            text=_words,
            trailer=st.none() | st.builds(Trailer, used_tools=st.tuples(_words)),
            whole=st.booleans(),
            turn_id=st.none() | _words,
            conversation_id=st.none() | _words,
            pane_spawned=st.just(value=False),
            duration_ms=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        ),
        host=_words,
        health_ms=st.floats(0, 1e9),
        answer_ms=st.floats(0, 1e9),
    )
)
def test_responses(response: Response) -> None:
    """A response is read as it was written."""
    assert decode(encode(response)) == response


@pytest.mark.parametrize(
    "error",
    [
        errors.BadRequest("HTTP 400", detail="marker"),
        errors.ShimError("HTTP 500", detail="marker", retryable=True),
        errors.Unreachable("refused", detail="marker", retryable=False, remedy=""),
        errors.BackendTimeout("ssh ended with 124", detail="marker"),
        errors.AuthFailed("HTTP 401", detail="marker"),
        errors.TurnTimeout("t1", 5, queued_s=4.5),
        errors.TurnTimeout("t1", 5, queued_s=5, unsent="it was queued"),
    ],
    ids=lambda error: f"{error}",
)
def test_failures(error: errors.PaliadinError) -> None:
    """A failure is read as it was written, without what a backend said."""
    written = encode(error)
    read = decode(written)
    assert isinstance(read, errors.PaliadinError)
    for name in ("__class__", "args", "code", "retryable", "remedy", "exit_code", "__notes__"):
        assert getattr(read, name, None) == getattr(error, name, None)
    assert b"marker" not in written
    assert read.detail == ""


def test_failures_of_more_than_a_reason() -> None:
    """A failure that knows more is read as what it is a kind of."""
    read = decode(encode(errors.MessageTooLong(200_000, 131_000)))
    assert type(read) is errors.BadRequest
    assert "200000" in str(read)


@pytest.mark.parametrize(
    "left", [None, b"", b"\xff", b"{}", b'{"type":"later","x":1}', b'{"type":"response"}', b"[1"]
)
def test_other_versions(left: bytes | None) -> None:
    """What is not known here counts as nothing."""
    assert decode(left) is None
