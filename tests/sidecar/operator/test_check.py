"""`check` on hosts with one thing wrong: it names it, why it matters, and what mends it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import subprocess
from contextlib import closing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from support.receiver import Receiver, Reply, verifying
from support.sidecar import COMMAND, Sidecar, new_secret
from support.users import NOBODY, root_only

from paliadin_sidecar.errors import Damaged
from paliadin_sidecar.host.users import user_name
from paliadin_sidecar.operator.checks import storage, system
from paliadin_sidecar.operator.hosting import Hosting
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.outbox import Outbox
from paliadin_sidecar.settings import Settings


def findings(
    host: Sidecar, *before: str, shell: str = "", **environ: str
) -> dict[str, tuple[str, str]]:
    """Level and message by the first two words of the subject.

    `before` is what starts the command, `shell` what is done first where it is started.
    """
    command = [COMMAND, "check", "--json"]
    if shell:
        command = ["sh", "-ec", f'{shell}\nexec "$@"', "sh", *command]
    if before or shell:
        done = subprocess.run(
            [*before, *command],
            env=host.environ | environ, capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
    else:
        done = host.typed(*command[1:], **environ)
    assert "Traceback" not in done.stderr, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    wrong = any(one["level"] == "wrong" for one in found)
    assert done.returncode == (int(wrong) or 0) or done.returncode == 78
    return {" ".join(f["subject"].split()[:2]): (f["level"], f["message"]) for f in found}


def mend(message: str) -> None:
    """Type what a finding says after its last colon."""
    subprocess.run(["sh", "-ec", message.rpartition(": ")[2]], check=True)


def test_a_good_host(host: Sidecar) -> None:
    """Nothing is wrong, and each thing that was looked at is listed."""
    host.start()
    host.answer("t1")
    host.wait_event("delivery.delivered")
    found = findings(host)
    assert {subject: level for subject, (level, _) in found.items()} == {
        "configuration": "ok",
        "daemon": "ok",
        "state directory": "ok",
        "disk": "ok",
        "outbox": "ok",
        "root aichat/paliadin": "ok",
        "root legacy/paliadin": "ok",
        "file events": "ok",
        "read leases": "ok",
        "callback secret": "ok",
        "callback": "ok",
    }


# --- the state directory ------------------------------------------------------------------


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


def test_a_state_directory_that_is_none(host: Sidecar) -> None:
    """Each command says so, and what lies in its place is kept."""
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
    """The state directory's own owner is no excuse for what lies above it."""
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
    """An operator who is not the daemon's user is told whose view is missing.

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
    """No answer could be kept: run as its user, or give it away."""
    shell = f"mkdir {host.state}; mount -t tmpfs -o ro none {host.state}"
    level, message = findings(host, "unshare", "-m", shell=shell)["state directory"]
    assert level == "wrong"
    assert "cannot be written by user root, so no answer could be kept" in message


@root_only
def test_of_another_user_and_closed(host: Sidecar) -> None:
    """Whoever may not even look is told who may, and is not told to take it away first."""
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
    """Before it is full it is told, with what shows where the room went."""
    shell = f"mkdir {host.state}; mount -t tmpfs -o size=1m,mode=700 none {host.state}"
    level, message = findings(host, "unshare", "-m", shell=shell)["disk"]
    assert level == "wrong"
    assert "MiB are free where the outbox is" in message
    assert f"du -xh {host.state}" in message


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
    """A large outbox does not keep an operator waiting; a damaged one is told by its error."""
    with Outbox(tmp_path / FILENAME, create=True) as outbox:
        outbox.transaction([lambda: outbox.record_service_event("x", {}) for _ in range(5000)])
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
        outbox.transaction([lambda: outbox.record_service_event("x", {}) for _ in range(5000)])
    monkeypatch.setattr(storage, "_READ_S", -1.0)
    Settings.from_environment(host.environ)
    found = {f.subject: f for f in storage.outbox(host.state, [], Hosting())}
    assert found["outbox"].level == "note"


def test_an_environment_that_is_not_the_daemon_s(host: Sidecar) -> None:
    """Whoever looks with other variables is told, since nothing else said is of the daemon."""
    host.start()
    host.stop()
    other = f"aichat/paliadin={host.base}/other"
    level, message = findings(host, PALIADIN_WATCH=other)["environment"]
    assert level == "wrong"
    assert f"the daemon watches {host.aichat}, {host.legacy}" in message
    assert message.endswith("with --env-file, or: systemctl restart state.service")


# --- the roots ----------------------------------------------------------------------------


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
    """What lies in its place is moved away, not removed."""
    host.aichat.rmdir()
    host.aichat.write_text("somebody's")
    level, message = findings(host)["root aichat/paliadin"]
    assert level == "wrong"
    mend(message)
    assert findings(host)["root aichat/paliadin"][0] == "note"
    assert host.aichat.with_name("aichat.aside").read_text() == "somebody's"


@root_only
def test_a_root_that_may_not_be_opened(host: Sidecar) -> None:
    """Whoever lacks the capability is told which."""
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


# --- the unit -----------------------------------------------------------------------------


def systemctl(host: Sidecar, text: str) -> str:
    """A PATH with a `systemctl` that says this: no real one runs a unit of ours in a test."""
    folder = host.base / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "systemctl").write_text(text if text[:2] == "#!" else f"#!/bin/sh\n{text}\n")
    (folder / "systemctl").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("PrivateTmp=yes", "PrivateTmp=no\\n"),
        ("PrivateTmp=disconnected", "PrivateTmp=no\\n"),
        ("PrivateTmp=no", None),
        ("ProtectHome=yes", None),
    ],
)
def test_a_unit_that_hides_the_roots(host: Sidecar, says: str, message: str | None) -> None:
    """PrivateTmp= gives the daemon a /tmp of its own, where no answer ever comes."""
    path = systemctl(host, f"printf 'LoadState=loaded\\n{says}\\n'")
    watch = "aichat/paliadin=/tmp/paliadin-of-this-test"
    level, found = findings(host, PATH=path, PALIADIN_WATCH=watch)["unit state.service"]
    if message is None:
        assert level == "ok"
    else:
        assert level == "wrong"
        assert "does not see /tmp/paliadin-of-this-test, and no answer ever arrives" in found
        assert message in found


def test_a_unit_that_hides_home(host: Sidecar) -> None:
    """ProtectHome=read-only shows it, as every other value does not."""
    for value, level in (("tmpfs", "wrong"), ("read-only", "ok")):
        path = systemctl(host, f"printf 'LoadState=loaded\\nProtectHome={value}\\n'")
        found = findings(host, PATH=path, PALIADIN_WATCH="a/b=/home/of-this-test/answers")
        assert found["unit state.service"][0] == level


def test_what_systemd_does_not_take_of_a_unit(host: Sidecar) -> None:
    """A typing error in a drop-in is named; what is of another unit, or of a later systemd, not."""
    file = "/etc/systemd/system/state.service"
    path = systemctl(host, f"printf 'LoadState=loaded\\nFragmentPath={file}\\n'")
    program = host.base / "bin/systemd-analyze"
    program.write_text(
        f"#!/bin/sh\nprintf '%s\\n' \"{file}.d/o.conf:2: Unknown key 'Enviroment', ignoring.\" "
        f"\"{file}.d/backoff.conf:6: Unknown key 'RestartSteps', ignoring.\" "
        '"/etc/systemd/system/other.service:1: Unknown key" >&2; exit 1\n'
    )
    program.chmod(0o755)
    level, message = findings(host, PATH=path)["unit state.service"]
    assert (level, "Unknown key 'Enviroment'" in message) == ("wrong", True)
    assert "RestartSteps" not in message
    assert message.endswith("systemctl daemon-reload && systemctl restart state.service")


@pytest.mark.parametrize("text", ["exit 1", "echo LoadState=not-found", "kill -9 $$", "#!/none"])
def test_no_unit(host: Sidecar, text: str) -> None:
    """Where systemd knows none there is nothing to say."""
    assert "unit state.service" not in findings(host, PATH=systemctl(host, text))


def test_each_instance_is_asked_about_its_own_unit(host: Sidecar) -> None:
    """Unit and state directory have one name."""
    path = systemctl(host, 'echo "$*" >>"$0.asked"')
    findings(host, PATH=path, PALIADIN_STATE_DIR=str(host.base / "paliadin-hugo"))
    asked, _, other = (host.base / "bin/systemctl.asked").read_text().partition("\n")
    assert asked.startswith("show ")
    assert asked.endswith(" -- paliadin-hugo.service")
    assert other.endswith(" -- paliadin-sidecar.service\n")  # which may read this environment file


def test_no_systemd(host: Sidecar) -> None:
    """Nor where there is no systemd at all."""
    assert "unit state.service" not in findings(host, PATH=str(host.base))


def test_what_mends_the_unit_is_a_drop_in(host: Sidecar) -> None:
    """The command as it is printed writes the file that systemd reads."""
    path = systemctl(host, "printf 'LoadState=loaded\\nPrivateTmp=yes\\n'")
    watch = "aichat/paliadin=/tmp/paliadin-of-this-test"
    message = findings(host, PATH=path, PALIADIN_WATCH=watch)["unit state.service"][1]
    command = message.rpartition(": ")[2].replace("/etc/systemd", f"{host.base}/systemd")
    subprocess.run(["sh", "-ec", command], env={"PATH": path}, check=True, capture_output=True)
    (dropin,) = (host.base / "systemd/system/state.service.d").iterdir()
    assert dropin.read_text() == "[Service]\nPrivateTmp=no\n"


# --- what the system gives ----------------------------------------------------------------


@pytest.mark.parametrize("engine", ["watchfiles", "inotify"])
def test_the_engine_that_is_configured_is_tried(host: Sidecar, engine: str) -> None:
    """That the other one would work says nothing."""
    level, message = findings(host, PALIADIN_EVENTS=engine)["file events"]
    assert (level, f"come by {engine}" in message) == ("ok", True)


@pytest.mark.parametrize("engine", ["watchfiles", "inotify"])
@pytest.mark.parametrize("limit", ["instances", "watches"])
def test_no_file_events(host: Sidecar, limit: str, engine: str) -> None:
    """Limits of inotify that are used up: what it costs, and the setting that raises them."""
    shell = f"echo 0 > /proc/sys/user/max_inotify_{limit}"
    if subprocess.run(["unshare", "-Ur", "sh", "-c", shell], check=False).returncode:
        pytest.skip("needs user namespaces: sysctl -w user.max_user_namespaces=10000")
    tried = findings(host, "unshare", "-Ur", shell=shell, PALIADIN_EVENTS=engine)
    level, message = tried["file events"]
    assert level == "wrong"
    command = message.rpartition(": ")[2].replace("/etc/sysctl.d", str(host.base))
    assert command.endswith(" && sysctl --system")
    subprocess.run(["sh", "-ec", command.removesuffix(" && sysctl --system")], check=True)
    assert (host.base / "inotify.conf").read_text() == (
        "fs.inotify.max_user_instances=512\nfs.inotify.max_user_watches=524288\n"
    )


def test_a_limit_that_is_not_told() -> None:
    """A kernel that shows no such number is no reason to fall over."""
    assert system._limit("none") == "unknown"
    assert system._limit("watches").isdigit()


@root_only
def test_no_leases(host: Sidecar) -> None:
    """Tried on a real answer, and else known by the capability."""
    before = ["setpriv", "--bounding-set=-lease", "--inh-caps=-lease"]
    os.chown(host.aichat, NOBODY, NOBODY)
    environ = {"PALIADIN_OWNER": str(NOBODY)}
    assert findings(host, *before, **environ)["read leases"][0] == "note"
    host.answer("t1")
    os.chown(host.aichat / "t1.txt", NOBODY, NOBODY)
    assert findings(host, **environ)["read leases"][0] == "ok"
    level, message = findings(host, *before, **environ)["read leases"]
    assert level == "note"
    assert "every answer waits until its file was quiet" in message
    assert "CAP_LEASE" in message


def test_writers_that_the_kernel_does_not_know(
    host: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root on a file system that others write unseen is named, with what follows from it."""
    settings = Settings.from_environment(host.environ)
    monkeypatch.setattr(system, "type_of", lambda _: "fuse.sshfs")
    found = system.read_leases(settings)
    assert [f.level for f in found] == ["note", "note"]
    for finding, root in zip(found, (host.aichat, host.legacy), strict=True):
        assert f"{root}: it is on a file system (fuse.sshfs)" in finding.message
        assert "quiet for 0.5 s (PALIADIN_QUIET_S)" in finding.message


