"""Each answer has its likely cause and its cure."""

from __future__ import annotations

from typing import Any

import pytest

from paliadin_sidecar.operator.diagnosis import (
    answer_name,
    failing_problems,
    likely_cause,
    pause_problem,
    waiting_problems,
)


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
    assert first.startswith("2 undelivered after several attempts, last answer 413: the body is")
    assert second.startswith("3 given up within a day (3 with 400: ")
    assert second.index("Mend that first") < second.index("paliadin-sidecar replay --dead")
    assert failing_problems([row("pending", 1, 301)], dead=0, paused_for="status_301") == []
    assert "turns --state dead" in failing_problems([], dead=1, paused_for=None)[0]


def test_a_pause_is_told_with_the_cause() -> None:
    """By what it is recorded as, and by what the attempts knew beyond that."""
    said = pause_problem("status_401", "2026-11-22 08:00:00+01:00", [])
    assert said.startswith("the receiver is not well since 2026-11-22 08:00:00+01:00 (401), and ")
    assert "clocks" in said
    assert "(tls (expired))" in pause_problem(
        "tls", "x", [row("pending", 1, error="tls", detail="expired")]
    )
    assert "receiver's own log" in pause_problem("status_odd", "x", [])


def test_files_that_wait() -> None:
    """Each is named with why, since when and what to do; those beyond the list are counted."""
    waits = {"turn_id": "t", "why": "open_for_writing", "detail": "", "since": 12.0}
    unread = {"turn_id": "u", "why": "unreadable", "detail": "EACCES", "since": 13.0}
    roots: list[dict[str, Any]] = [
        {"path": "/srv/a", "waiting": [waits, unread], "waiting_files": 5},
        {"path": "/srv/b", "waiting": [], "waiting_files": 0},
    ]
    assert waiting_problems(roots, lambda at: f"<{at:.0f}>") == [
        "/srv/a/t.txt waits since <12>, a process has it open for writing: fuser -v names it",
        "/srv/a/u.txt waits since <13>, it cannot be opened (EACCES): see its owner and mode",
        "3 more files wait in /srv/a",
    ]
