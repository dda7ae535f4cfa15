"""`check` on roots, state directories, outboxes and disks with one thing wrong."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.checking import findings, mend
from support.fuse import FuseMount
from support.sidecar import COMMAND, Sidecar
from support.users import NOBODY, root_only

from paliadin_sidecar.errors import Damaged
from paliadin_sidecar.host.storage import user_name
from paliadin_sidecar.operator.checks import directories
from paliadin_sidecar.operator.instance import Hosting
from paliadin_sidecar.outbox import event_rows
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def test_a_missing_root(host: Sidecar) -> None:
    """The command that makes it makes it well."""
    host.aichat.rmdir()
    level, message = findings(host)["root aichat/paliadin"]
    assert (level, message.startswith(f"{host.aichat} does not exist")) == ("note", True)
    mend(message)
    assert findings(host)["root aichat/paliadin"][0] == "ok"


def test_a_root_that_others_may_write(host: Sidecar) -> None:
    """Nothing is taken from it, since anybody could put an answer there."""
    host.aichat.chmod(0o777)
    level, message = findings(host)["root aichat/paliadin"]
    assert level == "wrong"
    assert message.startswith(f"nothing is taken from it, since {host.aichat} is writable")
    mend(message)
    assert findings(host)["root aichat/paliadin"][0] == "ok"


@pytest.mark.parametrize("kind", ["access", "default"])
def test_a_root_that_an_acl_opens(host: Sidecar, kind: str) -> None:
    """Who is let in is named, and shut out by what mends it, whatever the directory is called."""
    root = host.base / "a root"
    root.mkdir(mode=0o700)
    # The owner 7, user 54321 7, the group and others nothing; as the kernel stores it.
    entries = ((0x01, 7, -1), (0x02, 7, 54321), (0x04, 0, -1), (0x10, 7, -1), (0x20, 0, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(root, f"system.posix_acl_{kind}", acl)
    except OSError as exc:
        pytest.skip(f"no ACLs on the file system of {root}: {exc.strerror}")
    environ = {"PALIADIN_WATCH": f"aichat/paliadin={root}"}
    level, message = findings(host, **environ)["root aichat/paliadin"]
    assert level == "wrong"
    assert "writable by user 54321: setfacl " in message
    if not shutil.which("setfacl"):
        pytest.skip("needs setfacl, to try what mends it")
    mend(message)
    assert findings(host, **environ)["root aichat/paliadin"][0] == "ok"


def test_a_root_of_another_owner(host: Sidecar) -> None:
    """Either the variable is wrong or the first directory on the way that is not root's."""
    above = reversed(host.aichat.parents)
    step = next((path for path in above if path.stat().st_uid != 0), host.aichat)
    level, message = findings(host, PALIADIN_OWNER="4711")["root aichat/paliadin"]
    assert level == "wrong"
    assert "(PALIADIN_OWNER): name that user there, or, if it is the agent's (" in message
    assert message.endswith(f": chown 4711 {step}")


def test_a_root_that_is_no_directory(host: Sidecar) -> None:
    """What is in its place is moved away, not removed."""
    host.aichat.rmdir()
    host.aichat.write_text("somebody's")
    level, message = findings(host)["root aichat/paliadin"]
    assert level == "wrong"
    mend(message)
    assert findings(host)["root aichat/paliadin"][0] == "note"
    assert host.aichat.with_name("aichat.aside").read_text() == "somebody's"


@root_only
def test_a_root_that_may_not_be_opened(host: Sidecar) -> None:
    """Whoever lacks the capability reads which."""
    os.chown(host.aichat, NOBODY, NOBODY)
    drop = "-dac_read_search,-dac_override"
    before = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"]
    found = findings(host, *before, PALIADIN_OWNER=str(NOBODY))["root aichat/paliadin"]
    assert found[0] == "wrong"
    assert f"only user {user_name(NOBODY)} can, or who has CAP_DAC_READ_SEARCH" in found[1]
    assert found[1].endswith(": sudo paliadin-sidecar check")
    host.aichat.chmod(0o755)
    host.answer("t1")
    os.chown(host.aichat / "t1.txt", NOBODY, NOBODY)
    (host.aichat / "t1.txt").chmod(0o600)
    found = findings(host, *before, PALIADIN_OWNER=str(NOBODY))["read leases"]
    assert found[0] == "ok"  # not tried on what may not be opened; the capability is there