def test_answers_that_are_not_the_owner_s(host: Sidecar) -> None:
    """A link, or another's file, is none that a lease can be tried on."""
    (host.aichat / "t1.txt").symlink_to("/etc/hostname")
    host.answer("t2", root=host.legacy)
    assert findings(host)["read leases"][0] == "ok"


# --- the secret ---------------------------------------------------------------------------


@root_only
def test_a_credential_that_may_not_be_read(host: Sidecar) -> None:
    """Exit 78 with the command, as JSON too."""
    secret = host.base / "secret"
    secret.write_text(host.secret)
    os.chown(secret, NOBODY, NOBODY)
    secret.chmod(0o400)
    del host.environ["PALIADIN_CALLBACK_SECRET"]
    drop = "-dac_read_search,-dac_override"
    before = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"]
    found = findings(host, *before, PALIADIN_CALLBACK_SECRET_FILE=str(secret))
    level, message = found["configuration"]
    assert level == "wrong"
    assert message.endswith(f"or nothing can be signed: chown 0 {secret}")
    mend(message)
    found = findings(host, *before, PALIADIN_CALLBACK_SECRET_FILE=str(secret))
    assert found["callback secret"][0] == "ok"


@root_only
def test_the_service_s_credential_is_found(host: Sidecar) -> None:
    """Who may read what systemd gave the unit needs not say where it is."""
    del host.environ["PALIADIN_CALLBACK_SECRET"]
    folder = "/run/credentials/state.service"
    shell = (
        f"mount -t tmpfs none /run; mkdir -p {folder}; "
        f"echo {host.secret} > {folder}/callback-secret"
    )
    assert findings(host, "unshare", "-m", shell=shell)["callback secret"][0] == "ok"
    assert findings(host)["configuration"][0] == "wrong"


