from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import re
import subprocess
import sys
from contextlib import closing, suppress
from typing import Any

import pytest

from paliadin_contract.ids import webhook_id
from paliadin_sidecar.audit.catalogue import EVENTS, level_of
from paliadin_sidecar.audit.lines import Audit, redacted

#: 2026-11-22, 08:00 UTC.
NOW = 1_795_334_400.0


def printed(name: str, fields: dict[str, Any], *, level: str = "info", at: float = NOW) -> str:
    stream = io.StringIO()
    Audit(stream, level).line(name, at, fields)
    return stream.getvalue()


# --- lines ----------------------------------------------------------------------------------


def test_json() -> None:
    """Where no terminal is, an event is one line of JSON: when, how bad, what, and its fields."""
    assert printed(
        "turn.accepted", {"turn_id": "t", "bytes": 3, "sha256": None}, at=NOW + 0.12
    ) == (
        '{"timestamp":"2026-11-22T08:00:00.120Z","level":"info","event":"turn.accepted",'
        '"turn_id":"t","bytes":3,"sha256":null}\n'
    )


def test_one_line() -> None:
    """Whatever a value holds, an event stays one line that can be read back."""
    fields = {"why": 'a\nb\r\x1b[31m"\u2028ü', "roots": ["/x\ny"], "more": {"a": [1, None]}}
    line = printed("root.untrusted", fields)
    assert line.count("\n") == 1
    assert "\x1b" not in line
    assert {name: json.loads(line)[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", {"info", "warning", "error"}),
        ("info", {"info", "warning", "error"}),
        ("warning", {"warning", "error"}),
        ("error", {"error"}),
    ],
)
def test_level(level: str, shown: set[str]) -> None:
    """What is less than the level is not printed; an event of no known level is information."""
    for name in [*EVENTS, "new.event"]:
        its_level = level_of(name)
        line = printed(name, {}, level=level)
        assert bool(line) == (its_level in shown)
        assert not line or json.loads(line)["level"] == its_level


def test_rich_is_not_loaded() -> None:
    """A daemon on a terminal, and `log`, have no use for it; what has imports it all the same."""
    script = (
        "import io, sys; from paliadin_sidecar.audit.lines import Audit\n"
        "Audit(io.StringIO(), readable=True).line('x', 0, {}); assert 'rich' not in sys.modules\n"
        "import rich; Audit(io.StringIO(), readable=True); assert sys.modules['rich'] is rich"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_terminal() -> None:
    """On a terminal an event is a line for a person, and no value can steer the terminal."""
    master, slave = pty.openpty()
    with closing(os.fdopen(slave, "w")) as stream:
        fields = {"turn_id": "t", "bytes": 3, "why": "\x1b]0;x\x07", "roots": ["\x1b[2J"]}
        Audit(stream).line("root.untrusted", NOW, fields)
        output = os.read(master, 10_000).decode()
    os.close(master)
    assert output.count("\n") == 1
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)  # colours are ours
    assert "\x1b" not in plain
    assert "\x07" not in plain
    for part in ("2026-11-22T08:00:00.000Z", "warning", "root.untrusted", "turn_id=t", "bytes=3"):
        assert part in plain


def test_a_stream_that_is_gone() -> None:
    """A line that cannot be written is an error for whoever asked."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    try:
        with pytest.raises(BrokenPipeError):
            Audit(stream).line("service.started", NOW, {})
    finally:
        with suppress(BrokenPipeError):
            stream.close()


# --- what nobody can confirm ----------------------------------------------------------------


def shown(content: bytes, turn_id: str = "t", key: bytes = b"k" * 32) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    id_ = webhook_id("aichat", "paliadin", turn_id, 1, digest)
    about = {"backend": "aichat", "persona": "paliadin", "turn_id": turn_id}
    return redacted({**about, "sha256": digest, "webhook_id": id_, "superseded": [id_]}, key)


def test_a_small_answer_cannot_be_confirmed() -> None:
    """Of its SHA-256, in whatever field, no part is left that somebody could compute."""
    digest = hashlib.sha256(b"Ja.").hexdigest()
    assert not any(digest[i : i + 6] in str(shown(b"Ja.")) for i in range(59))
    assert "sha256" not in shown(b"Ja.")
    assert shown(b"Ja.")["webhook_id"] == "aichat_paliadin_t_1"
    assert shown(b"Ja.")["superseded"] == ["aichat_paliadin_t_1"]


def test_two_contents_are_told_apart() -> None:
    """Of one turn and one outbox; another turn's, or another outbox's, cannot be compared."""
    assert shown(b"Ja.") == shown(b"Ja.")
    assert len({
        shown(b"Ja.")["content"],
        shown(b"Nein.")["content"],
        shown(b"Ja.", "other")["content"],
        shown(b"Ja.", key=b"l" * 32)["content"],
    }) == 4  # fmt: skip


def test_what_tells_nothing_stays() -> None:
    """A failure has no content, and its id says the reason."""
    fields = {"sha256": None, "webhook_id": "aichat_paliadin_t_1_empty", "bytes": 3, "n": None}
    assert redacted(fields, b"k") == {k: fields[k] for k in ("webhook_id", "bytes", "n")}
