"""What `top` shows."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from paliadin_sidecar.operator.glance import Glance
from paliadin_sidecar.operator.language import Language
from paliadin_sidecar.operator.top_view import line, screen
from paliadin_sidecar.outbox.records import State

EN, DE = Language("en"), Language("de")
#: 2026-11-22, 08:00 UTC.
NOW = 1_795_334_400.0
ID = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11"


def turn(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - a row's
    about = {"turn_id": ID, "backend": "aichat", "persona": "paliadin", "user": "5f3c0000"}
    return about | fields


ASKED = turn(seen_at=NOW - 42)
UNDELIVERED = turn(revision=2, attempts=3, accepted_at=NOW - 600, next_attempt_at=NOW + 9)
SETTLED = turn(
    revision=1, state="delivered", attempts=1, bytes=4096, accepted_at=NOW - 60,
    settled_at=NOW - 59.5, agent_ms=61_000, settle_ms=250,
)  # fmt: skip
ROOT = {"path": "/tmp/aichat/paliadin", "state": "armed", "turn_files": 7, "foreign_files": 1}
GLANCE = Glance(
    at=NOW, alive=True, pending=1, oldest_at=NOW - 600, paused_at=NOW - 30,
    paused_for="status_503", roots=[ROOT], asked=[ASKED], undelivered=[UNDELIVERED],
    settled=[SETTLED],
)  # fmt: skip


def drawn(glance: Glance, language: Language, width: int = 80, height: int = 24) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=height, force_terminal=False)
    console.print(screen(glance, language, width, height))
    return stream.getvalue().splitlines()


def test_narrow() -> None:
    """All that is asked for, in 80 columns."""
    text = "\n".join(drawn(GLANCE, EN))
    assert "paliadin-sidecar  running   undelivered 1 (oldest 10 min)   under way 2\n" in text
    assert "receiver paused for 30 s (503)   q quits\n" in text
    assert "/tmp/aichat/paliadin  watched\n" in text
    when = datetime.fromtimestamp(NOW - 59.5).astimezone().strftime("%H:%M:%S")
    rows = [row.split() for row in text.splitlines() if row.startswith(ID[:8])]
    assert rows == [
        [ID, "aichat", "asked", "42", "s"],
        [ID, "(2)", "aichat", "pending", "10", "min", "3"],
        [f"{ID[:17]}…", "aichat", "delivered", when, "61", "s", "750", "ms"],
    ]


def test_more_than_are_listed() -> None:
    """Both lines that count them say the same."""
    lines = drawn(replace(GLANCE, pending=1000), EN)
    assert lines[0].endswith("under way 1001")
    assert "under way: 1001" in lines


def test_a_long_path_leaves_room_for_what_is_said_of_it() -> None:
    """The path is cut, and not the state."""
    root = ROOT | {"path": "/tmp/" + "x" * 90, "state": "unreadable"}
    for language, word in ((EN, "unreadable"), (DE, "nicht lesbar")):
        lines = drawn(replace(GLANCE, roots=[root]), language)
        assert any(row.startswith("/tmp/xxx") and word in row for row in lines)


def test_wide() -> None:
    """Whole ids, and what else is known."""
    text = "\n".join(drawn(GLANCE, DE, 200))
    assert "läuft   unzugestellt 1 (älteste 10 min)   unterwegs 2" in text
    assert "Empfänger pausiert seit 30 s (503)" in text
    assert text.count(ID) == 3
    assert f"{ID} (2)" in text
    assert text.count("5f3c0000") == 3
    assert "4096" in text
    assert "aichat/paliadin" in text


@pytest.mark.parametrize("language", [EN, DE])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (80, 8), (40, 10), (120, 5)])
def test_it_fits(language: Language, width: int, height: int) -> None:
    """However much there is, no line is wider and, where there is room for one each, none more."""
    much = replace(
        GLANCE, problems=("outbox: there is no room on its disk " * 9,), roots=[ROOT, ROOT],
        asked=[ASKED] * 90, undelivered=[UNDELIVERED] * 90, settled=[SETTLED] * 90,
    )  # fmt: skip
    lines = drawn(much, language, width, height)
    assert max(map(cell_len, lines)) <= width
    assert len(lines) <= max(height, 13)


@pytest.mark.parametrize("language", [EN, DE])
def test_each_state_has_a_word(language: Language) -> None:
    """In either language, of a turn and of a root."""
    for state in set(State) - {State.PENDING, State.SUPERSEDED, State.HISTORY}:
        assert drawn(replace(GLANCE, settled=[SETTLED | {"state": state.value}]), language)
    for root in ("armed", "missing", "untrusted", "unreadable"):
        assert drawn(replace(GLANCE, roots=[ROOT | {"state": root}]), language)
    assert drawn(Glance(at=NOW, alive=False), language)


def test_what_is_not_known_is_left_out() -> None:
    """A turn without a token has no time of its agent, one that was given up none of delivery."""
    row = SETTLED | {"agent_ms": None, "state": "dead", "user": None}
    assert drawn(replace(GLANCE, settled=[row]), EN)[-1].split()[1:4] == [
        "aichat", "given", "up",
    ]  # fmt: skip
    assert "ms" not in drawn(replace(GLANCE, settled=[row]), EN)[-1]


def test_hostile_values() -> None:
    """Nothing steers the terminal, and nothing is markup."""
    path = "/tmp/\x1b[2J[red]x[/red]\n"
    glance = replace(
        GLANCE,
        problems=("\x1b]0;x\x07[bold]",),
        paused_for="\x1b[31m",
        roots=[ROOT | {"path": path}],
    )
    text = "\n".join(drawn(glance, EN, 200))
    assert "\x1b" not in text + line(glance, EN)
    assert "[red]x[/red]" in text
    assert "[bold]" in text


def test_line() -> None:
    """In a pipe each glance is one line."""
    text = line(replace(GLANCE, problems=("a\nb",)), EN)
    assert text.partition("  ")[2] == (
        "running  undelivered 1 (oldest 10 min)  under way 2  receiver paused for 30 s (503)  a?b"
    )
    idle = line(Glance(at=NOW, alive=False), DE)
    assert idle.endswith("läuft nicht  unzugestellt 0  unterwegs 0  Empfänger nimmt an")
