"""The service on a real systemd, installed, run and removed as the README says.

The tests are one story, in this order in one container: `make check-host`.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import urllib.request
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from support import operate
from support.container import REPOSITORY, Container, install_tools
from support.envfiles import READ
from support.receiver import Receiver
from support.sidecar import TRAILER
from support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to boot a container"),
]

UNIT = "paliadin-sidecar"
AGENT = "paliadin-agent"
OTHERS = 65534
ROOTS = ("/tmp/aichat/paliadin", "/tmp/paliadin")
#: Without a word for it, everything that a unit may have of `/proc/PID/status`' capabilities.
CAP_DAC_READ_SEARCH, CAP_LEASE = 1 << 2, 1 << 28
README = REPOSITORY / "README.md"
UNIT_DROP_INS = f"/etc/systemd/system/{UNIT}.service.d"

#: Prints a turn's answer as the receiver stored it. From inside: SQLite resolves links, and the
#: container's root is one for the kernel alone. Before the first callback there is no table.
_RECEIVED = """
import json, sqlite3, sys
try:
    database = sqlite3.connect("file:/run/receiver/turns.sqlite?mode=ro", uri=True)
    for row in database.execute("SELECT response FROM turns WHERE turn_id = ?", sys.argv[1:]):
        print(json.dumps(row))
except sqlite3.OperationalError as exc:
    sys.exit(0 if str(exc).startswith(("no such table", "unable to open")) else str(exc))
"""


_AUTHORITIES = 'import ssl; print(ssl.create_default_context().cert_store_stats()["x509_ca"])'


def block(name: str, **variables: str) -> str:
    """The README's commands of that name; these variables are set otherwise than there."""
    found = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, name
    return with_variables(found[1], **variables)


def with_variables(script: str, **variables: str) -> str:
    for variable, value in variables.items():
        script, count = re.subn(rf"(?m)^{variable}=\S*", f"{variable}={value}", script)
        assert count == 1, variable
    return script


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return int(free.getsockname()[1])


class Host:
    """The container, its receiver, and the sidecar as an operator sees it."""

    def __init__(self, container: Container) -> None:
        self.run = container.run
        self.root = container.root
        self.port = free_port()
        self.pushed: list[str] = []
        self.receivers = 0  # that were started

    def start_receiver(self, of: str = "paliadin", port: int = 0) -> None:
        """The example, with the service's secret: the new one while two are in use."""
        port = port or self.port
        # A name of its own each time: systemd lets go of one some time after its end.
        self.receivers += 1
        self.run(f"systemctl stop 'of-{of}-*'")
        self.run(
            "umask 077; mkdir -p /run/receiver;"
            f'echo "PALIADIN_CALLBACK_SECRET=$(cut -d " " -f 1 /etc/{of}/callback-secret)"'
            f" >/run/receiver/{of}.env;"
            f"systemd-run --collect --unit=of-{of}-{self.receivers}"
            f" -p EnvironmentFile=/run/receiver/{of}.env"
            " /usr/bin/python3 /src/examples/receiver.py"
            f" 127.0.0.1:{port} /run/receiver/turns.sqlite"
        )
        with socket.socket() as client:
            until("the receiver", lambda: client.connect_ex(("127.0.0.1", port)) == 0)

    def show(self, name: str) -> str:
        """One property of the unit."""
        return self.run(f"systemctl show --value -p {name} {UNIT}").stdout.strip()

    @property
    def pid(self) -> int:
        return int(self.show("MainPID"))

    def wait_active(self, but_not: int = 0) -> int:
        """The process of the unit once it is up, other than that one."""
        return until(
            "the service",
            lambda: self.show("ActiveState") == "active" and self.pid != but_not and self.pid,
        )

    def write(self, turn_id: str, root: str = ROOTS[0]) -> None:
        """An answer, as the agent writes it: for itself alone."""
        self.run(
            f"umask 077; cd {root}; printf '%s' 'Antwort auf {turn_id}{TRAILER}' >{turn_id}.tmp;"
            f"mv {turn_id}.tmp {turn_id}.txt",
            user=AGENT,
        )

    def push(self, turn_id: str, root: str = ROOTS[0]) -> None:
        """Write an answer, and see it arrive whole."""
        self.write(turn_id, root)
        self.wait_received(turn_id)
        self.pushed.append(turn_id)

    def wait_received(self, turn_id: str) -> None:
        until(f"{turn_id} at the receiver", lambda: self.received(turn_id))
        assert self.received(turn_id) == f"Antwort auf {turn_id}{TRAILER}"

    def received(self, turn_id: str) -> str | None:
        found = self.run(f"/usr/bin/python3 -c '{_RECEIVED}' {turn_id}").stdout
        return json.loads(found)[0] if found else None

    def journal(self) -> str:
        return self.run(f"journalctl --sync; journalctl -u {UNIT} -o cat --no-pager").stdout

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.journal().splitlines() if line.startswith("{")]

    def check(self) -> dict[str, tuple[str, str]]:
        """What `check --ping` finds: the worst of each subject."""
        found: dict[str, tuple[str, str]] = {}
        for one in json.loads(self.run("paliadin-sidecar check --ping --json", check=False).stdout):
            if found.get(one["subject"], ("",))[0] != "wrong":
                found[one["subject"]] = (one["level"], one["message"])
        return found

    def accepted(self, turn_id: str) -> list[dict[str, Any]]:
        """The journal's lines about it: one, and another one from each outbox that met it anew."""
        return [
            event
            for event in self.events()
            if event["event"] == "turn.accepted" and event["turn_id"] == turn_id
        ]

    def counts(self) -> dict[str, int]:
        """Deliveries by state."""
        found: dict[str, int] = json.loads(self.run("paliadin-sidecar status --json").stdout)[
            "counts"
        ]
        return found

    def drop_in(self, name: str, text: str) -> None:
        self.run(
            f"mkdir -p /etc/systemd/system/{UNIT}.service.d;"
            f"printf '%s' '[Service]\n{text}\n' >/etc/systemd/system/{UNIT}.service.d/{name}.conf;"
            "systemctl daemon-reload"
        )


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    install_tools()
    with Container(tmp_path_factory.mktemp("container")) as container:
        container.run(f"useradd --create-home --shell /bin/sh {AGENT}")
        yield Host(container)


