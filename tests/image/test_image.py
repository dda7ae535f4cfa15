"""The image, really built, and run as compose.yaml says: `make check-image`.

No image registry is asked: the base is made of the distribution's packages under the name that
the Dockerfile gives it, and what pip installs was downloaded before.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.packages import apt_install
from support.receiver import Receiver, verifying
from support.sidecar import TRAILER, new_secret
from support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to build and run an image"),
]

REPOSITORY = Path(__file__).parents[2]
TOOLS = ("buildah", "crun", "mmdebstrap", "podman")
#: What `debian:13` in the Dockerfile is made of.
SUITE = "trixie"
PYTHON = "3.13"
IMAGE = "localhost/paliadin-sidecar:test"
#: Users by number: the agent, and the image's own.
AGENT, OWN = 12345, 65532
STATE = "/var/lib/paliadin-sidecar"
CAPABILITIES = 1 << 2 | 1 << 28  # CAP_DAC_READ_SEARCH, CAP_LEASE

#: podman looks at the control groups' version, and some machines have both.
_ON_CGROUP2 = """
umount --recursive --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec "$@"
"""


#: Tries, by number where Python has no name for it, what must be refused, and two that must not.
_FORBIDDEN = """
import ctypes, errno, json, mmap, os, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(*numbers):
    if libc.syscall(*map(ctypes.c_long, numbers)) < 0:
        raise OSError(ctypes.get_errno(), "")
def start():
    thread = threading.Thread(target=int); thread.start(); thread.join()
number = {"x86_64": (304, 272, 101, 321, 135), "aarch64": (265, 97, 117, 280, 92)}
by_handle, unshare, ptrace, bpf, personality = number[os.uname().machine]
everything = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
tried = {
    "open by handle": lambda: call(by_handle, -100, 0, 0),
    "a user namespace": lambda: call(unshare, 0x10000000),
    "trace another": lambda: call(ptrace, 16, 1, 0, 0),
    "load a program": lambda: call(bpf, 0, 0, 0),
    "another personality": lambda: call(personality, 0x0040000),
    "written and executed memory": lambda: mmap.mmap(-1, 4096, prot=everything),
    "a packet socket": lambda: socket.socket(socket.AF_PACKET).close(),
    "set-user-ID": lambda: os.open("/var/lib/paliadin-sidecar/x", os.O_CREAT | os.O_WRONLY, 0o4700),
    "an internet socket": lambda: socket.socket().close(),
    "a thread": start,
}
found = {}
for name, what in tried.items():
    try:
        what()
        found[name] = "done"
    except OSError as exc:
        found[name] = errno.errorcode[exc.errno]
