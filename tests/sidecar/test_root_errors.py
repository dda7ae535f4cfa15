"""The daemon on a root whose file system fails: it is said, the others go on, and it comes back."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.fuse import FuseMount, Op
from support.sidecar import TRAILER
from support.slow import slow

from paliadin_sidecar.intake.roots import Root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.receiver import Receiver
    from support.sidecar import Sidecar

ANSWER = f"Antwort{TRAILER}"


@pytest.fixture
def mount(host: Sidecar) -> Iterator[FuseMount]:
    """The host's aichat root, which FUSE serves."""
    with FuseMount(host.aichat) as mount:
        yield mount
        host.close()


def status(host: Sidecar) -> tuple[int, dict[str, Any]]:
    """Exit code, and what it says of the aichat root; all other problems are none."""
    done = host.typed("status", "--json")
    found = json.loads(done.stdout)
    assert all(str(host.aichat) in problem for problem in found["problems"])
    return done.returncode, found["roots"][0] | {"problems": found["problems"]}


def check(host: Sidecar) -> tuple[str, str]:
    """Level and message of what `check` says of the aichat root; nothing else is wrong."""
    found = json.loads(host.typed("check", "--json").stdout)
    (one,) = (f for f in found if f["subject"].startswith("root aichat"))
    assert [f for f in found if f["level"] == "wrong" and f != one] == []
    return one["level"], one["message"]


@pytest.mark.parametrize(
    (("fails", "shown")),
    [
        ((Op.GETATTR, errno.ENOTCONN), ("looked at", "umount -l")),
        slow((Op.GETATTR, errno.ESTALE), ("looked at", "umount -l")),
        slow((Op.GETATTR, errno.EIO), ("looked at", "dmesg")),
        slow((Op.GETATTR, errno.ELOOP), ("looked at", "dmesg")),
        ((Op.OPENDIR, errno.EACCES), ("opened", "CAP_DAC_READ_SEARCH")),
        slow((Op.READDIR, errno.EIO), ("listed", "dmesg")),
        slow((Op.READDIR, errno.ENAMETOOLONG), ("listed", "PALIADIN_WATCH")),
    ],
    ids=str,
)
def test_a_root_that_fails_and_recovers(
    host: Sidecar,
    receiver: Receiver,
    mount: FuseMount,
    fails: tuple[Op, int],
    shown: tuple[str, str],
) -> None:
    """An event, `status` and `check` report it, with why and since when; the rest goes on."""
    (op, error), (why, mend) = fails, shown
    mount.fail(op, error=error)
    host.start()
    event = host.wait_event("root.unreadable", backend="aichat")
    assert event["why"] == f"{host.aichat} cannot be {why} ({os.strerror(error)})"
    host.answer("t1", root=host.legacy)
    receiver.wait("t1")
    code, root = status(host)
    assert (code, root["state"], root["why"]) == (1, "unreadable", event["why"])
    assert root["since"].endswith("Z")
    assert f"{event['why']} (since " in root["problems"][0]
    level, message = check(host)
    assert level == "wrong"
    assert message.startswith(event["why"])
    assert mend in message

    (mount.files / "t2.txt").write_text(ANSWER)
    mount.fail()
    host.wait_event("root.armed", backend="aichat")
    receiver.wait("t2")
    assert status(host)[0] == 0
    assert check(host)[0] == "ok"
    assert len(host.events("root.unreadable")) == 1


def test_a_root_that_fails_later(host: Sidecar, receiver: Receiver, mount: FuseMount) -> None:
    """The listing of a root that was armed fails: it is no longer armed, and then again."""
    host.start()
    host.wait_event("root.armed", backend="aichat")
    for n in (1, 2):
        mount.fail(Op.READDIR)
        (mount.files / f"t{n}.txt").write_text(ANSWER)
        host.wait_event("root.unreadable", count=n, backend="aichat")
        assert receiver.of(f"t{n}") == []
        mount.fail()
        host.wait_event("root.armed", count=n + 1, backend="aichat")
        receiver.wait(f"t{n}")