@pytest.fixture(scope="module")
def before(host: Host) -> str:
    """What of ours is on this machine before anything was installed."""
    return ours(host)


def ours(host: Host) -> str:
    return host.run(
        "find /etc /opt /usr/local /var/lib -xdev -name '*paliadin*' "
        f"-not -path '*{AGENT}*' -not -path '/etc/.*'; getent passwd {UNIT} || true"
    ).stdout


def test_the_readme_s_commands_install_and_start_it(host: Host, before: str) -> None:
    """Pasted as they stand, they end with a service that is ready, enabled and well.

    Also where root's own files are nobody else's to read, as on hardened hosts.
    """
    # A name: that it can be looked up from inside is part of it.
    install = block("install", agent=AGENT, callback=f"http://localhost:{host.port}/callback")
    host.run(f"umask 077\n{install}")
    assert before != ours(host)
    assert host.show("ActiveState") == "active"
    assert host.show("UnitFileState") == "enabled"
    assert host.events()[-1]["event"] == "service.started"
    assert host.show("StatusText") == ""  # it names what is wrong, and nothing is
    host.start_receiver()
    host.run(block("look"))


def test_the_readme_s_first_turn_is_delivered(host: Host) -> None:
    """The line that writes it, and the one that shows it."""
    turn = host.run(f'agent={AGENT}\n{block("first turn")}echo "$turn"').stdout.split()[-1]
    show = f"turn={turn}\n{block('first turn: delivered')}"
    until("delivery", lambda: "delivery.delivered" in host.run(show, check=False).stdout)
    assert host.received(turn) == "It works.\n"
    host.pushed.append(turn)


def test_systemd_reads_environment_files_as_the_commands_do(host: Host) -> None:
    """Each text of the parser's own test, as a unit gets it."""
    units = []
    for number, (text, _) in enumerate(READ):
        units.append(f"env-{number}.service")
        (host.root / f"run/{units[-1]}.env").write_bytes(text.encode())
        (host.root / f"run/systemd/system/{units[-1]}").write_text(
            f"[Service]\nType=oneshot\nEnvironmentFile=/run/{units[-1]}.env\n"
            f"ExecStart=/bin/sh -c 'cat /proc/self/environ >/run/{units[-1]}.out'\n"
        )
    host.run(f"systemctl daemon-reload; systemctl start {' '.join(units)}")
    for unit, (text, said) in zip(units, READ, strict=True):
        environ = (host.root / f"run/{unit}.out").read_text().split("\0")
        found = dict(line.split("=", 1) for line in environ if line[1:2] == "=")
        assert found == said, text


def test_systemd_finds_nothing_to_say_against_the_unit(host: Host) -> None:
    """Not a word from `verify`, and an exposure of 2.0 at most."""
    unit = f"/etc/systemd/system/{UNIT}.service"
    found = host.run(f"systemd-analyze verify {unit}")
    assert found.stdout + found.stderr == ""
    found = host.run(f"systemd-analyze security --offline=true --threshold=20 --no-pager {unit}")
    assert "Overall exposure" in found.stdout