print(json.dumps(found))
"""


class Engine:
    """buildah and podman with a storage of their own.

    Args:
        base: a directory, for all that they keep.
    """

    def __init__(self, base: Path) -> None:
        self._where = (
            f"--root={base}/storage",
            f"--runroot={base}/run",
            "--storage-driver=overlay",
        )

    def buildah(self, *args: str) -> str:
        return _run("buildah", *self._where, *args).stdout.strip()

    def podman(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        podman = ("podman", *self._where, "--cgroup-manager=cgroupfs", *args)
        return _run(
            "unshare", "--mount", "--cgroup", "sh", "-euc", _ON_CGROUP2, "sh", *podman, check=check
        )

    def inspect(self, name: str, kind: str = "container") -> Any:  # noqa: ANN401 - of any shape
        return json.loads(self.podman("inspect", f"--type={kind}", name).stdout)[0]


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """With the image built."""
    packages = {tool for tool in TOOLS if shutil.which(tool) is None}
    if _run("/usr/bin/python3", "-c", "import yaml", check=False).returncode:
        packages.add("python3-yaml")
    apt_install(packages)
    base = tmp_path_factory.mktemp("image")
    engine = Engine(base)
    wheels = base / "wheels"
    pip = (sys.executable, "-m", "pip", "download", "--quiet", f"--dest={wheels}")
    only = ("--only-binary=:all:", f"--python-version={PYTHON}")
    for name in ("sidecar", "report", "build"):
        _run(*pip, *only, "--require-hashes", f"--requirement=requirements/{name}.txt")
    (base / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /mnt/wheels\n")
    _run(
        *("mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates"),
        *(SUITE, f"{base}/base.tar"),
    )
    named = re.search(r"^ARG BASE=(.*)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    assert named
    scratch = engine.buildah("from", "scratch")
    engine.buildah("add", "--quiet", scratch, f"{base}/base.tar", "/")
    engine.buildah("commit", "--quiet", "--rm", scratch, named[1])
    engine.buildah(
        *("build", "--quiet", "--isolation=chroot", "--pull-never", "--format=docker"),
        *(f"--volume={wheels}:/mnt/wheels:ro", f"--secret=id=pip.conf,src={base}/pip.conf"),
        *(f"--tag={IMAGE}", "."),
    )
    yield engine
    engine.podman("rm", "--all", "--force", "--time=0", check=False)
    # buildah leaves its storage mounted on itself.
    _run("umount", "--lazy", f"{base}/storage/overlay", check=False)
    shutil.rmtree(base)


class Host:
    """A host's /tmp with the agent's directories, and the container beside it.

    Args:
        engine: runs it.
        base: an empty directory, root's.
        url: the receiver's.
    """

    def __init__(self, engine: Engine, base: Path, url: str) -> None:
        self.engine = engine
        self.name = self.state = base.name
        self.tmp = base / "tmp"
        self.tmp.mkdir()
        self.tmp.chmod(0o1777)
        self.make_roots()
        self.secret = new_secret()
        self.secret_file = base / "secret"
        self.secret_file.touch(mode=0o600)
        self.secret_file.write_text(self.secret)
        environ = os.environ | {
            "PALIADIN_CALLBACK_URL": url,
            "AGENT_UID": str(AGENT),
            "HOST_LABEL": "mriver",
        }
        places = {"/tmp": self.tmp, "callback-secret": self.secret_file}
        self.options = _as_options(environ, places)

    def make_roots(self) -> None:
        for path in ("aichat", "aichat/paliadin", "paliadin"):
            (self.tmp / path).mkdir(mode=0o700)
            os.chown(self.tmp / path, AGENT, AGENT)

    def start(self, *options: str) -> None:
        self.engine.podman(
            *("run", "--detach", f"--name={self.name}", f"--volume={self.state}:{STATE}"),
            *(*self.options, *options, IMAGE, "run"),
        )
        self.wait_ready()

    def wait_ready(self) -> None:
        def well() -> bool:
            running = self.engine.inspect(self.name)["State"]["Running"]
            assert running, self.engine.podman("logs", self.name)
            return self.probe() == 0

        until("the container's first scan", well)

    def probe(self) -> int:
        """What the image's HEALTHCHECK says now."""
        kind, *command = self.engine.inspect(IMAGE, "image")["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.engine.podman("exec", self.name, *command, check=False).returncode

    def answer(self, turn_id: str) -> None:
        """As the agent writes it: for itself alone."""
        path = self.tmp / "aichat/paliadin" / f"{turn_id}.tmp"
        path.touch(mode=0o600)
        path.write_text(f"Antwort{TRAILER}")
        os.chown(path, AGENT, AGENT)
        path.rename(path.with_suffix(".txt"))

    @property
    def pid(self) -> int:
        return int(self.engine.inspect(self.name)["State"]["Pid"])

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """What `docker compose exec sidecar` runs."""
        return self.engine.podman("exec", self.name, *command, check=False)

    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _as_options(environ: dict[str, str], places: dict[str, Path]) -> list[str]:
    """What compose.yaml says, as podman's options.

    Left out is what needs control groups (`pids_limit`), and who restarts it: that is the test.
    """
    to_json = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)"
    text = re.sub(
        r"\$\{(\w+):\?[^}]*\}",
        lambda match: environ[match[1]],
        (REPOSITORY / "compose.yaml").read_text(),
    )
    read = ["/usr/bin/python3", "-c", to_json]
    compose = json.loads(
        subprocess.run(read, input=text, capture_output=True, text=True, check=True).stdout
    )
    service = compose["services"]["sidecar"]
    bind, state = service["volumes"]
    assert state == f"state:{STATE}"
    assert service["read_only"]
    assert bind["read_only"]
    return [
        *("--network=host", "--cgroups=disabled", "--no-healthcheck", "--ulimit=nproc=1000:1000"),
        *("--read-only", "--read-only-tmpfs=false"),
        *(f"--cap-drop={name}" for name in service["cap_drop"]),
        *(f"--cap-add={name}" for name in service["cap_add"]),
        *(f"--security-opt={option}" for option in service["security_opt"]),
        *(f"--env={name}={value}" for name, value in service["environment"].items()),
        *(f"--ulimit={name}={most}:{most}" for name, most in service["ulimits"].items()),
        f"--stop-timeout={service['stop_grace_period'].rstrip('s')}",
        f"--volume={places[bind['source']]}:{bind['target']}:ro",
        *(f"--volume={places[name]}:/run/secrets/{name}:ro" for name in service["secrets"]),
    ]


@pytest.fixture
def host(engine: Engine, tmp_path: Path, receiver: Receiver) -> Iterator[Host]:
    host = Host(engine, tmp_path, receiver.url)
    yield host
    engine.podman("rm", "--force", "--time=0", "--volumes", host.name, check=False)


