"""`turns`, `show` and `replay`; `log` has `test_commands_log`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.receiver import Receiver
    from support.sidecar import Sidecar


def test_turns_lists_what_was_accepted(delivered: Sidecar) -> None:
    """The newest first; by state, by age, so many; a table or JSON."""
    rows = json.loads(delivered.typed("turns", "--json").stdout)
    found = [(r["turn_id"], r["revision"], r["state"]) for r in rows]
    assert found[0] == ("t2", 2, "delivered")
    # These two were written at once: which was accepted first is chance.
    assert sorted(found[1:]) == [("t1", 1, "delivered"), ("t2", 1, "delivered")]
    assert all(r["accepted_at"].endswith("Z") and r["settled_at"] for r in rows)
    assert json.loads(delivered.typed("turns", "--state", "dead", "--json").stdout) == []
    assert len(json.loads(delivered.typed("turns", "--limit", "1", "--json").stdout)) == 1
    assert len(json.loads(delivered.typed("turns", "--since", "1h", "--json").stdout)) == 3
    assert json.loads(delivered.typed("turns", "--since", "2100-01-01", "--json").stdout) == []
    table = delivered.typed("turns").stdout
    assert "t1" in table
    assert "aichat/paliadin" in table


@pytest.mark.parametrize("since", ["yesterday", "5", "-1h", "9999999999d", ""])
def test_a_time_that_is_none_is_wrong_usage(host: Sidecar, since: str) -> None:
    """Exit 2, and what would be right."""
    done = host.typed("turns", "--since", since)
    assert done.returncode == 2
    assert "12h" in done.stderr


def test_show_tells_one_turn_s_story(delivered: Sidecar) -> None:
    """Every event in order, by its own id; exit 1 for one that is not known."""
    (turn,) = json.loads(delivered.typed("show", "t2", "--json").stdout)
    assert [e["event"] for e in turn["events"]] == [
        "turn.accepted", "delivery.attempted", "delivery.delivered",
        "turn.revised", "delivery.attempted", "delivery.delivered",
    ]  # fmt: skip
    assert [d["state"] for d in turn["deliveries"]] == ["delivered", "delivered"]
    assert "turn.revised" in delivered.typed("show", "t2").stdout
    unknown = delivered.typed("show", "t9")
    assert unknown.returncode == 1
    assert "No turn 't9' is known" in unknown.stderr


def test_replay_sends_the_same_id_and_body_again(delivered: Sidecar, receiver: Receiver) -> None:
    """The newest revision of a turn goes again, also while the daemon runs."""
    done = delivered.typed("replay", "t2")
    assert done.stdout == "1 will be sent again\n"
    again = receiver.wait("t2", 3)
    assert (again.id, again.body) == (receiver.of("t2")[1].id, receiver.of("t2")[1].body)
    delivered.wait_event("delivery.replayed", turn_id="t2", revision=2)
    assert delivered.typed("replay", "--since", "1h").stdout == "2 will be sent again\n"
    receiver.wait("t1", 2)


def test_replay_without_a_daemon_waits_for_one(delivered: Sidecar, receiver: Receiver) -> None:
    """It says so, and the next start sends."""
    delivered.stop()
    done = delivered.typed("replay", "t1")
    assert done.stdout == "1 will be sent again as soon as the daemon runs\n"
    delivered.start()
    receiver.wait("t1", 2)


def test_replay_says_what_it_cannot(delivered: Sidecar) -> None:
    """An unknown turn is exit 1, no choice or a mixed one is exit 2."""
    done = delivered.typed("replay", "t1", "t9")
    assert done.returncode == 1
    assert "t9: not known" in done.stderr
    twice = delivered.typed("replay", "t2", "t2")
    assert (twice.returncode, twice.stdout) == (0, "1 will be sent again\n")
    assert delivered.typed("replay").returncode == 2
    assert delivered.typed("replay", "t1", "--dead").returncode == 2
