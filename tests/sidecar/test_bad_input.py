"""Bad input gets a clear answer and loses nothing: each case on the real process."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.attack import exchanging
from support.sidecar import COMMAND, TRAILER, Sidecar
from support.slow import slow
from support.tokens import unsigned_token

from paliadin_sidecar.host.storage import user_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.receiver import Receiver


def whole(text: str) -> bytes:
    return (text + TRAILER).encode()


# --- what may be in a root -------------------------------------------------------------------


def test_a_name_that_is_no_turn_id_is_nobody_s_business(host: Sidecar, receiver: Receiver) -> None:
    """It is counted as foreign, and its neighbours are pushed."""
    for name in ("a.b.txt", "-x.txt", "ümlaut.txt", "x" * 65 + ".txt", ".txt", "t1.txt.tmp.7.ab"):
        (host.aichat / name).write_bytes(whole("fremd"))
    host.start()
    host.answer("t1")
    receiver.wait("t1")
    assert host.stop() == 0
    assert len(receiver.turns) == 1
    assert '"foreign_files": 6' in host.typed("status", "--json").stdout


def test_a_name_that_is_not_utf_8_costs_no_turn(host: Sidecar, receiver: Receiver) -> None:
    """The watch fails over it and is made anew; scans find what came meanwhile."""
    host.start()
    strange = os.fsencode(host.aichat) + b"/\xff\xfe.txt"
    stop = threading.Event()

    def touch() -> None:
        while not stop.wait(0.05):
            os.close(os.open(strange, os.O_WRONLY | os.O_CREAT))
            os.utime(strange)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        host.wait_event("watch.failed")
        for n in range(5):
            host.answer(f"t{n}")
            receiver.wait(f"t{n}")
    finally:
        stop.set()
        thread.join()


def test_a_name_that_is_not_utf_8_costs_no_other_root_its_events(
    host: Sidecar, receiver: Receiver
) -> None:
    """Each root has a watch of its own: an answer in the other is there long before a scan."""
    host.environ["PALIADIN_RESCAN_S"] = "60"
    host.start()
    strange = Path(os.fsdecode(os.fsencode(host.aichat) + b"/\xff\xfe.txt"))
    strange.touch()
    host.wait_event("watch.failed", path=str(host.aichat))
    host.answer("t1", root=host.legacy)
    receiver.wait("t1")


def test_content_that_is_not_utf_8_is_marked_lossy(host: Sidecar, receiver: Receiver) -> None:
    """What cannot be decoded becomes U+FFFD, and the callback says so."""
    host.start()
    (host.aichat / "t1.txt").write_bytes(b"Gr\xfc\xdfe" + TRAILER.encode())
    data = receiver.wait("t1").json["data"]
    assert data["lossy"] is True
    assert data["response"] == "Gr\ufffd\ufffde" + TRAILER


def _symlink(path: Path, base: Path) -> None:
    (base / "secret").write_bytes(whole("geheim"))
    path.symlink_to(base / "secret")


def _hard_link(path: Path, base: Path) -> None:
    (base / "other").write_bytes(whole("geheim"))
    os.link(base / "other", path)


UNTRUSTED: dict[str, Callable[[Path, Path], None]] = {
    "symlink": _symlink,
    "fifo": lambda path, _: os.mkfifo(path),
    "directory": lambda path, _: path.mkdir(),
    "hard link": _hard_link,
}
if os.geteuid() == 0:
    UNTRUSTED["device"] = lambda path, _: os.mknod(path, 0o020600, os.makedev(1, 5))

    def _foreign_owner(path: Path, base: Path) -> None:
        temp = base / "foreign"
        temp.write_bytes(whole("geheim"))
        os.chown(temp, 12345, 12345)
        temp.rename(path)

    UNTRUSTED["foreign owner"] = _foreign_owner


@pytest.mark.parametrize("kind", UNTRUSTED)
def test_what_is_no_file_of_ours_fails_as_untrusted_and_a_good_one_may_follow(
    host: Sidecar, receiver: Receiver, kind: str
) -> None:
    """Whoever waits learns it at once; nothing of what it points to is read."""
    host.start()
    path = host.aichat / "t1.txt"
    UNTRUSTED[kind](path, host.base)
    failed = receiver.wait("t1").json
    assert (failed["type"], failed["data"]["reason"]) == ("turn.failed", "untrusted")
    assert receiver.turns[0].id == "aichat_paliadin_t1_1_untrusted"
    host.wait_event("turn.failed", turn_id="t1", reason="untrusted")
    path.rmdir() if kind == "directory" else path.unlink()
    host.answer("t1", "nun gut")
    good = receiver.wait("t1", 2).json["data"]
    assert (good["revision"], good["response"]) == (2, "nun gut" + TRAILER)
    assert not any(b"geheim" in r.body for r in receiver.requests)


def test_a_file_over_the_limit_fails_as_too_large(host: Sidecar, receiver: Receiver) -> None:
    """At the limit it is an answer, one byte over it is none."""
    limit = 20_000
    host.environ["PALIADIN_MAX_BYTES"] = str(limit)
    host.start()
    for name, size in (("fits", limit), ("over", limit + 1)):
        temp = host.aichat / f"{name}.tmp"
        temp.write_bytes(b"x" * (size - len(TRAILER)) + TRAILER.encode())
        temp.rename(host.aichat / f"{name}.txt")
    assert receiver.wait("fits").json["data"]["bytes"] == limit
    failed = receiver.wait("over").json["data"]
    assert (failed["reason"], failed["bytes"]) == ("too_large", limit + 1)


@pytest.mark.parametrize("seconds", [569_000_000_000, slow(2**62 // 10**9), slow(-5_000_000_000)])
def test_an_mtime_that_is_no_date_costs_nothing(
    host: Sidecar, receiver: Receiver, seconds: int
) -> None:
    """The year 20000, or one long ago: the answer arrives, with a time that is a date."""
    host.start()
    temp = host.aichat / "t1.tmp"
    temp.write_bytes(whole("Antwort"))
    os.utime(temp, (seconds, seconds))
    temp.rename(host.aichat / "t1.txt")
    at = datetime.fromisoformat(receiver.wait("t1").json["data"]["completed_at"])
    assert at <= datetime.now(UTC)


@pytest.mark.parametrize(
    "token",
    [
        slow(b""),
        slow(b"no token"),
        b"a.b.c",
        b"\xff\xfe.\x00.x",
        slow(b"x" * 9000),
        unsigned_token(jti="a/b", sub="u").encode(),
        slow(unsigned_token(sub="only-sub").encode()),
        slow(unsigned_token(jti=7, sub=None).encode()),
    ],
)
def test_a_token_that_is_none_gives_no_hints(
    host: Sidecar, receiver: Receiver, token: bytes
) -> None:
    """Both hints are null, and the answer arrives."""
    host.start()
    (host.aichat / "t1.jwt").write_bytes(token)
    host.answer("t1")
    data = receiver.wait("t1").json["data"]
    assert (data["submitted_turn_id"], data["user_id"]) == (None, None)


# --- roots ----------------------------------------------------------------------------------


def test_a_root_that_cannot_be_trusted_is_not_read_until_it_is_mended(
    host: Sidecar, receiver: Receiver
) -> None:
    """Writable by others, a link, under a directory that others may write: each says so."""
    host.start()
    for n, spoiled in enumerate((host.aichat, host.base), 1):
        spoiled.chmod(0o777)
        event = host.wait_event("root.untrusted", count=n, backend="aichat")
        assert event["why"] == f"{spoiled} is writable by others: chmod o-w {spoiled}"
        host.answer(f"t{n}")
        assert receiver.of(f"t{n}") == []
        spoiled.chmod(0o700)
        host.wait_event("root.armed", count=n + 1, backend="aichat")
        receiver.wait(f"t{n}")


@pytest.mark.slow  # `intake/test_roots.py` tries it without a daemon
def test_an_ancestor_exchanged_for_a_link_all_the_time_leads_nowhere(
    host: Sidecar, receiver: Receiver
) -> None:
    """Neither answers nor tokens of another tree are read, though they are the owner's too."""
    above, secret, link = host.base / "above", host.base / "secret", host.base / "link"
    for tree in (above, secret):
        (tree / "root").mkdir(parents=True, mode=0o700)
        tree.chmod(0o700)
    link.symlink_to(secret)
    host.answer("mine", root=above / "root")
    host.answer("theirs", root=secret / "root")
    host.answer("mine", "secret", root=secret / "root")
    (secret / "root" / "mine.jwt").write_text(unsigned_token(jti="secret", sub="secret"))
    host.environ["PALIADIN_WATCH"] = f"aichat/paliadin={above / 'root'}"
    host.environ["PALIADIN_RESCAN_S"] = "0.05"
    with exchanging(above, link):
        host.start()
        host.wait_event("root.untrusted", count=5)
        host.wait_event("root.armed", count=5)
        receiver.wait("mine")
    host.close()
    (turn,) = receiver.turns
    assert turn.json["data"]["turn_id"] == "mine"
    assert b"secret" not in turn.body