def test_turns_of_both_roots_arrive(host: Host) -> None:
    """From the agent's 0600 files in its 0700 directories to the receiver."""
    host.push("t1")
    host.push("t2", ROOTS[1])
    until("three", lambda: host.counts()["delivered"] == 3)


@pytest.mark.parametrize("engine", ["watchfiles", "inotify"])
def test_the_events_of_either_engine_come_through(host: Host, engine: str) -> None:
    """Scans would come a minute apart, later than anybody here waits: the hardening costs none."""
    metrics = f"127.0.0.1:{free_port()}"
    variables = f"PALIADIN_EVENTS={engine} PALIADIN_RESCAN_S=60 PALIADIN_METRICS={metrics}"
    host.drop_in("events", f"Environment={variables}")
    host.run(f"systemctl restart {UNIT}")
    for number in range(3):  # the first may be found by the scan that follows the arming
        host.push(f"{engine}-{number}", ROOTS[number % 2])
    assert not [event for event in host.events() if event["event"] == "watch.failed"]
    with urllib.request.urlopen(f"http://{metrics}/metrics") as scrape:
        assert b'attempt_duration_seconds_count{result="2xx"} 3.0\n' in scrape.read()
    host.run(
        f"rm /etc/systemd/system/{UNIT}.service.d/events.conf; systemctl daemon-reload;"
        f"systemctl restart {UNIT}"
    )


def test_a_callback_over_tls(host: Host) -> None:
    """From inside the unit, with an authority of one's own beside the system's."""
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    pem = authority.cert_pem.bytes().decode()
    with Receiver(tls=tls) as receiver:
        host.run(
            f"cd /etc/paliadin; printf '%s' '{pem}' >ca.pem; printf 'PALIADIN_%s\\n'"
            f" CALLBACK_URL={receiver.url} CALLBACK_CA_FILE=/etc/paliadin/ca.pem >tls.env"
        )
        host.drop_in("tls", "EnvironmentFile=/etc/paliadin/tls.env")
        host.run(f"systemctl restart {UNIT}")
        host.write("tls")
        request = receiver.wait("tls")
        assert request.json["data"]["response"] == f"Antwort auf tls{TRAILER}"
        receiver.verify_all(host.run("cat /etc/paliadin/callback-secret").stdout.strip())
        until("the count", lambda: host.counts()["pending"] == 0)
        host.pushed.append("tls")
    host.run(
        f"rm /etc/paliadin/ca.pem /etc/paliadin/tls.env; cd /etc/systemd/system/{UNIT}.service.d;"
        f"rm tls.conf; systemctl daemon-reload; systemctl restart {UNIT}"
    )


def test_the_process_has_two_capabilities_and_no_more(host: Host) -> None:
    """A user of its own; and it can get no privilege back."""
    lines = (
        line.split(":\t")
        for line in host.run(f"cat /proc/{host.pid}/status").stdout.split("\n")
        if ":\t" in line
    )
    status = dict(lines)
    user = host.run(f"id -u {UNIT}").stdout.strip()
    assert set(status["Uid"].split()) == {user} != {"0"}
    for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh"):
        assert int(status[name], 16) == CAP_DAC_READ_SEARCH | CAP_LEASE, name
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["Groups"].split() in ([], [host.run(f"id -g {UNIT}").stdout.strip()])


def test_what_the_unit_forbids_is_refused_from_inside(host: Host) -> None:
    """The same unit with another program: it can do its job, and nothing else."""
    edits = {
        "^ExecStart=.*": "ExecStart=/opt/paliadin/bin/python /src/tests/systemd/probe.py "
        f"{ROOTS[0]}/t1.txt",
        "^Type=.*": "Type=oneshot",
        "^Watchdog.*": "",
        "^Restart.*": "",
    }
    script = " ".join(f"-e 's|{old}|{new}|'" for old, new in edits.items())
    host.run(
        f"sed {script} systemd/{UNIT}.service >/run/systemd/system/probe.service;"
        "systemctl daemon-reload; systemctl start probe.service"
    )
    found = json.loads(host.run("journalctl --sync; journalctl -u probe -o cat | grep ^{").stdout)
    allowed = (
        "read the answer",
        "lease the answer",
        "write the state",
        "read the credential",
        "sort much",
        "make an internet socket",
    )
    assert {name: found.pop(name) for name in allowed} == dict.fromkeys(allowed, "done")
    assert found == {
        "write the answer": "EROFS",
        "remove the answer": "EROFS",
        "write /tmp": "EROFS",
        "write /var/tmp": "EROFS",
        "write /etc": "EROFS",
        "write another's state": "EROFS",
        "become root": "EPERM",
        "make a user namespace": "EPERM",
        "write and execute memory": "EPERM",
        "make a packet socket": "EAFNOSUPPORT",
        "signal another": "EPERM",
        "see homes": [],
        "see process 1": False,
        "see passwords": False,
        "see devices": False,
        "trust authorities": int(host.run(f"/usr/bin/python3 -c '{_AUTHORITIES}'").stdout),
        "core size": [0, 0],
        "umask": 0o077,
    }


