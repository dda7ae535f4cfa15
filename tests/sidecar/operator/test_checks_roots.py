"""`check` on roots with one thing wrong: it names it, why it matters, and what mends it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess

import pytest
from support.checking import findings, mend
from support.sidecar import COMMAND, Sidecar
from support.users import NOBODY, root_only

from paliadin_sidecar.host.users import user_name


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
