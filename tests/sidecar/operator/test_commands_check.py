"""`check`: its output and its exit code."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from support.checking import findings
from support.receiver import Receiver, Reply, verifying

from paliadin_sidecar.operator.checks import receiver as receiver_check

if TYPE_CHECKING:
    from support.sidecar import Sidecar


def test_a_good_host(host: Sidecar) -> None:
    """Nothing is wrong, and each thing that was looked at is listed."""
    host.start()
    host.answer("t1")
    host.wait_event("delivery.delivered")
    found = findings(host)
    found.pop("outbox's file", None)  # a note, where the tests run in memory or on layers
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


def test_check_of_a_good_host(host: Sidecar, receiver: Receiver) -> None:
    """Exit 0; --ping sends a signed ping and says what came back."""
    receiver.behaviour = verifying(host.secret)
    done = host.typed("check", "--ping", "--json")
    findings = {f["subject"]: f for f in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert findings["ping"]["message"].startswith("204 after")
    assert receiver.pings[0].json["data"] == {"host": "mriver"}
    assert "can be trusted" in host.typed("check").stdout


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(401), "is PALIADIN_CALLBACK_SECRET the same"),
        (Reply(404), "no such route"),
        (Reply(500), "status 500"),
        (Reply(how="reset"), "reset"),
        (Reply(204, {"date": "Sun, 22 Nov 2020 08:00:00 GMT"}), "timedatectl set-ntp true"),
    ],
)
def test_check_says_what_the_receiver_s_answer_means(
    host: Sidecar, receiver: Receiver, reply: Reply, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1 and what mends it."""
    monkeypatch.setattr(receiver_check, "_PROBE_S", 0.2)
    receiver.behaviour = lambda _: reply
    done = host.typed("check", "--ping")
    assert done.returncode == 1
    assert says in " ".join(done.stdout.split())
    first, *_ = done.stdout.splitlines()
    took_all = "WRONG: what answers takes a wrong signature (204)"
    assert first.startswith((took_all, "WRONG: turns wait for the receiver ("))
    assert "?" not in first


def test_the_first_line_says_the_cause(host: Sidecar, receiver: Receiver) -> None:
    """One sentence for whoever was woken by it."""
    receiver.behaviour = lambda _: Reply(401)
    first, *_ = host.typed("check", "--ping").stdout.splitlines()
    assert first == "WRONG: turns wait for the receiver (401): it does not accept the signature"
    receiver.behaviour = verifying(host.secret)
    first, *_ = host.typed("check", "--ping").stdout.splitlines()
    assert first == "nothing is wrong"
    receiver.behaviour = lambda _: Reply(204)
    first, *_ = host.typed("check", "--ping").stdout.splitlines()
    assert first.startswith("WRONG: what answers takes a wrong signature (204), so it is not")
    receiver.behaviour = lambda _: Reply(401, {"date": "Sun, 22 Nov 2020 08:00:00 GMT"})
    first, *_ = host.typed("check", "--ping").stdout.splitlines()
    assert first.startswith("WRONG: clock: is +")
    host.aichat.chmod(0o777)
    first, *_ = host.typed("check", "--ping").stdout.splitlines()
    assert first.startswith("WRONG: root aichat/paliadin")
    assert "chmod" not in first


def test_check_of_a_bad_host(host: Sidecar, receiver: Receiver) -> None:
    """Each finding says what is wrong and what mends it."""
    host.aichat.chmod(0o777)
    host.legacy.rmdir()
    host.state.mkdir()
    host.state.chmod(0o755)
    done = host.typed("check")
    text = " ".join(done.stdout.split())
    assert done.returncode == 1
    assert f"chmod o-w {host.aichat}" in text
    assert f"{host.legacy} does not exist" in text
    assert f"chmod 700 {host.state}" in text


def test_check_of_a_bad_configuration(host: Sidecar) -> None:
    """All errors at once, exit 78."""
    done = host.typed("check", PALIADIN_CALLBACK_URL="", PALIADIN_QUIET_S="x")
    assert done.returncode == 78
    assert "PALIADIN_CALLBACK_URL is not set" in done.stderr
    assert "PALIADIN_QUIET_S='x'" in done.stderr


def test_tools_that_these_tests_need() -> None:
    """Without them the tests above would say less than they seem to."""
    assert all(shutil.which(tool) for tool in ("unshare", "setpriv"))