def test_the_agent_s_user_reads_neither_secret_nor_outbox(host: Host) -> None:
    """Not the file, not the credential, not the process's environment or memory."""
    secret = (
        "/etc/paliadin/callback-secret",
        f"/run/credentials/{UNIT}.service/callback-secret",
        f"/var/lib/{UNIT}/outbox.db",
        f"/proc/{host.pid}/environ",
        f"/proc/{host.pid}/mem",
    )
    for path in secret:
        assert host.run(f"head -c1 {path} >/dev/null", check=False).stderr.find("denied") < 0
        found = host.run(f"head -c1 {path}", user=AGENT, check=False)
        assert found.returncode, path
        assert "Permission denied" in found.stderr, path
    assert "whsec_" not in host.run(f"tr '\\0' ' ' </proc/{host.pid}/environ").stdout
    host.run("test -r /etc/paliadin/sidecar.env", user=AGENT)


def test_what_was_killed_comes_back_and_goes_on(host: Host) -> None:
    """SIGKILL, a turn while it is away, another after: all arrive."""
    killed = host.pid
    host.run(f"kill -9 {killed}")
    host.push("t3")
    assert host.wait_active(but_not=killed)
    host.push("t4")
    assert host.show("NRestarts") == "1"


def test_roots_that_are_deleted_and_made_again_are_still_watched(host: Host) -> None:
    """Also the parent, also twice, all from outside of the unit's view of the disk."""
    for turn_id in ("t5", "t6"):
        host.run("rm -r /tmp/aichat /tmp/paliadin")
        until("missing", lambda: host.run("paliadin-sidecar status").stdout.count("missing") == 2)
        host.run("mkdir -p -m 700 /tmp/aichat/paliadin /tmp/paliadin", user=AGENT)
        host.push(turn_id)
        host.push(f"{turn_id}-legacy", ROOTS[1])


def test_roots_that_are_missing_at_the_start_are_found_when_they_come(host: Host) -> None:
    """It is ready without them; systemd-tmpfiles makes them as at boot, for the agent alone."""
    host.run(f"systemctl stop {UNIT}; rm -r /tmp/aichat /tmp/paliadin; systemctl start {UNIT}")
    assert host.show("ActiveState") == "active"
    host.run("systemd-tmpfiles --create --boot")
    for root in ROOTS:
        assert host.run(f"stat -c '%a %U' {root}").stdout == f"700 {AGENT}\n"
    host.push("t7")
    host.push("t8", ROOTS[1])


def test_answers_age_out_and_their_directories_do_not(host: Host) -> None:
    """The installed rule, with one second in the place of seven days."""
    rules = "/etc/tmpfiles.d/paliadin-sidecar.conf"
    assert host.run(f"grep -c 7d {rules}").stdout == "2\n"
    host.run(f"sed s/7d/1s/ {rules} >/run/short.conf")
    files = f"ls {ROOTS[0]} {ROOTS[1]} | grep txt || true"
    assert host.run(files).stdout

    def aged() -> bool:
        host.run("systemd-tmpfiles --clean /run/short.conf")
        return not host.run(files).stdout

    until("empty directories", aged)
    host.run(f"test -d {ROOTS[0]} -a -d {ROOTS[1]}")
    host.push("t9")


def test_a_process_that_hangs_is_replaced_by_the_watchdog(host: Host) -> None:
    """Stopped, it is ended and started again; the journal says why; turns go on."""
    host.drop_in("watchdog", "WatchdogSec=9s")
    host.run(f"systemctl restart {UNIT}")
    hung = host.wait_active()
    host.run(f"kill -STOP {hung}")
    host.write("t10")
    host.wait_active(but_not=hung)
    assert "Watchdog timeout" in host.journal()
    host.push("t10")
    host.push("t11")
    # Not stopped, it lives on: twice the limit without a restart.
    restarts = host.show("NRestarts")
    with pytest.raises(AssertionError, match="waited"):
        until("a restart", lambda: host.show("NRestarts") != restarts, patience_s=19)
    host.run(f"rm /etc/systemd/system/{UNIT}.service.d/watchdog.conf; systemctl daemon-reload")