def test_each_instance_has_its_own_secret(tmp_path: Path) -> None:
    """It lies beside the instance's environment file: a ping is never signed with another's."""
    with Receiver() as receiver, Receiver() as hugo_s:
        for name, end in (("paliadin", receiver), ("hugo", hugo_s)):
            folder = tmp_path / name
            folder.mkdir()
            secret = new_secret()
            end.behaviour = verifying(secret)
            (folder / "callback-secret").touch(mode=0o600)
            (folder / "callback-secret").write_text(f"{secret}\n")
            (folder / "sidecar.env").write_text(
                f"PALIADIN_CALLBACK_URL={end.url}\nPALIADIN_STATE_DIR={folder}/state\n"
                f"PALIADIN_WATCH=aichat/{name}={folder}/answers\n"
            )
            command = [COMMAND, "check", "--ping", "--env-file", f"{folder}/sidecar.env"]
            done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


@root_only
def test_a_secret_that_this_user_may_not_read(host: Sidecar) -> None:
    """While the service is down root alone may read it: that is said, not that none is set."""
    del host.environ["PALIADIN_CALLBACK_SECRET"]
    (host.base / "sidecar.env").touch()
    (host.base / "callback-secret").touch(mode=0o600)
    os.chown(host.base / "callback-secret", NOBODY, NOBODY)
    drop = "-dac_read_search,-dac_override"
    done = subprocess.run(
        [
            *("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"),
            *(COMMAND, "check", "--env-file", f"{host.base}/sidecar.env"),
        ],
        env=host.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        f"{host.base}/callback-secret may not be read by this user. "
        f"Try: sudo paliadin-sidecar check --env-file {host.base}/sidecar.env\n"
    )


