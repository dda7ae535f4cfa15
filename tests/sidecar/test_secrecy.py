"""No answer text, token or secret in any line, event row, error or command line."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import signal
import sqlite3
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner
from support.receiver import Reply, Request
from support.sidecar import TRAILER
from support.tokens import unsigned_token
from support.waiting import until

from paliadin_sidecar.operator.cli import main
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    import pytest
    from support.receiver import Receiver
    from support.sidecar import Sidecar

TEXT = "MARKER-IN-THE-TEXT"
TOKEN = "MARKER-IN-THE-TOKEN"
KEY = b"MARKER-IN-THE-SECRET-KEY-" * 2
COMMANDS = (
    ["status"], ["status", "--json"], ["turns"], ["turns", "--json"], ["check", "--ping"],
    ["show", "t0"], ["show", "t0", "--json"], ["replay", "t1"], ["replay", "--since", "1d"],
)  # fmt: skip


class Odd:
    """Every kind of answer, with an echo of what it got in its body.

    Each turn meets one of them, and is well received then: all are met by some turn.
    """

    hows = (
        *((status, "answer") for status in (500, 400, 429, 404, 301)),
        *((200, how) for how in ("reset", "hang", "then_reset", "endless", "answer")),
    )

    def __init__(self) -> None:
        self.tries: Counter[str] = Counter()

    def __call__(self, request: Request) -> Reply:
        if request.is_ping:
            return Reply()
        turn_id = request.json["data"]["turn_id"]
        self.tries[turn_id] += 1
        first = int(turn_id[1:]) if turn_id[1:].isdecimal() else 0
        status, how = self.hows[(first + self.tries[turn_id]) % len(self.hows)]
        if self.tries[turn_id] > 1:
            status, how = 200, "answer"
        return Reply(status, {"x-echo": TEXT, "retry-after": TEXT}, request.body[:3000], how)


def _ended(host: Sidecar, turn_id: str) -> bool:
    ends = ("delivery.delivered", "delivery.dead")
    return any(host.events(name, turn_id=turn_id) for name in ends)


def _outputs(host: Sidecar, *args: str) -> tuple[str, str]:
    done = host.command(*args)
    return done.stdout, done.stderr


def test_nothing_secret_leaves_by_any_way_but_the_callback(
    host: Sidecar, receiver: Receiver
) -> None:
    """Markers planted in text, token and secret, every path driven, everything searched."""
    secret = "whsec_" + base64.b64encode(KEY).decode()
    host.secret = host.environ["PALIADIN_CALLBACK_SECRET"] = secret
    host.environ |= {"PALIADIN_LOG_LEVEL": "debug", "PALIADIN_CALLBACK_TIMEOUT_S": "0.5"}
    host.environ["PALIADIN_MAX_BYTES"] = "5000"
    host.environ["PALIADIN_REFUSED_S"] = "0"

    receiver.behaviour = Odd()
    host.start()
    token = unsigned_token(jti="turn-1", sub="user-1", note=TOKEN)
    for n in range(12):
        (host.aichat / f"t{n}.jwt").write_text(token)
        host.answer(f"t{n}", f"{TEXT} {n}")
    (host.aichat / "odd.jwt").write_text(f"{TOKEN}.{TOKEN}.{TOKEN}")
    (host.aichat / "big.txt").write_text(TEXT * 1000 + TRAILER)
    (host.aichat / "link.txt").symlink_to(f"/{TEXT}")
    (host.aichat / "bytes.txt").write_bytes(b"\xff" + TEXT.encode() + TRAILER.encode())
    for n in range(12):
        until(f"the end of t{n}", partial(_ended, host, f"t{n}"))
    host.answer("t0", f"{TEXT} again")
    host.wait_event("turn.revised", turn_id="t0")
    commands = [part for args in COMMANDS for part in _outputs(host, *args)]
    assert host.process is not None
    command_line = Path(f"/proc/{host.process.pid}/cmdline").read_bytes()
    names = b"".join(p.read_bytes() for p in Path(f"/proc/{host.process.pid}/task").glob("*/comm"))
    host.kill()
    host.start()
    shutil.rmtree(host.legacy)
    host.wait_event("root.missing", backend="legacy")
    host.stop(signal.SIGINT)

    # And something that nobody foresaw: a body in the outbox whose type is wrong.
    with sqlite3.connect(host.state / "outbox.db") as db:
        db.execute("UPDATE body SET bytes = ?", (f"{TEXT}\udcff".encode("utf-8", "surrogatepass"),))
        db.execute("UPDATE delivery SET state = 'pending'")
        db.execute("UPDATE turn SET user_id = ?", (json.dumps({"x": TOKEN}).encode(),))
    db.close()
    host.start(wait=False)
    until("its end or its lines", lambda: host.process and (host.process.poll() is not None or
          host.events("delivery.attempted")))  # fmt: skip
    host.close()
    with sqlite3.connect(host.state / "outbox.db") as db:
        rows = repr(db.execute("SELECT * FROM event").fetchall())
    db.close()

    seen = [host.output.decode(), *commands, command_line.decode(), names.decode(), rows]
    key_forms = [KEY.decode(), secret, secret.removeprefix("whsec_")]
    for marker in (TEXT, TOKEN, token, token.split(".")[1], *key_forms):
        assert not any(marker in text for text in seen), marker
    # The test would prove nothing if these were not there to be found.
    assert any(TEXT.encode() in r.body for r in receiver.requests)
    assert host.events("delivery.refused")
    assert host.events("delivery.attempted", error="timeout")
    assert host.events("delivery.attempted", error="reset")


def test_an_error_that_nobody_foresaw_in_the_environment_tells_its_place_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its text may be of what was being read."""

    def fail(_: object) -> Settings:
        raise ValueError(KEY.decode())

    monkeypatch.setattr(Settings, "from_environment", fail)
    done = CliRunner().invoke(main, ["run"])
    assert done.exit_code == 1
    assert json.loads(done.stderr)["event"] == "service.crashed"
    assert KEY.decode() not in done.output + repr(done.exception)