def test_a_wrong_configuration_is_said_and_not_tried_again(host: Host) -> None:
    """Exit code 78: failed, until somebody mends it."""
    host.drop_in("wrong", "Environment=PALIADIN_WATCH=nowhere")
    assert host.run(f"systemctl restart {UNIT}", check=False).returncode
    assert host.show("ExecMainStatus") == "78"
    # Longer than RestartSec=.
    with pytest.raises(AssertionError, match="waited"):
        until("another try", lambda: host.show("ActiveState") != "failed", patience_s=7)
    assert host.show("SubState") == "failed"
    assert "PALIADIN_WATCH='nowhere'" in host.journal()
    host.run(
        f"rm /etc/systemd/system/{UNIT}.service.d/wrong.conf; systemctl daemon-reload;"
        f"systemctl start {UNIT}"
    )
    host.push("t12")


def test_the_operator_s_commands_work(host: Host) -> None:
    """Those of docs/operate.md: look, rotate the secret, upgrade, make the directories again."""
    host.run(operate.block("first"))
    turn = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11"  # the document's
    host.push(turn)
    host.run("journalctl --sync")
    assert host.run(operate.block("audit")).stdout.count('"delivery.delivered"') == 2
    day = host.run(operate.block("day")).stdout
    assert re.search(r"^ *[0-9]+ delivery\.delivered$", day, re.MULTILINE)
    assert len(re.findall(r"^[0-9]+ [\w-]+$", day, re.MULTILINE)) == 10  # the slowest
    host.run(operate.block("replay"))
    host.run(operate.block("rotate: both"))
    host.push("t15")
    host.start_receiver()
    host.run(operate.block("first"))
    host.push("t16")
    host.run(operate.block("rotate: drop"))
    host.push("t17")
    host.run(operate.block("tmp"))
    host.run(operate.block("flip"))


def test_what_auditors_ask_is_answered_from_the_real_journal(host: Host) -> None:
    """The commands of docs/audit.md; where both places have the same, they say the same."""
    host.run("journalctl --sync")
    journal = operate.block("journal", "audit.md")
    for name in operate.blocks("audit.md"):
        if name.endswith(": journal"):
            said = host.run(journal + operate.block(name, "audit.md")).stdout
            if name.startswith(("twice", "down")):
                ours = operate.block(name.replace("journal", "outbox"), "audit.md")
                assert sorted(said.splitlines()) == sorted(host.run(ours).stdout.splitlines())


#: Where the stand-in for `mail` puts what it sends: the subject, then the text.
_MAIL = """#!/bin/sh
test "$1" = -s && test "$3" = root || exit 1
test ! -e /run/no-mail || exit 1
{ echo "Subject: $2"; cat; } >>/run/mail
"""


def test_somebody_is_told_by_mail(host: Host) -> None:
    """Once that something is wrong, whatever the timer does meanwhile, and once that it is not."""
    host.run(f"cat >/usr/local/bin/mail <<'END'\n{_MAIL}END\nchmod 755 /usr/local/bin/mail")
    host.run(operate.block("watch"))
    host.run(operate.block("watch: mail") + operate.block("watch: drop-in"))
    units = "/etc/systemd/system/paliadin-sidecar-"
    verified = host.run(
        f"systemd-analyze verify {units}watch.service {units}watch.timer {units}tell.service"
    )
    assert verified.stdout + verified.stderr == ""
    exposure = f"--offline=true --threshold=20 --no-pager {units}watch.service"
    host.run(f"systemd-analyze security {exposure}")
    due = host.run("systemctl show --value -p NextElapseUSecRealtime paliadin-sidecar-watch.timer")
    assert due.stdout.strip()
    host.run("systemctl start paliadin-sidecar-watch")  # nothing is wrong
    assert mails(host) == []
    host.run(f"touch /run/no-mail; systemctl stop {UNIT}")
    watch(host)
    until_notified(host, "failed")
    assert mails(host) == []
    host.run("rm /run/no-mail")
    for _ in range(3):
        watch(host)
        until_notified(host, "active")
    (first,) = mails(host)
    name = host.run("hostname").stdout.strip()
    assert first.startswith(
        f"{name}: paliadin-sidecar not running: {UNIT}.service was stopped, or never started\n"
    )
    assert f"systemctl start {UNIT}" in first
    host.run(f"systemctl start {UNIT}")
    host.run("systemctl start paliadin-sidecar-watch")
    until_notified(host, "inactive")
    _, second = mails(host)
    assert second.startswith(f"{name}: paliadin-sidecar is well again\n")


