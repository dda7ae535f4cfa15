"""`check` on daemons, units and systems with one thing wrong."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.checking import findings
from support.users import NOBODY, root_only

from paliadin_sidecar.operator.checks import daemon
from paliadin_sidecar.operator.instance import Hosting, Instance
from paliadin_sidecar.operator.systemd_unit import Unit
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from support.sidecar import Sidecar


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


def test_a_variable_that_is_misspelt(host: Sidecar) -> None:
    """It is ignored by the daemon, so it is named here, with the one that was meant."""
    level, message = findings(host, PALIADIN_QUIETS="2")["variable"]
    assert level == "wrong"
    assert message.startswith("PALIADIN_QUIETS is no variable of the sidecar's and is ignored: ")
    assert message.endswith("is it PALIADIN_QUIET_S?")


@pytest.mark.parametrize("places", ["/srv/secret", "-/srv", "+/none -/srv/secret"])
def test_paths_that_a_unit_may_not_reach(host: Sidecar, places: str) -> None:
    """Each file that the daemon needs below one is named; a sign before the path is none of it."""
    watch = "a/b=/srv/secret/answers:c/d=/var/answers"
    settings = Settings.from_environment(host.environ | {"PALIADIN_WATCH": watch})
    unit = Unit("x.service", {"InaccessiblePaths": places})
    (found,) = daemon.what_the_unit_hides(settings, unit)
    assert (found.level, found.subject) == ("wrong", "unit x.service")
    assert "so the daemon does not see /srv/secret/answers: move it" in found.message
    assert found.message.endswith("then: systemctl restart x.service")


def test_a_unit_that_is_not_enabled(host: Sidecar) -> None:
    """It runs until the next boot: that is worth a note."""
    settings = Settings.from_environment(host.environ)
    properties = {"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "disabled"}
    unit = Unit("x.service", properties)
    instance = Instance(alive=False, report=None, unit=unit, hosting=Hosting("x.service"))
    problem, note = daemon.state(settings, instance, owner_named=True)
    assert problem.message.startswith("the daemon does not run: x.service was stopped")
    assert note.message == "nothing starts it at the next boot: systemctl enable x.service"


def test_a_daemon_that_this_user_may_not_see(host: Sidecar) -> None:
    """The state directory's finding says so, and this one nothing."""
    settings = Settings.from_environment(host.environ)
    unseen = Instance(alive=None, report=None, unit=None, hosting=Hosting())
    assert daemon.state(settings, unseen, owner_named=False) == []


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
    assert daemon._limit("none") == "unknown"
    assert daemon._limit("watches").isdigit()


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
    monkeypatch.setattr(daemon, "directory_type", lambda _: "fuse.sshfs")
    found = daemon.read_leases(settings)
    assert [f.level for f in found] == ["note", "note"]
    for finding, root in zip(found, (host.aichat, host.legacy), strict=True):
        assert f"{root}: it is on a file system (fuse.sshfs)" in finding.message
        assert "quiet for 0.5 s (PALIADIN_QUIET_S)" in finding.message


def test_answers_that_are_not_the_owner_s(host: Sidecar) -> None:
    """A link, or another's file, is none that a lease can be tried on."""
    (host.aichat / "t1.txt").symlink_to("/etc/hostname")
    host.answer("t2", root=host.legacy)
    assert findings(host)["read leases"][0] == "ok"