def test_what_is_kept_is_readable_by_its_owner_alone(host: Sidecar, receiver: Receiver) -> None:
    """State directory, outbox, its log and the lock: 0700 and 0600."""
    host.start()
    host.answer("t1")
    receiver.wait("t1")
    assert host.state.stat().st_mode & 0o777 == 0o700
    files = list(host.state.iterdir())
    assert {f.name for f in files} >= {"outbox.db", "outbox.db-wal", "sidecar.lock"}
    assert [f.name for f in files if f.stat().st_mode & 0o077] == []


def test_the_journal_confirms_no_answer(host: Sidecar, receiver: Receiver) -> None:
    """Not by the receiver's SHA-256; contents are still distinguished, also over a restart."""
    host.start()
    data = [host.answer("t1", "Ja.")]
    host.wait_event("delivery.delivered", turn_id="t1")
    host.kill()
    host.start()
    data.append(host.answer("t1", "Nein."))
    host.wait_event("delivery.delivered", turn_id="t1", revision=2)
    host.kill()
    host.start()
    data.append(host.answer("t1", "Ja."))
    host.wait_event("delivery.delivered", turn_id="t1", revision=3)
    output = host.output.decode() + host.command("log").stdout
    for one in data:
        digest = hashlib.sha256(one).hexdigest()
        assert not any(digest[i : i + 12] in output for i in range(53))
        assert digest in receiver.requests[data.index(one)].body.decode()
    delivered = {e["revision"]: e for e in host.events("delivery.delivered")}
    first, second, third = (delivered[n]["content"] for n in (1, 2, 3))
    assert first == third != second
    for request, revision in zip(receiver.turns, (1, 2, 3), strict=False):
        assert request.id.startswith(delivered[revision]["webhook_id"] + "_")
    assert delivered[1]["content"] in host.command("log", "t1").stdout
