"""What a receiver says when it refuses, heard by the real daemon."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest
from support.receiver import Reply, Request
from support.tokens import unsigned_token
from support.waiting import until

if TYPE_CHECKING:
    from support.receiver import Receiver
    from support.sidecar import Sidecar

USER = "5f3c0a7e-0000-4000-8000-000000000000"
LONG = "Die Frist endet am Montag, dem 1. März 2027, und nicht früher als an diesem Tag."


def said(host: Sidecar, turn_id: str) -> str | None:
    (turn,) = json.loads(host.typed("show", turn_id, "--json").stdout)
    found: str | None = turn["deliveries"][-1]["said"]
    return found


def heard(host: Sidecar, turn_id: str) -> str:
    until("what was said", lambda: said(host, turn_id))
    return said(host, turn_id) or ""


def refuse(host: Sidecar, receiver: Receiver, reply: Reply, turn_id: str = "t") -> None:
    """A turn that the receiver refuses like this."""

    def behaviour(request: Request) -> Reply:
        return Reply() if request.is_ping else reply

    receiver.behaviour = behaviour
    host.start()
    (host.aichat / f"{turn_id}.jwt").write_text(unsigned_token(jti="asked", sub=USER))
    host.answer(turn_id, LONG)
    host.wait_event("delivery.attempted", turn_id=turn_id)


def test_show_has_it_and_the_journal_has_not(host: Sidecar, receiver: Receiver) -> None:
    """Clean, and with no more of the user's id than everywhere; also after it was delivered."""
    text = f"no window\x1b[2J for {USER}\r\nplanted reason"
    refuse(host, receiver, Reply(422, {"content-type": "text/plain"}, text.encode()))
    assert heard(host, "t") == "no window [2J for 5f3c0a7e… planted reason"
    shown = "Revision 1 was refused with: no window [2J for 5f3c0a7e… planted reason"
    assert shown in host.typed("show", "t").stdout.splitlines()
    receiver.behaviour = lambda _: Reply()
    host.wait_event("delivery.delivered", turn_id="t")
    assert heard(host, "t").endswith("planted reason")
    host.stop()
    assert b"planted reason" not in host.output
    assert "planted reason" not in host.typed("log").stdout
    assert "planted reason" not in host.typed("export").stdout


@pytest.mark.parametrize("status", [400, 404, 413, 429])
def test_of_any_refusal(host: Sidecar, receiver: Receiver, status: int) -> None:
    """Also of one that is about the receiver."""
    refuse(host, receiver, Reply(status, {}, b"why not"))
    assert heard(host, "t") == "why not"


def test_an_echo_is_left_out(host: Sidecar, receiver: Receiver) -> None:
    """Of the answer, in whatever form, and no file has it beside its own body."""
    refuse(host, receiver, Reply(400, {}, json.dumps({"got": LONG}).encode()))
    assert heard(host, "t") == "(left out: it repeats what was sent)"


def test_what_is_compressed_is_left_out(host: Sidecar, receiver: Receiver) -> None:
    """It cannot be compared."""
    coded = gzip.compress(LONG.encode())
    refuse(host, receiver, Reply(400, {"content-encoding": "gzip"}, coded))
    assert heard(host, "t") == "(left out: it is compressed)"


def test_it_may_come_in_chunks(host: Sidecar, receiver: Receiver) -> None:
    """As a proxy sends it; and of an endless one the beginning."""
    chunks = b"5\r\nwhy n\r\n2\r\not\r\n0\r\n\r\n"
    headers = {"transfer-encoding": "chunked", "content-length": "0"}
    refuse(host, receiver, Reply(400, headers, chunks))
    assert heard(host, "t") == "why not"


def test_one_without_an_end_costs_no_place(host: Sidecar, receiver: Receiver) -> None:
    """Its beginning is kept, and others are sent meanwhile."""
    refuse(host, receiver, Reply(400, {}, b"", "endless"))
    assert heard(host, "t") == "x" * 1000
    receiver.behaviour = lambda _: Reply()
    host.wait_event("delivery.delivered", turn_id="t")


def test_one_that_is_slow_costs_no_place(host: Sidecar, receiver: Receiver) -> None:
    """The attempt is over with its head; what came within a second is kept."""
    refuse(host, receiver, Reply(400, {"content-length": "100"}, b"why", "answer"))
    attempted = host.wait_event("delivery.attempted", turn_id="t")
    assert attempted["duration_ms"] < 900
    assert heard(host, "t") == "why"


def test_one_that_says_nothing(host: Sidecar, receiver: Receiver) -> None:
    """There is nothing to show."""
    refuse(host, receiver, Reply(400))
    host.wait_event("delivery.refused", turn_id="t")
    assert said(host, "t") is None
    assert "was refused with" not in host.typed("show", "t").stdout