def watch(host: Host) -> None:
    """What the timer does, while something is wrong."""
    assert host.run("systemctl start paliadin-sidecar-watch", check=False).returncode


def until_notified(host: Host, state: str) -> None:
    until(
        f"the unit that notifies is {state}",
        lambda: (
            host.run("systemctl is-active paliadin-sidecar-tell", check=False).stdout.strip()
            == state
        ),
    )


def mails(host: Host) -> list[str]:
    return host.run("touch /run/mail; cat /run/mail").stdout.split("Subject: ")[1:]


def test_somebody_is_told_by_a_web_hook(host: Host) -> None:
    """The same, as JSON, whose address is in no process list and in no unit."""
    with Receiver() as receiver:
        host.run(with_variables(operate.block("watch: hook"), hook=receiver.url))
        host.run(f"systemctl daemon-reload; systemctl stop {UNIT}")
        watch(host)
        until_notified(host, "active")
        host.run(f"systemctl start {UNIT} && systemctl start paliadin-sidecar-watch")
        until_notified(host, "inactive")
        wrong, well = (json.loads(request.body) for request in receiver.requests)
    assert wrong["cause"].endswith("was stopped, or never started")
    assert well == {"cause": None, "problems": []}
    assert host.run("stat -c %a /etc/paliadin/hook").stdout == "600\n"
    assert (
        receiver.url not in host.run("cat /etc/systemd/system/paliadin-sidecar-tell.service").stdout
    )


def test_the_way_back_is_from_the_last_upgrade(host: Host) -> None:
    """After two of them; what came since then is sent again, under its ids."""
    host.run(operate.block("upgrade"))
    host.push("t18")
    host.run(operate.block("upgrade"))
    accepted = len(host.accepted("t18"))
    host.push("later")
    host.run(operate.block("back"))
    until("the later one", lambda: len(host.accepted("later")) == 2)
    assert len(host.accepted("t18")) == accepted
    assert host.run("paliadin-sidecar status").returncode == 0
    host.run("test ! -e /var/lib/paliadin-sidecar/paliadin-sidecar")


def test_the_doctor_needs_no_daemon(host: Host) -> None:
    """While it is down, which is wrong, the secret is the file's, and the receiver is asked."""
    host.run(f"systemctl stop {UNIT}")
    found = host.check()
    host.run(f"systemctl start {UNIT}")
    assert {subject for subject, (level, _) in found.items() if level == "wrong"} == {"daemon"}
    assert found["daemon"][1].endswith(f"systemctl start {UNIT}.service")
    assert found["ping"][0] == "ok"


