"""Every command of docs/operate.md, run as it stands there, only in other directories.

systemd is a stand-in that does nothing: the tests stop and start the daemon themselves.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.needs import need
from support.operate import block, blocks
from support.receiver import Receiver, Reply, verifying
from support.sidecar import COMMAND, Sidecar
from support.tokens import unsigned_token

from paliadin_sidecar.audit.metrics import Numbers
from paliadin_sidecar.outbox import queries
from paliadin_sidecar.outbox.database import FILENAME, Outbox

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
TURN = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11"
#: Blocks that are run by the tests here; those of the rotation are run under load, and nearly all
#: of them on a real systemd, by `make check-host`.
RUN = {
    "first", "upgrade", "back", "copies", "flip", "audit", "day", "replay", "erase", "restored",
    "second", "tmp", "damaged",
    "complete: bash", "complete: zsh", "complete: fish",
}  # fmt: skip
RUN_ELSEWHERE = {
    "rotate: both", "rotate: drop", "second: upgrade", "second: remove",
    "rehearse", "watch", "watch: mail", "watch: hook", "watch: drop-in", "watch: remove",
}  # fmt: skip


@pytest.fixture
def live(host: Sidecar, receiver: Receiver) -> Iterator[Sidecar]:
    """A daemon that delivered the turn of the document's examples."""
    receiver.behaviour = verifying(host.secret)
    host.start()
    host.answer(TURN)
    host.wait_event("delivery.delivered", turn_id=TURN)
    yield host
    host.close()


def run(host: Sidecar, name: str, code: int = 0) -> str:
    """Run a block, which ends with this exit code; what it printed."""
    folder = host.base / "root"
    stubs = host.base / "stubs"
    stubs.mkdir(exist_ok=True)
    log = host.base / "journal"
    log.write_text("Started paliadin-sidecar.service\n" + "\n".join(map(json.dumps, host.lines)))
    for stub, text in {
        "systemctl": "",
        "systemd-tmpfiles": "",
        "pip": "",
        "journalctl": f"cat {log}",
    }.items():
        (stubs / stub).write_text(f"#!/bin/sh\n{text}\n")
        (stubs / stub).chmod(0o755)
    elsewhere = {
        "/opt/paliadin/bin": str(stubs),
        "/var/lib/paliadin-sidecar": str(host.state),
        "/var/lib/paliadin-hugo": str(host.state),
    }
    # What a sed pattern names is the unit's text and stays.
    text = re.sub(
        rf"(?<![|\w])(/(?:etc|usr|tmp)/|{'|'.join(elsewhere)})",
        lambda found: elsewhere.get(found[0], f"{folder}{found[0]}"),
        block(name),
    )
    for made in re.findall(rf"{folder}/(?:etc|usr|tmp)[^\s\"']*/", text):
        Path(made).mkdir(parents=True, exist_ok=True)
    if name == "second":
        (folder / "etc/paliadin-hugo").rmdir()
        (folder / "etc/systemd/system/paliadin-sidecar.service").write_text(
            "EnvironmentFile=/etc/paliadin/sidecar.env\n"
            "LoadCredential=callback-secret:/etc/paliadin/callback-secret\n"
            "StateDirectory=paliadin-sidecar\n"
        )
    path = f"{stubs}:{Path(COMMAND).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=host.environ | {"PATH": path}, capture_output=True, text=True, check=False,
        cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_every_block_is_run() -> None:
    """A command that nobody ran is not in the document."""
    assert blocks().keys() == RUN | RUN_ELSEWHERE


def test_first(live: Sidecar) -> None:
    """Both commands are content with a good host."""
    assert "running" in run(live, "first")


def test_upgrade(live: Sidecar) -> None:
    """A copy of the outbox is left, from which the old version could go on; the unit is new."""
    run(live, "upgrade")
    unit = live.base / "root/etc/systemd/system/paliadin-sidecar.service"
    assert unit.read_text() == (REPOSITORY / "systemd/paliadin-sidecar.service").read_text()
    with Outbox(live.state.with_name("state.before") / FILENAME) as copy:
        assert queries.timelines(copy, TURN)


@pytest.mark.slow
def test_a_second_upgrade_and_the_way_back(live: Sidecar) -> None:
    """The copy is of the last upgrade, and is in no other copy; the way back brings it back."""
    run(live, "upgrade")
    live.answer("t2")
    live.wait_event("delivery.delivered", turn_id="t2")
    live.stop()
    run(live, "upgrade", code=1)  # nothing here starts the service
    live.start()
    live.answer("t3")
    live.wait_event("delivery.delivered", turn_id="t3")
    live.stop()
    run(live, "back", code=1)
    assert not (live.state / "state").exists()
    with Outbox(live.state / FILENAME) as outbox:
        assert queries.timelines(outbox, "t2")
        assert not queries.timelines(outbox, "t3")
    with Outbox(live.state.with_name("state.later") / FILENAME) as later:
        assert queries.timelines(later, "t3")
    run(live, "copies")
    assert sorted(path.name for path in live.base.glob("state*")) == ["state"]