def test_the_image_says_how_it_is_run(engine: Engine) -> None:
    """A numeric user, a signal to stop, a probe and labels."""
    image = engine.inspect(IMAGE, "image")
    config = image["Config"]
    assert config["User"] == f"{OWN}:{OWN}"
    assert config["StopSignal"] in {"SIGTERM", "15"}
    assert image["Healthcheck"]["Test"] == ["CMD", "paliadin-sidecar", "status", "--quiet"]
    version = re.search(
        r'^version = "(.*)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert version
    assert config["Labels"]["org.opencontainers.image.version"] == version[1]


def test_the_image_holds_no_tools_to_build_with(engine: Engine) -> None:
    """Neither pip nor a compiler, by name or as a module; nothing of the checkout."""
    look = (
        "for tool in pip pip3 gcc cc g++ ld make setcap; do command -v $tool; done;"
        "python3 -m pip --version; python3 -m ensurepip --version; ls /src /build"
    )
    options = ("--network=none", "--cgroups=disabled", "--no-healthcheck", "--entrypoint=sh")
    limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000")
    found = engine.podman("run", "--rm", *options, *limits, IMAGE, "-c", look, check=False)
    assert found.stdout == ""
    assert found.stderr.count("No module named") == 2, found.stderr


def test_a_turn_that_was_written_on_the_host_arrives(host: Host, receiver: Receiver) -> None:
    """From the agent's 0600 file, by a process with two capabilities that can write nothing."""
    host.start()
    host.answer("t1")
    assert receiver.wait("t1").json["data"]["response"] == f"Antwort{TRAILER}"
    receiver.verify_all(host.secret)
    status = host.status()
    assert set(status["Uid"].split()) == {str(OWN)}
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == CAPABILITIES
    for place in ("/", "/tmp", "/etc", "/opt/paliadin"):
        touch = host.engine.podman("exec", host.name, "touch", f"{place}/x", check=False)
        assert "Read-only file system" in touch.stderr, place


def test_an_operator_looks_in_as_compose_yaml_says(host: Host, receiver: Receiver) -> None:
    """What is checked is what the daemon sees: all of it is well, and the advice is the host's."""
    receiver.behaviour = verifying(host.secret)
    host.start()
    done = host.inside("paliadin-sidecar", "check", "--ping", "--json")
    found = {one["subject"]: one for one in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert found["daemon"]["level"] == "ok"
    assert host.inside("paliadin-sidecar", "status").returncode == 0
    other = ("env", "PALIADIN_QUIET_S=9", "paliadin-sidecar", "check")
    assert "docker compose restart sidecar" in host.inside(*other).stdout


def test_a_damaged_outbox_is_moved_aside_by_what_is_advised(host: Host, receiver: Receiver) -> None:
    """The commands for inside, by the image's shell, as the container's user."""
    host.start()
    host.engine.podman("stop", host.name)
    shell = ("run", "--rm", "--entrypoint=sh", f"--volume={host.state}:{STATE}", *host.options)
    damage = "printf damaged >outbox.db; rm -f outbox.db-*"
    host.engine.podman(*shell, IMAGE, "-c", f"cd {STATE}; {damage}")
    look = ("run", "--rm", "--entrypoint=paliadin-sidecar", f"--volume={host.state}:{STATE}")
    said = host.engine.podman(*look, *host.options, IMAGE, "status", check=False).stderr
    _, _, inner = said.rpartition(" sidecar -c ")
    command = shlex.split(inner.rpartition("; docker compose up -d")[0])
    assert "docker compose stop sidecar; docker compose run --rm --entrypoint sh" in said
    host.engine.podman(*shell, IMAGE, "-c", *command)
    host.engine.podman("start", host.name)
    host.answer("t1")
    receiver.wait("t1")


def test_what_lies_in_the_state_directory_is_not_run(host: Host, receiver: Receiver) -> None:
    """A module of a name that the program imports, put where its outbox is."""
    host.start()
    host.inside("sh", "-c", f"echo 'raise SystemExit(\"ran\")' >{STATE}/click.py")
    for where in ("/", STATE):
        run = ("exec", f"--workdir={where}", host.name, "paliadin-sidecar", "status", "--quiet")
        assert host.engine.podman(*run, check=False).returncode == 0
    host.engine.podman("stop", host.name)
    host.engine.podman("start", host.name)
    host.answer("t1")
    receiver.wait("t1")


def test_the_profile_forbids_what_the_unit_forbids(host: Host, receiver: Receiver) -> None:
    """From inside, and above all to open a file by its handle, past all that is mounted."""
    host.start()
    assert host.status()["Seccomp"] == "2"
    done = host.inside("python-with-capabilities", "-Pc", _FORBIDDEN)
    found = json.loads(done.stdout)
    assert found.pop("an internet socket") == found.pop("a thread") == "done"
    assert set(found.values()) == {"EPERM"}, found


def test_the_profile_permits_no_more_than_the_unit() -> None:
    """By systemd's own lists of system calls, but what an engine needs to start a process."""
    rules = json.loads((REPOSITORY / "seccomp.json").read_text())
    assert rules["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {
        name
        for rule in rules["syscalls"]
        for name in rule["names"]
        if rule["action"] == "SCMP_ACT_ALLOW"
    }
    unit = (REPOSITORY / "systemd/paliadin-sidecar.service").read_text()
    included, excluded = re.findall(r"^SystemCallFilter=~?(.*)$", unit, re.MULTILINE)
    permitted = _system_calls("@default", *included.split()) - _system_calls(*excluded.split())
    engine = {"capset", "fchown", "setgroups", "setresuid", "setuid"}
    later = {"fchmodat2"}  # than the lists of systemd 252
    assert allowed - permitted - later <= engine


def _system_calls(*groups: str) -> set[str]:
    found: set[str] = set()
    said = _run("systemd-analyze", "syscall-filter", *groups).stdout
    for line in said.splitlines():
        name = line.strip()
        if line.startswith(" ") and not name.startswith("#"):
            found |= _system_calls(name) if name.startswith("@") else {name}
    return found


@pytest.mark.parametrize("by", ["watchfiles", "inotify"])
def test_the_events_of_either_engine_come_through(host: Host, receiver: Receiver, by: str) -> None:
    """Scans would come a minute apart, later than anybody here waits."""
    host.start(f"--env=PALIADIN_EVENTS={by}", "--env=PALIADIN_RESCAN_S=60")
    for turn_id in ("t1", "t2", "t3"):  # the first may be found by the scan after the arming
        host.answer(turn_id)
        receiver.wait(turn_id)


def test_it_survives_a_kill(host: Host, receiver: Receiver) -> None:
    """A turn before, one while it is away, one after it was started again as compose would."""
    host.start()
    host.answer("t1")
    receiver.wait("t1")
    os.kill(host.pid, signal.SIGKILL)
    host.engine.podman("wait", host.name)
    host.answer("t2")
    host.engine.podman("start", host.name)
    receiver.wait("t2")
    host.answer("t3")
    receiver.wait("t3")
    # The first one comes twice where it was killed before the acknowledgement was written down.
    assert len({turn.headers["webhook-id"] for turn in receiver.turns}) == 3
    assert len(receiver.of("t2")) == len(receiver.of("t3")) == 1


def test_directories_that_the_host_made_anew_are_still_watched(
    host: Host, receiver: Receiver
) -> None:
    """Their parent is what was mounted."""
    host.start()
    shutil.rmtree(host.tmp / "aichat")
    shutil.rmtree(host.tmp / "paliadin")
    host.make_roots()
    host.answer("t1")
    receiver.wait("t1")


def test_it_stops_in_order_and_the_probe_says_so(host: Host, receiver: Receiver) -> None:
    """Its own end, not the engine's kill."""
    host.start()
    host.engine.podman("stop", host.name)
    assert host.engine.inspect(host.name)["State"]["ExitCode"] == 0
    assert '"service.stopped"' in host.engine.podman("logs", host.name).stdout
    assert host.probe()


def test_the_file_s_capabilities_are_enough_where_the_engine_gives_none(
    host: Host, receiver: Receiver
) -> None:
    """Docker bounds them for a user other than root, and hands none on: so does this."""
    stripped = ("setpriv", "--inh-caps=-all", "--ambient-caps=-all", "python-with-capabilities")
    host.start(f"--entrypoint={json.dumps([*stripped, '-m', 'paliadin_sidecar.operator.cli'])}")
    assert int(host.status()["CapAmb"], 16) == 0
    assert int(host.status()["CapEff"], 16) == CAPABILITIES
    host.answer("t1")
    receiver.wait("t1")


def test_it_runs_as_the_agent_without_capabilities_where_that_is_wanted(
    host: Host, receiver: Receiver
) -> None:
    """As the comment in compose.yaml says."""
    host.state = str(host.tmp.with_name("state"))
    Path(host.state).mkdir(mode=0o700)
    for path in (host.state, host.secret_file):
        os.chown(path, AGENT, AGENT)
    host.options = [option for option in host.options if not option.startswith("--cap-add")]
    host.start(
        *(f"--user={AGENT}", "--entrypoint=paliadin-sidecar", "--security-opt=no-new-privileges")
    )
    assert int(host.status()["CapEff"], 16) == 0
    host.answer("t1")
    receiver.wait("t1")