@root_only
def test_an_ordinary_user_is_told_the_command_at_once(host: Sidecar) -> None:
    """Not what looks wrong to them, nor to become the daemon's user, who sees less than root."""
    host.state.mkdir(mode=0o700)
    host.base.chmod(0o755)
    ordinary = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    code = (
        "import sys; from paliadin_sidecar.operator.cli import main;"
        "sys.argv = ['paliadin-sidecar', 'check', '--ping']; main()"
    )
    done = subprocess.run(
        [*ordinary, COMMAND.replace("paliadin-sidecar", "python"), "-c", code],
        env=host.environ | {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""},
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"{host.state} may not be read by this user. Try: sudo paliadin-sidecar check --ping\n"
    )


@root_only
def test_the_owner_is_not_named(host: Sidecar) -> None:
    """Nobody is told to give answers to root, nor where root is named by mistake."""
    os.chown(host.aichat, NOBODY, NOBODY)
    level, message = findings(host)["root aichat/paliadin"]
    name = user_name(NOBODY)
    assert level == "wrong"
    assert "not to root (PALIADIN_OWNER), which is not set" in message
    assert f": PALIADIN_OWNER={name}, if that is the agent's user, and restart" in message
    assert "chown" not in message
    assert findings(host, PALIADIN_OWNER=name)["root aichat/paliadin"][0] == "ok"
    message = findings(host, PALIADIN_OWNER="root")["root aichat/paliadin"][1]
    assert f"(PALIADIN_OWNER): PALIADIN_OWNER={name}, if that is" in message