@root_only
def test_a_root_that_is_not_the_host_s(host: Sidecar) -> None:
    """A mount namespace of its own, as PrivateTmp= makes one, shows other directories."""
    host.legacy.rmdir()  # what only the namespace has is not the host's either
    check = f"{COMMAND} check --json || true"
    hidden = f"mount -t tmpfs none {host.base}; mkdir -m 700 {host.aichat} {host.legacy}; {check}"
    script = f"{check}; echo; unshare -m sh -ec '{hidden}'; true"
    done = subprocess.run(
        ["unshare", "-m", "-p", "-f", "--mount-proc", "sh", "-ec", script],
        env=host.environ, capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    before, seen = (
        {f["subject"].split()[-1]: f for f in json.loads(part)}
        for part in done.stdout.split("\n\n")
    )
    assert before[str(host.aichat)]["level"] == "ok"
    for root in (host.aichat, host.legacy):
        assert seen[str(root)]["level"] == "wrong"
        assert "run it without PrivateTmp=" in seen[str(root)]["message"]


def test_open_to_others(host: Sidecar) -> None:
    """What mends it is a command, and it does."""
    host.state.mkdir()
    host.state.chmod(0o755)
    level, message = findings(host)["state directory"]
    assert (level, "open to others" in message) == ("note", True)
    mend(message)
    assert findings(host)["state directory"][0] == "ok"


@root_only
def test_a_file_of_the_outbox_that_is_another_user_s(host: Sidecar) -> None:
    """As root leaves one that put a copy back: the daemon could not write it."""
    host.start()
    host.stop()
    os.chown(host.state, NOBODY, NOBODY)
    for name in ("daemon.json", "journal.key", "sidecar.lock"):
        os.chown(host.state / name, NOBODY, NOBODY)
    (host.state / "aside.x").mkdir()  # what was moved away may be root's
    level, message = findings(host)["state directory"]
    assert level == "wrong"
    assert "'outbox.db' in it: not of user nobody" in message
    mend(message)
    assert findings(host)["state directory"][0] == "note"


def test_a_file_that_goes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the outbox's log does when nobody has it open any more."""
    names = [*tmp_path.iterdir(), tmp_path / f"{FILENAME}-wal"]
    monkeypatch.setattr(type(tmp_path), "iterdir", lambda _: iter(names))
    found = directories.state_directory(tmp_path)
    assert [one.level for one in found if one.subject.startswith("state")] == ["ok"]


def test_a_state_directory_that_is_none(host: Sidecar) -> None:
    """Each command says so, and what is in its place is kept."""
    host.state.write_text("somebody's")
    for command in ("status", "turns"):
        done = host.typed(command)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert f"There is no outbox in {host.state}" in done.stderr
    level, message = findings(host)["state directory"]
    assert level == "wrong"
    mend(message)
    assert host.state.with_name("state.aside").read_text() == "somebody's"


@root_only
def test_no_room_where_the_answers_are(host: Sidecar) -> None:
    """An agent that meets a full disk leaves an answer that is cut."""
    shell = f"mount -t tmpfs -o size=1M,mode=700 none {host.aichat}"
    level, message = findings(host, "unshare", "-m", shell=shell)["disk"]
    assert level == "wrong"
    assert f"KiB are free in {host.aichat}" in message


def test_a_way_that_others_may_change(host: Sidecar) -> None:
    """An ancestor that anybody may write lets anybody take the outbox away."""
    (host.base / "open").mkdir()
    (host.base / "open").chmod(0o777)
    state = host.base / "open" / "state"
    state.mkdir(mode=0o700)
    level, message = findings(host, PALIADIN_STATE_DIR=str(state))["state directory"]
    assert level == "wrong"
    assert message.startswith("whoever may change it can take the outbox away: ")
    mend(message)
    assert findings(host, PALIADIN_STATE_DIR=str(state))["state directory"][0] == "ok"


@root_only
def test_a_way_that_is_root_s_and_open(host: Sidecar) -> None:
    """The state directory's own owner is no excuse for what is above it."""
    (host.base / "open").mkdir()
    (host.base / "open").chmod(0o777)
    state = host.base / "open" / "state"
    state.mkdir(mode=0o700)
    os.chown(state, NOBODY, NOBODY)
    found = json.loads(host.typed("check", "--json", PALIADIN_STATE_DIR=str(state)).stdout)
    wrong = [f["message"] for f in found if f["level"] == "wrong"]
    assert [message.rpartition(": ")[2] for message in wrong] == [f"chmod o-w {host.base}/open"]


@root_only
def test_of_another_user(host: Sidecar) -> None:
    """An operator who is not the daemon's user reads whose view is missing.

    Not to take it, since without the unit's capabilities it shows what is not so.
    """
    host.state.mkdir(mode=0o700)
    os.chown(host.state, NOBODY, NOBODY)
    level, message = findings(host)["state directory"]
    assert level == "note"
    assert message.startswith(f"belongs to user {user_name(NOBODY)}, as whom the daemon runs")
    assert "sudo" not in message


@root_only
def test_not_writable(host: Sidecar) -> None:
    """No answer could be kept, and no change of owner mends it."""
    shell = f"mkdir {host.state}; mount -t tmpfs -o ro none {host.state}"
    level, message = findings(host, "unshare", "-m", shell=shell)["state directory"]
    assert level == "wrong"
    assert message.startswith("is on a read-only file system, so no answer is accepted")
    assert "mount -o remount,rw" in message


@root_only
def test_of_another_user_and_closed(host: Sidecar) -> None:
    """Whoever may not even look reads who may, and is not advised to take it away first."""
    host.start()
    host.stop()
    for path in (host.state, *host.state.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    drop = "-dac_read_search,-dac_override"
    found = findings(host, "setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}")
    level, message = found["state directory"]
    assert level == "wrong"
    assert "If that user runs the daemon: sudo paliadin-sidecar check;" in message
    assert "outbox" not in found


@root_only
def test_a_full_disk(host: Sidecar) -> None:
    """Before it is full it is reported, with what shows where the room went."""
    shell = f"mkdir {host.state}; mount -t tmpfs -o size=1m,mode=700 none {host.state}"
    level, message = findings(host, "unshare", "-m", shell=shell)["disk"]
    assert level == "wrong"
    assert "MiB are free where the outbox is" in message
    assert f"du -xh {host.state}" in message


def test_a_file_system_that_says_nothing_of_its_room(host: Sidecar) -> None:
    """That is a note, and no traceback."""
    with FuseMount(host.state):
        assert findings(host)["disk"] == ("note", "its file system does not say how much is free")


@root_only
@pytest.mark.parametrize(
    ("mount", "said"),
    [
        ("-t tmpfs -o mode=700 none", "tmpfs, in memory"),
        ("-t overlay -o lowerdir={0}/l,upperdir={0}/u,workdir={0}/w none", "overlay, of layers"),
    ],
)
def test_a_state_directory_that_goes_with_something(host: Sidecar, mount: str, said: str) -> None:
    """What was accepted is nowhere else, so its operator knows with what it goes."""
    on = host.base / "layers"
    layers = f"mkdir {on}; mount -t tmpfs none {on}; mkdir -m 700 {on}/l {on}/u {on}/w"
    shell = f"mkdir {host.state}; {layers}; mount {mount.format(on)} {host.state}"
    level, message = findings(host, "unshare", "-m", shell=shell)["outbox's file"]
    assert level == "note"
    assert message.startswith(said)


def test_a_damaged_outbox(host: Sidecar) -> None:
    """Also where only a page is damaged that nobody reads just now."""
    host.start()
    host.stop()
    path = host.state / FILENAME
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'body'").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    level, message = findings(host)["outbox"]
    assert level == "wrong"
    assert "paliadin-sidecar run --quarantine" in message


def test_an_outbox_that_is_none(host: Sidecar) -> None:
    """What cannot be opened is the same to who looks."""
    host.state.mkdir(mode=0o700)
    (host.state / FILENAME).write_text("this is no database, " * 100)
    assert "run --quarantine" in findings(host)["outbox"][1]


def test_pages_are_read_for_so_long_and_no_longer(tmp_path: Path) -> None:
    """A large outbox does not keep an operator waiting; a damaged one is reported by its error."""
    with Outbox(tmp_path / FILENAME, create=True) as outbox:
        outbox.transaction(
            [lambda: event_rows.record_service_event(outbox, "x", {}) for _ in range(5000)]
        )
        assert outbox.check_pages(60)
        assert not outbox.check_pages(-1)
        assert outbox.check_pages(60)
    with closing(sqlite3.connect(tmp_path / FILENAME)) as db, db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET rootpage = 3 WHERE name = 'turn_by_submitted'")
    with pytest.raises(Damaged, match="quick_check"), Outbox(tmp_path / FILENAME) as outbox:
        outbox.check_pages(60)


def test_a_large_outbox(host: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    """That not every page was read is said."""
    host.state.mkdir(mode=0o700)
    with Outbox(host.state / FILENAME, create=True) as outbox:
        outbox.transaction(
            [lambda: event_rows.record_service_event(outbox, "x", {}) for _ in range(5000)]
        )
    monkeypatch.setattr(directories, "_READ_S", -1.0)
    settings = Settings.from_environment(host.environ)
    found = {f.subject: f for f in directories.outbox(settings, Hosting())}
    assert found["outbox"].level == "note"


def test_an_environment_that_is_not_the_daemon_s(host: Sidecar) -> None:
    """Whoever looks with other variables is warned, since nothing else said is of the daemon."""
    host.start()
    host.stop()
    other = f"aichat/paliadin={host.base}/other"
    level, message = findings(host, PALIADIN_WATCH=other)["environment"]
    assert level == "wrong"
    assert f"the daemon watches {host.aichat}, {host.legacy}" in message
    assert message.endswith("with --env-file, or: systemctl restart state.service")