#: A mistake that an operator makes, what undoes it, and what leads to it.
MISTAKES = {
    "installed under umask 077": ("chmod 700 /opt/paliadin", "chmod 755 /opt/paliadin", "203/EXEC"),
    "systemd-sysusers forgotten": (
        (
            f"mkdir -p /etc/systemd/system/{UNIT}.service.d;"
            "printf '[Service]\\nUser=nobody-here\\n'"
            f" >/etc/systemd/system/{UNIT}.service.d/user.conf; systemctl daemon-reload"
        ),
        f"rm /etc/systemd/system/{UNIT}.service.d/user.conf; systemctl daemon-reload",
        "There is no user nobody-here on this host",
    ),
    "a comment behind a value": (
        "echo 'PALIADIN_QUIET_S=7   # seconds' >>/etc/paliadin/sidecar.env",
        "sed -i /QUIET_S=7/d /etc/paliadin/sidecar.env",
        "PALIADIN_QUIET_S='7   # seconds': must be a number",
    ),
    "an authority that the unit does not see": (
        (
            "cp /etc/ssl/certs/ca-certificates.crt /root/ca.pem;"
            "echo PALIADIN_CALLBACK_CA_FILE=/root/ca.pem >>/etc/paliadin/sidecar.env"
        ),
        "sed -i /CA_FILE=.root/d /etc/paliadin/sidecar.env; rm /root/ca.pem",
        "PALIADIN_CALLBACK_CA_FILE='/root/ca.pem'",
    ),
    "no secret": (
        "mv /etc/paliadin/callback-secret /run/",
        "mv /run/callback-secret /etc/paliadin/",
        "LoadCredential=",
    ),
    "a typing error in a drop-in": (
        (
            f"mkdir -p /etc/systemd/system/{UNIT}.service.d;"
            "printf '[Servce]\\nEnvironment=A=1\\n[Service]\\nExecStart=/bin/true\\n'"
            f" >/etc/systemd/system/{UNIT}.service.d/typo.conf; systemctl daemon-reload;"
            f"systemctl stop {UNIT}"
        ),
        f"rm /etc/systemd/system/{UNIT}.service.d/typo.conf; systemctl daemon-reload",
        "cannot be loaded",
    ),
    "started too often": (
        (
            f"mkdir -p /etc/systemd/system/{UNIT}.service.d;"
            "printf '[Unit]\\nStartLimitIntervalSec=60\\nStartLimitBurst=1\\n[Service]\\n"
            "ExecStartPre=/bin/false\\n'"
            f" >/etc/systemd/system/{UNIT}.service.d/limit.conf; systemctl daemon-reload;"
            f"systemctl restart {UNIT} || true"
        ),
        f"rm /etc/systemd/system/{UNIT}.service.d/limit.conf; systemctl daemon-reload",
        f"systemctl reset-failed {UNIT}.service; ",
    ),
    "a file of root's in the state directory": (
        f"systemctl stop {UNIT}; chown root /var/lib/{UNIT}/outbox.db",
        f"chown {UNIT} /var/lib/{UNIT}/outbox.db",
        "chown -R",
    ),
    "a state directory where the unit may not write": (
        "echo PALIADIN_STATE_DIR=/var/lib/other >>/etc/paliadin/sidecar.env",
        "sed -i /STATE_DIR=.var.lib.other/d /etc/paliadin/sidecar.env",
        "/var/lib/other cannot be made (its file system is read-only)",
    ),
    "no environment file": (
        "mv /etc/paliadin/sidecar.env /run/",
        "mv /run/sidecar.env /etc/paliadin/",
        "EnvironmentFile= (/etc/paliadin/sidecar.env)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_leads_to_its_cure(host: Host, mistake: str) -> None:
    """`status` and `check` name it, while systemd starts the unit again or gave it up."""
    make, undo, said = MISTAKES[mistake]
    host.run(f"{make}; systemctl restart {UNIT}", check=False)
    try:
        for command in ("status", "check"):
            done = host.run(f"paliadin-sidecar {command}", check=False)
            assert done.returncode
            assert said in done.stdout + done.stderr, command
            assert f"systemctl restart {UNIT}.service" in done.stdout + done.stderr, command
            assert "make one with" not in done.stdout + done.stderr
    finally:
        host.run(f"{undo}; systemctl restart {UNIT}")
    assert host.run("paliadin-sidecar check").returncode == 0


def test_a_correction_without_a_restart_is_named(host: Host) -> None:
    """The variable, and the command; after it all is well."""
    host.run(
        "cp /etc/paliadin/sidecar.env /run; echo PALIADIN_QUIET_S=6 >>/etc/paliadin/sidecar.env"
    )
    level, message = host.check()["daemon"]
    assert level == "wrong"
    assert message == (
        f"still runs with another value of PALIADIN_QUIET_S: systemctl restart {UNIT}.service"
    )
    host.run(message.rpartition(": ")[2])
    assert host.check()["daemon"][0] == "ok"
    host.run(f"cp /run/sidecar.env /etc/paliadin/; systemctl restart {UNIT}")
    # The secret as well, of which systemd gave the daemon a copy.
    secret = "/etc/paliadin/callback-secret"
    host.run(f"cp -a {secret} /run/; echo whsec_$(head -c 32 /dev/urandom | base64) >{secret}")
    message = host.check()["daemon"][1]
    assert message.startswith("still runs with another value of PALIADIN_CALLBACK_SECRET: ")
    host.run(f"cp -a /run/callback-secret {secret}")
    assert host.check()["daemon"][0] == "ok"


def test_a_second_instance_serves_another_app(host: Host) -> None:
    """The commands of docs/operate.md: its own directories, secret, outbox, receiver and end."""
    port = free_port()
    host.run(
        f"cp /etc/paliadin/sidecar.env /run; printf 'PALIADIN_%s\\n' MAX_BYTES=1000 QUIET_S=600"
        f" METRICS=127.0.0.1:{free_port()} >>/etc/paliadin/sidecar.env; systemctl restart {UNIT}"
    )
    script = with_variables(operate.block("second"), agent=AGENT)
    url = f"http://127.0.0.1:{port}/callback"
    script, count = re.subn(r"https://hugo\S*", url, script)
    assert count == 1
    host.run(script)
    host.start_receiver("paliadin-hugo", port)
    host.run("paliadin-sidecar check --ping --env-file /etc/paliadin-hugo/sidecar.env")
    host.write("h1", "/tmp/aichat/hugo")
    host.wait_received("h1")
    # Nothing of the first one's file is this one's.
    host.run("head -c 2000 /dev/zero | tr '\\0' x >/tmp/aichat/hugo/h2.txt", user=AGENT)
    until("a larger one, by its quiet", lambda: host.received("h2"))
    host.run(operate.block("second: upgrade"))
    host.run("cp /run/sidecar.env /etc/paliadin/sidecar.env; systemctl restart paliadin-sidecar")
    assert '"h1"' not in host.journal()
    host.push("t19")
    host.run(operate.block("second: remove"))
    places = "/etc /opt /tmp /usr/local /var"
    left = host.run(f"find {places} -xdev -name '*paliadin-hugo*'").stdout
    assert left == ""


def test_the_slower_restarts_can_be_had(host: Host) -> None:
    """The README's commands for them: the unit still starts, and a new systemd takes them."""
    host.run(block("backoff") + f"systemctl restart {UNIT}")
    if int(host.run("systemctl --version").stdout.split()[1]) >= 254:
        assert host.show("RestartSteps") == "8"
    host.push("t13")


def test_it_runs_as_the_agent_s_user_where_that_is_wanted(host: Host) -> None:
    """The README's commands for it: no capability is left, and the old outbox goes on."""
    host.run(block("as-agent-user", agent=AGENT))
    assert host.run(f"stat -c %U /proc/{host.pid}").stdout == f"{AGENT}\n"
    assert "CapEff:\t0000000000000000" in host.run(f"cat /proc/{host.pid}/status").stdout
    host.push("t14")
    assert host.counts()["delivered"] == len(host.pushed)
    # Whoever watches it is that user as well, and takes no file away from it.
    drop_ins = "/etc/systemd/system/paliadin-sidecar-watch.service.d"
    host.run(
        f"install -D -m 644 -t {drop_ins} {UNIT_DROP_INS}/as-agent-user.conf;"
        "systemctl daemon-reload; systemctl start paliadin-sidecar-watch"
    )
    assert host.run(f"find /var/lib/{UNIT} ! -user {AGENT}").stdout == ""


def test_the_watch_is_removed(host: Host) -> None:
    """By the commands of docs/operate.md, without a rest."""
    host.run(operate.block("watch: remove"))
    host.run("rm /usr/local/bin/mail")
    left = host.run("find /etc -xdev -name '*sidecar-watch*' -o -name '*sidecar-tell*'").stdout
    assert left == ""


def test_a_stop_is_orderly_and_the_journal_tells_all(host: Host) -> None:
    """Each turn was accepted and delivered once; no answer and no secret is in the journal."""
    host.run(f"systemctl stop {UNIT}")
    assert host.show("ExecMainStatus") == "0"
    assert host.show("Result") == "success"
    events = host.events()
    assert [event["event"] for event in events[-2:]] == ["service.stopping", "service.stopped"]
    for name in ("turn.accepted", "delivery.delivered"):
        printed = {
            event["event_id"]: event["turn_id"] for event in events if event["event"] == name
        }
        # One was accepted again after the way back to an older outbox.
        assert sorted(set(printed.values())) == sorted(host.pushed), name
    journal = host.run(f"journalctl --sync; journalctl -u {UNIT} -o export").stdout
    assert "Antwort auf" not in journal
    assert host.run("cat /etc/paliadin/callback-secret").stdout.strip() not in journal


def test_a_damaged_outbox_is_moved_aside(host: Host) -> None:
    """It does not come up and says why; after the commands of docs/operate.md it does."""
    host.write("t20")
    host.run(f"printf damaged >/var/lib/{UNIT}/outbox.db")
    assert host.run(f"systemctl start {UNIT}", check=False).returncode
    host.run(host.run("paliadin-sidecar status", check=False).stderr.rpartition("ids): ")[2])
    host.wait_received("t20")
    host.run(f"systemctl stop {UNIT}; printf damaged >/var/lib/{UNIT}/outbox.db")
    host.run(f"rm -f /var/lib/{UNIT}/outbox.db-*; systemctl start {UNIT}", check=False)
    host.write("t21")
    host.run(operate.block("damaged"))
    host.wait_received("t21")
    host.wait_received("t20")
    assert not [event for event in host.events() if event["event"] == "turn.history"]


def test_the_readme_s_commands_remove_it(host: Host, before: str) -> None:
    """Nothing of it is left, but the journal and the agent's own files."""
    host.run(block("remove"))
    assert ours(host) == before
    assert host.run(f"systemctl cat {UNIT}", check=False).returncode
