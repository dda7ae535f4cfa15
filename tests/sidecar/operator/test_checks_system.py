"""`check` on systems without file events or read leases."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.checking import findings
from support.users import NOBODY, root_only

from paliadin_sidecar.operator.checks import system
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from support.sidecar import Sidecar


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