def test_a_root_that_is_a_link_is_untrusted(host: Sidecar, receiver: Receiver) -> None:
    """Whoever made the link would decide what is read."""
    real = host.base / "real"
    host.aichat.rename(real)
    host.aichat.symlink_to(real)
    host.start()
    assert "symbolic link" in host.wait_event("root.untrusted", backend="aichat")["why"]
    host.answer("t1", root=host.legacy)
    receiver.wait("t1")
    assert host.typed("status").returncode == 1


# --- configuration --------------------------------------------------------------------------


def run_fails(host: Sidecar, *args: str) -> tuple[int, str]:
    done = host.command("run", *args)
    return done.returncode, done.stderr


def test_all_that_is_wrong_is_said_at_once(host: Sidecar) -> None:
    """Exit 78, a sentence for each variable, and no secret in any of them."""
    host.environ |= {
        "PALIADIN_CALLBACK_URL": "http://paliad.example.org/callback",
        "PALIADIN_CALLBACK_SECRET": "whsec_not-base64-marker",
        "PALIADIN_WATCH": "Aichat/paliadin=/tmp/x:legacy",
        "PALIADIN_OWNER": "nobody-of-this-name",
        "PALIADIN_QUIET_S": "soon",
        "PALIADIN_MAX_BYTES": "-1",
        "PALIADIN_LOG_LEVEL": "loud",
        "PALIADIN_CALLBACK_INSECURE": "yes",
        "PALIADIN_CALLBACK_CA_FILE": "/does/not/exist",
        "PALIADIN_STATE_DIR": "relative",
    }
    code, errors = run_fails(host)
    assert code == 78
    for name in host.environ:
        if name.startswith("PALIADIN_") and name not in (
            "PALIADIN_HOST_LABEL",
            "PALIADIN_RESCAN_S",
        ):
            assert name in errors
    assert "marker" not in errors


