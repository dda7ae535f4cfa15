"""Each answer has its likely cause and its cure."""

from __future__ import annotations

import re
from typing import Any

import pytest

from paliadin_sidecar.operator.diagnosis import (
    _ERRORS,
    _STATUSES,
    _TLS,
    answer_name,
    failing_problems,
    likely_cause,
    pause_problem,
    receiver_cause,
    root_problems,
    waiting_problems,
)
from paliadin_sidecar.operator.terminal import local_time

#: 2026-11-22, 08:00 UTC.
NOW = 1_795_334_400.0


@pytest.mark.parametrize(
    ("status", "error", "detail", "says"),
    [
        (413, None, None, "client_max_body_size"),
        (401, None, None, "clocks"),
        (401, None, None, "PALIADIN_CALLBACK_SECRET"),
        (301, None, None, "redirects are not followed"),
        (308, None, None, "redirects are not followed"),
        (500, None, None, "the receiver failed"),
        (502, None, None, "a proxy is up and the receiver behind it is not"),
        (418, None, None, "receiver's own log"),
        (599, None, None, "receiver's own log"),
        (None, "dns", None, "does not resolve"),
        (None, "early", None, "before it had the whole request"),
        (None, "tls", None, "check --ping says why"),
        (None, "tls", "expired", "has expired"),
        (None, "tls", "wrong_name", "for another name"),
        (None, "tls", "unknown_authority", "PALIADIN_CALLBACK_CA_FILE"),
        (None, "tls", "no_tls", "plain HTTP"),
        (None, "tls", "sslv3_alert_handshake_failure", "(sslv3_alert_handshake_failure)"),
        (None, "ValueError", None, "receiver's own log"),
        (None, None, None, "receiver's own log"),
    ],
)
def test_the_likely_cause(
    status: int | None, error: str | None, detail: str | None, says: str
) -> None:
    """Also of what nobody foresaw, something is said that leads on."""
    assert says in likely_cause(status, error, detail)


def test_only_an_unknown_authority_is_mended_by_naming_one() -> None:
    """Whoever has a certificate for another name, or an old one, is not sent after authorities."""
    for detail in ("expired", "not_yet_valid", "wrong_name", "no_tls"):
        assert "PALIADIN_CALLBACK_CA_FILE" not in likely_cause(None, "tls", detail)


def test_an_answer_s_name() -> None:
    """A word or two."""
    assert answer_name(413, None) == "413"
    assert answer_name(None, "tls", "expired") == "tls (expired)"
    assert answer_name(None, "timeout") == "timeout"
    assert answer_name(None, None) == ""


def row(state: str, n: int, status: int | None = None, **more: str) -> dict[str, object]:
    return {"state": state, "n": n, "status": status, "error": None, "detail": None, **more}


def test_who_does_not_get_through_is_told_with_the_cause() -> None:
    """One sentence for each answer; a replay is advised only after the mending."""
    rows = [row("pending", 2, 413), row("pending", 9, error="connect"), row("dead", 3, 400)]
    first, second = failing_problems(rows, dead=3, paused_for="connect")
    assert first.text.startswith(
        "2 undelivered after several attempts, last answer 413: the body is"
    )
    assert second.text.startswith("3 given up within a day (3 with 400: ")
    assert second.text.index("Mend that first") < second.text.index(
        "paliadin-sidecar replay --dead"
    )
    assert first.cause == "2 undelivered, for the receiver (413): the body is larger than it takes"
    assert second.cause == (
        "3 given up within a day, by the receiver (400): it, or a proxy before it, does not "
        "understand the request"
    )
    assert failing_problems([row("pending", 1, 301)], dead=0, paused_for="status_301") == []
    assert "turns --state dead" in failing_problems([], dead=1, paused_for=None)[0].text


def test_a_pause_is_told_with_the_cause() -> None:
    """By what it is recorded as, and by what the attempts knew beyond that."""
    cause, said = pause_problem("status_401", NOW, [])
    assert cause == "turns wait for the receiver (401): it does not accept the signature"
    assert said.startswith(f"the receiver is not well since {local_time(NOW)} (401), and ")
    assert "clocks" in said
    assert (
        "(tls (expired))"
        in pause_problem("tls", NOW, [row("pending", 1, error="tls", detail="expired")]).text
    )
    assert "receiver's own log" in pause_problem("status_odd", NOW, []).text


@pytest.mark.parametrize("status", [301, 307, 418, 599, *_STATUSES])
def test_each_status_has_its_cause_in_one_sentence(status: int) -> None:
    """What mends it stands elsewhere."""
    sentence = receiver_cause(answer_name(status, None), likely_cause(status, None))
    assert sentence.startswith(f"the receiver ({status})")
    assert is_one_sentence(sentence)
    assert sentence.endswith(")") == (status in {418, 599})


@pytest.mark.parametrize(
    ("error", "detail"), [*((error, None) for error in _ERRORS), *(("tls", one) for one in _TLS)]
)
def test_each_error_has_its_cause_in_one_sentence(error: str, detail: str | None) -> None:
    """The same where there was no status."""
    sentence = receiver_cause(answer_name(None, error, detail), likely_cause(None, error, detail))
    assert is_one_sentence(sentence)
    assert "): " in sentence


def is_one_sentence(text: str) -> bool:
    """With a cause, and no question, advice or second sentence."""
    parts = text.split(": ")
    return len(parts) <= 2 and not re.search(r"[?;]|\. |see PALIADIN|\bsee \w+'s", text)


def test_a_directory_s_problem() -> None:
    """The cause without what mends it; one that is missing is wrong after a while."""
    root = {"path": "/srv/a", "state": "untrusted", "since": NOW}
    root |= {"why": "/srv is writable by others: chmod o-w /srv"}
    (problem,) = root_problems([root], 0.0)
    assert problem.cause == "no answers are taken from /srv/a, since /srv is writable by others"
    assert f"chmod o-w /srv (since {local_time(NOW)})" in problem.text
    missing = {"path": "/srv/a", "state": "missing", "since": 5.0, "why": "/srv/a does not exist"}
    assert root_problems([missing], 5.0) == []
    assert len(root_problems([missing], 6.0)) == 1


def test_files_that_wait() -> None:
    """Each is named with why, since when and what to do; those beyond the list are counted."""
    waits = {"turn_id": "t", "why": "open_for_writing", "detail": "", "since": 12.0}
    unread = {"turn_id": "u", "why": "unreadable", "detail": "EACCES", "since": 13.0}
    roots: list[dict[str, Any]] = [
        {"path": "/srv/a", "waiting": [waits, unread], "waiting_files": 5},
        {"path": "/srv/b", "waiting": [], "waiting_files": 0},
    ]
    problems = waiting_problems(roots)
    first, second = map(local_time, (12.0, 13.0))
    assert [problem.cause for problem in problems[:2]] == [
        "/srv/a/t.txt waits, since a process has it open for writing",
        "/srv/a/u.txt waits, since it cannot be opened (EACCES)",
    ]
    assert [problem.text for problem in problems] == [
        f"/srv/a/t.txt waits since {first}, a process has it open for writing: fuser -v names it",
        f"/srv/a/u.txt waits since {second}, it cannot be opened (EACCES): see its owner and mode",
        "3 more files wait in /srv/a",
    ]