def test_a_root_whose_server_dies(host: Sidecar, receiver: Receiver, mount: FuseMount) -> None:
    """The daemon lives, also with a file of that root that it had opened and still waits for."""
    host.start()
    half = mount.files / "t1.txt"
    half.touch()
    (mount.files / "t2.txt").write_text(ANSWER)
    receiver.wait("t2")
    mount.die()
    event = host.wait_event("root.unreadable", backend="aichat")
    # The latter where a request was on its way.
    dead = [os.strerror(number) for number in (errno.ENOTCONN, errno.ECONNABORTED)]
    assert any(words in event["why"] for words in dead), event["why"]
    host.answer("t3", root=host.legacy)
    receiver.wait("t3")
    mount.unmount()
    half.write_text(ANSWER)
    mount.serve()
    host.wait_event("root.armed", count=2, backend="aichat")
    receiver.wait("t1")
    assert host.process is not None
    assert host.process.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["watchfiles", "inotify"])
def test_a_root_that_hangs(
    host: Sidecar, receiver: Receiver, mount: FuseMount, engine: str
) -> None:
    """It is reported, the other root and the commands go on, and what it holds is taken later.

    Also where it hangs at the start, and with a file that is looked at.
    """
    host.environ["PALIADIN_EVENTS"] = engine
    mount.hang()
    host.start()
    event = host.wait_event("root.unreadable", backend="aichat")
    assert event["why"] == f"{host.aichat} does not answer"
    host.answer("t1", root=host.legacy)
    receiver.wait("t1")
    mount.resume()
    host.wait_event("root.armed", backend="aichat")
    (mount.files / "t2.txt").write_text("half")
    mount.hang()
    host.wait_event("root.unreadable", count=2, backend="aichat")
    host.answer("t3", root=host.legacy)
    receiver.wait("t3")
    code, root = status(host)
    assert (code, root["state"]) == (1, "unreadable")
    level, message = check(host)
    assert level == "wrong"
    assert message.startswith(event["why"])
    assert f"findmnt -T {host.aichat}" in message
    assert message.endswith(f"umount -f {host.aichat}; umount -l {host.aichat}")
    (mount.files / "t2.txt").write_text(ANSWER)
    mount.resume()
    receiver.wait("t2")
    assert status(host)[0] == 0
    mount.hang()
    host.wait_event("root.unreadable", count=3, backend="aichat")
    command = message.rpartition(": ")[2]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    host.answer("t4")
    receiver.wait("t4")


def test_history_of_a_root_that_could_not_be_listed(
    host: Sidecar, receiver: Receiver, mount: FuseMount
) -> None:
    """A root is met when it can be listed: what was old then is history, and not pushed."""
    old = mount.files / "t1.txt"
    old.write_text(ANSWER)
    os.utime(old, (time.time() - 3600,) * 2)
    mount.fail(Op.READDIR)
    host.start()
    host.wait_event("root.unreadable", backend="aichat")
    mount.fail()
    host.wait_event("turn.history", turn_id="t1")
    (mount.files / "t2.txt").write_text(ANSWER)
    receiver.wait("t2")
    assert receiver.of("t1") == []


@pytest.mark.parametrize("op", [Op.LOOKUP, Op.OPEN, Op.READ], ids=lambda op: op.name)
@pytest.mark.parametrize(
    "error",
    [errno.EIO, slow(errno.ESTALE), slow(errno.ELOOP), slow(errno.ENOTCONN)],
    ids=errno.errorcode.get,
)
def test_a_file_that_fails(
    host: Sidecar, receiver: Receiver, mount: FuseMount, op: Op, error: int
) -> None:
    """One that cannot be looked at, opened or read is reported, and accepted when it can be."""
    mount.fail(op, error=error)
    (mount.files / "t1.txt").write_text(ANSWER)
    host.start()
    event = host.wait_event("turn.stalled", turn_id="t1", why="unreadable")
    assert event["detail"] == errno.errorcode[error]
    mount.fail()
    receiver.wait("t1")


def test_a_mount_that_another_user_serves(host: Sidecar, tmp_path: Path) -> None:
    """Its server says whatever it likes, also that the directory is the owner's."""
    with FuseMount(tmp_path / "mount", user=54321) as mount:
        root = Root(mount.path, os.geteuid())
        assert root.check() == "untrusted"
        assert root.why == (
            f"{mount.path} is a FUSE mount that user 54321 serves: umount {mount.path}"
        )
        mount.unmount()
        assert root.check() == "armed"
        root.close()
