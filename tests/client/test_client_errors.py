"""The two tables, and what an error shows of itself."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliadin_client import (
    AnswerUnusable,
    AuthFailed,
    BackendTimeout,
    BadRequest,
    BootstrapFailed,
    ConnectionLost,
    PaliadinError,
    ShimAuthFailed,
    ShimError,
    SubmitLost,
    Unreachable,
)
from paliadin_client.errors import error_from_exit, error_from_http
from paliadin_client.sshlog import Stage


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (500, "timeout", BackendTimeout),
        (502, "mriver_unreachable", Unreachable),
        (502, None, BackendTimeout),
        (504, "no such code", BackendTimeout),
        (408, None, BackendTimeout),
        (429, None, Unreachable),
        (403, ["timeout"], AuthFailed),
        (404, None, ShimError),
        (422, None, BadRequest),
        (599, None, ShimError),
    ],
)
def test_of_http(status: int, code: object, error: type[PaliadinError]) -> None:
    """The backend's code decides, else the status."""
    found = error_from_http(status, code, None, None)
    assert (type(found), str(found)) == (error, f"{error.code}: HTTP {status}")
    assert found.retryable == error.retryable


@pytest.mark.parametrize(
    ("status", "stage", "error"),
    [
        (2, Stage.AUTHENTICATED, BadRequest),
        (3, Stage.AUTHENTICATED, BootstrapFailed),
        (124, Stage.AUTHENTICATED, BackendTimeout),
        (1, Stage.AUTHENTICATED, ShimError),
        (127, Stage.UNKNOWN, ShimError),
        (255, Stage.REFUSED, ShimAuthFailed),
        (255, Stage.CONNECTING, Unreachable),
        (255, Stage.DROPPED, Unreachable),
        (255, Stage.AUTHENTICATED, ConnectionLost),
        (255, Stage.UNKNOWN, ConnectionLost),
        (-9, Stage.CONNECTING, Unreachable),
        (-9, Stage.AUTHENTICATED, ConnectionLost),
    ],
)
def test_of_exit(status: int, stage: Stage, error: type[PaliadinError]) -> None:
    """No connection and a lost one differ by how far ssh came; the shim's status says the rest."""
    found = error_from_exit(status, stage, "words of ssh", "words of the host")
    assert (type(found), str(found)) == (error, f"{error.code}: ssh ended with {status}")
    ours = {Unreachable: "words of ssh", ShimAuthFailed: "words of ssh"}
    both = "words of the host words of ssh" if error is ConnectionLost else "words of the host"
    assert found.detail == ours.get(type(found), both)


@given(
    st.integers(), st.none() | st.text(), st.none() | st.booleans() | st.text(), st.text(min_size=1)
)
def test_backends_words_stay_inside(
    status: int, code: object, retryable: object, words: str
) -> None:
    """Whatever a backend says stands in `detail` alone, short and without control characters."""
    error = error_from_http(status, code, retryable, words)
    assert str(error) == f"{error.code}: HTTP {status}"
    assert len(error.detail) <= 200
    assert all(ord(c) >= 32 and not 127 <= ord(c) < 160 for c in error.detail)


def test_each_says_what_to_do() -> None:
    """Each error that is raised has a remedy of its own or its kind's, and a traceback shows it."""
    for kind in (*PaliadinError.__subclasses__(), *SubmitLost.__subclasses__()):
        assert kind.remedy or kind is SubmitLost
    error = error_from_http(401, None, None, "")
    assert "AICHAT_TOKEN" in traceback.format_exception(error)[-1]


def test_submit_lost() -> None:
    """Only what may have reached the agent leaves the turn open."""
    assert {each.__name__ for each in SubmitLost.__subclasses__()} == {
        "BackendTimeout",
        "ConnectionLost",
    }


def test_unusable() -> None:
    """Asking again does not make a host's files trusted; it may well make a shorter answer."""
    assert not AnswerUnusable("t", "untrusted").retryable
    assert AnswerUnusable("t", "too_large").retryable
    assert str(AnswerUnusable("t", "empty")) == "answer_unusable: turn t: empty"