@pytest.mark.parametrize(
    "secret", ["", "plain", "whsec_", "whsec_???", "whsec_c2hvcnQ=", "whsec_" + "ü" * 32]
)
def test_a_secret_that_is_none_is_refused_unseen(host: Sidecar, secret: str) -> None:
    """Exit 78, what it must be, and not what it is."""
    host.environ["PALIADIN_CALLBACK_SECRET"] = secret
    code, errors = run_fails(host)
    assert code == 78
    assert "whsec_<base64>" in errors
    assert not secret.removeprefix("whsec_") or secret.removeprefix("whsec_") not in errors


def test_a_state_directory_that_cannot_be_made_is_said(host: Sidecar) -> None:
    """Exit 78, with the path and the variable."""
    (host.base / "file").write_text("")
    host.environ["PALIADIN_STATE_DIR"] = str(host.base / "file" / "state")
    code, errors = run_fails(host)
    assert code == 78
    assert "file/state cannot be made" in errors
    assert "PALIADIN_STATE_DIR" in errors


def test_a_state_directory_that_cannot_be_written_is_said(host: Sidecar) -> None:
    """Exit 78 for the user who may not write there."""
    host.state.mkdir(mode=0o500)
    command = [COMMAND, "run"]
    if os.geteuid() == 0:  # whom only a read-only file system stops
        mounted = f'mount -t tmpfs -o ro none "{host.state}" && exec "$0" run'
        command = ["unshare", "-m", "sh", "-c", mounted, COMMAND]
    done = subprocess.run(command, env=host.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 78, done.stderr
    assert f"{host.state} cannot be written by user {user_name(os.geteuid())}" in done.stderr


def test_an_outbox_that_is_no_database_stops_it_with_the_way_out(
    host: Sidecar, receiver: Receiver
) -> None:
    """Exit 1 and the command; that command moves it aside, and nothing becomes history."""
    host.state.mkdir(mode=0o700)
    (host.state / "outbox.db").write_text("this is no database, " * 100)
    host.answer("t1")
    old = (host.aichat / "t1.txt").stat().st_mtime - 3600
    os.utime(host.aichat / "t1.txt", (old, old))
    code, errors = run_fails(host)
    assert code == 1
    assert "run --quarantine" in errors
    host.start("--quarantine")
    receiver.wait("t1")
    assert len(list(host.state.glob("outbox.db.aside-*"))) == 1


def test_an_outbox_of_a_newer_version_is_left_alone(host: Sidecar) -> None:
    """Exit 78: it would be a downgrade, and is not this version's to judge."""
    host.start()
    host.stop()
    with sqlite3.connect(host.state / "outbox.db") as db:
        db.execute("PRAGMA user_version = 999")
    db.close()
    code, errors = run_fails(host)
    assert code == 78
    assert "version 999" in errors


def test_a_second_daemon_on_one_state_directory_is_refused(host: Sidecar) -> None:
    """Exit 1, and the first one is not disturbed."""
    host.start()
    code, errors = run_fails(host)
    assert code == 1
    assert "another paliadin-sidecar runs" in errors
    assert host.stop() == 0


def test_an_outbox_that_is_removed_under_the_daemon_stops_it(
    host: Sidecar, receiver: Receiver
) -> None:
    """It would commit what nobody ever finds; the next start delivers."""
    host.start()
    host.answer("t0")
    receiver.wait("t0")
    for part in host.state.glob("outbox.db*"):
        part.unlink()
    assert host.wait() == 1
    assert "was removed" in host.output.decode()
    host.answer("t1")
    host.start()
    receiver.wait("t1")