def test_a_variable_that_is_misspelt(host: Sidecar) -> None:
    """It is ignored by the daemon, so it is named here, with the one that was meant."""
    level, message = findings(host, PALIADIN_QUIETS="2")["variable"]
    assert level == "wrong"
    assert message.startswith("PALIADIN_QUIETS is no variable of the sidecar's and is ignored: ")
    assert message.endswith("is it PALIADIN_QUIET_S?")


@pytest.mark.parametrize("name", ["sidecar.env", "callback-secret", "named"])
def test_a_secret_that_everybody_may_read(host: Sidecar, name: str) -> None:
    """Wherever it stands; the agent could sign with it."""
    secret = host.environ.pop("PALIADIN_CALLBACK_SECRET")
    files = {"sidecar.env": f"PALIADIN_CALLBACK_SECRET={secret}\n"} if name[0] == "s" else {}
    shipped = (Path(__file__).parents[3] / "systemd/sidecar.env").read_text()  # explains secrets
    shipped = shipped.replace("\nPALIADIN_", "\n#PALIADIN_")
    for file, text in ({"sidecar.env": shipped, name: secret} | files).items():
        (host.base / file).write_text(text)
        (host.base / file).chmod(0o644)
    if name == "named":
        host.environ["PALIADIN_CALLBACK_SECRET_FILE"] = str(host.base / name)
    check = ("check", "--json", "--env-file", f"{host.base}/sidecar.env")
    done = host.typed(*check)
    (wrong,) = [f["message"] for f in json.loads(done.stdout) if f["level"] == "wrong"]
    assert wrong.startswith(f"{host.base}/{name} can be read by everybody")
    mend(wrong)
    assert host.typed(*check).returncode == 0


def test_answers_in_the_clear(host: Sidecar, receiver: Receiver) -> None:
    """Http to another host is allowed on request, and named each time."""
    url = "http://paliad.example.org/callback"
    environ = {"PALIADIN_CALLBACK_URL": url, "PALIADIN_CALLBACK_INSECURE": "1"}
    assert findings(host, **environ)["callback"][0] == "note"


def test_a_good_clock(host: Sidecar, receiver: Receiver) -> None:
    """Also what is well is said, with the difference."""
    receiver.behaviour = lambda _: Reply(204, {"date": formatdate(usegmt=True)})
    found = json.loads(host.typed("check", "--ping", "--json").stdout)
    assert [f["level"] for f in found if f["subject"] == "clock"] == ["ok"]


def test_a_rotation_that_is_not_over(host: Sidecar) -> None:
    """Two secrets are no error, and not to be forgotten."""
    host.environ["PALIADIN_CALLBACK_SECRET"] += f" {host.secret}"
    assert findings(host)["callback secret"][0] == "note"


def test_tools_that_these_tests_need() -> None:
    """Without them the tests above would say less than they seem to."""
    assert all(shutil.which(tool) for tool in ("unshare", "setpriv"))