def test_flip(live: Sidecar) -> None:
    """The list says which backend each answer came from."""
    live.answer("t2", root=live.legacy)
    live.wait_event("delivery.delivered", turn_id="t2")
    printed = run(live, "flip")
    assert "aichat/paliadin" in printed
    assert "legacy/paliadin" in printed


def test_audit(live: Sidecar) -> None:
    """The outbox and the journal say the same, whatever else stands in the journal."""
    need("jq")
    printed = run(live, "audit")
    assert printed.count('"delivery.delivered"') == 2
    assert f'"turn_id":"{TURN}"' in printed


def test_day(live: Sidecar) -> None:
    """Counts by event, and the slowest first."""
    need("jq")
    printed = run(live, "day")
    assert "1 delivery.delivered" in printed
    assert printed.rstrip().endswith(TURN)


def test_replay(live: Sidecar) -> None:
    """With nothing given up there is nothing to send."""
    assert run(live, "replay").endswith("0 will be sent again\n")


def test_erase(live: Sidecar) -> None:
    """A turn, and what a person asked."""
    token = unsigned_token(jti="asked", sub="5f3c0a7e-0000-4000-8000-000000000000")
    (live.aichat / "t1.jwt").write_text(token)
    live.answer("t1")
    live.wait_event("delivery.delivered", turn_id="t1", user="5f3c0a7e")
    assert run(live, "erase").count("1 turn erased\n") == 2


def test_restored(live: Sidecar) -> None:
    """What was acknowledged since then goes out again."""
    assert "1 will be sent again\n" in run(live, "restored")
    live.wait_event("delivery.delivered", count=2, turn_id=TURN)


def test_second(live: Sidecar) -> None:
    """The second unit has its own configuration, secret and state, and the program is the same."""
    run(live, "second")
    etc = live.base / "root/etc"
    assert (etc / "systemd/system/paliadin-hugo.service").read_text() == (
        "EnvironmentFile=/etc/paliadin-hugo/sidecar.env\n"
        "LoadCredential=callback-secret:/etc/paliadin-hugo/callback-secret\n"
        "StateDirectory=paliadin-hugo\n"
    )
    assert (etc / "paliadin-hugo/callback-secret").stat().st_mode & 0o777 == 0o600
    lines = (etc / "paliadin-hugo/sidecar.env").read_text().splitlines()
    assert [line.partition("=")[0] for line in lines] == [
        "PALIADIN_CALLBACK_URL", "PALIADIN_WATCH", "PALIADIN_OWNER", "PALIADIN_STATE_DIR",
    ]  # fmt: skip


def test_two_instances(host: Sidecar, receiver: Receiver, tmp_path: Path) -> None:
    """Each serves its own receiver from its own directories, and neither the other's."""
    with Receiver() as hugo_s:
        (tmp_path / "hugo").mkdir(mode=0o700)
        hugo = Sidecar(tmp_path / "hugo", hugo_s.url)
        hugo.make_roots()
        hugo.environ["PALIADIN_WATCH"] = f"aichat/hugo={hugo.aichat}"
        try:
            host.start()
            hugo.start()
            host.answer("t1")
            hugo.answer("t2")
            assert receiver.wait("t1").json["data"]["persona"] == "paliadin"
            assert hugo_s.wait("t2").json["data"]["persona"] == "hugo"
            assert (receiver.of("t2"), hugo_s.of("t1")) == ([], [])
        finally:
            hugo.close()


def test_tmp(live: Sidecar) -> None:
    """`status` is content where the directories are there."""
    assert "armed" in run(live, "tmp")


def test_damaged(live: Sidecar, receiver: Receiver) -> None:
    """Moved by hand it is as by --quarantine: what is there is sent again, none is history."""
    receiver.behaviour = lambda _: Reply(503)
    live.answer("waits")
    live.wait_event("delivery.retry_scheduled", turn_id="waits")
    old = (live.aichat / "waits.txt").stat().st_mtime - 3600
    os.utime(live.aichat / "waits.txt", (old, old))
    live.kill()
    with closing(sqlite3.connect(live.state / FILENAME)) as db, db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("DELETE FROM sqlite_schema")
    live.start(wait=False)
    assert live.wait() == 1
    run(live, "damaged")
    receiver.behaviour = lambda _: Reply()
    live.start()
    live.wait_event("delivery.delivered", turn_id="waits")
    live.wait_event("delivery.delivered", count=2, turn_id=TURN)
    assert not live.events("turn.history")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(live: Sidecar, shell: str) -> None:
    """The script lands where the shell looks for it."""
    run(live, f"complete: {shell}")
    (script,) = [p for p in (live.base / "root").rglob("*paliadin-sidecar*") if p.is_file()]
    assert "paliadin-sidecar" in script.read_text()


def test_the_rules_name_metrics_that_exist(live: Sidecar) -> None:
    """An alert on a name that nothing exports never fires."""
    numbers = Numbers(live.state / FILENAME, [("aichat", "paliadin")], lambda: (0, 0))
    exported = {sample.name for metric in numbers.collect() for sample in metric.samples}
    named = set(re.findall(r"paliadin_sidecar_\w+", block("alerts")))
    assert len(named) == 5
    assert named <= exported
    assert block("alerts").count("- alert:") == 5
