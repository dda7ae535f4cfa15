"""A real systemd, booted on this machine's own files; what it changes there is forgotten.

`systemd-nspawn` on an overlay of `/` in memory, with namespaces and a control group tree of its
own, so that it needs no systemd outside. The network is the machine's. Needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self

from support.packages import apt_install
from support.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[2]
_TOOLS = {
    "systemd-nspawn": "systemd-container",
    "systemd-analyze": "systemd",
    "dbus-daemon": "dbus",
    "unshare": "util-linux",
    "jq": "jq",  # docs/operate.md's
}

#: All mounts are in the namespace of `unshare` and go with it. `$1` is a directory, `$2` the id.
#: The services of this machine's own are left out: they are wanted by a later target.
_BOOT = f"""
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
echo "$2" >"$1/root/etc/machine-id"
mkdir -p "$1/root/src"
umount --recursive --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec systemd-nspawn --quiet --boot --console=pipe --register=no --keep-unit \
    --directory="$1/root" --bind-ro="{REPOSITORY}:/src" -- systemd.unit=basic.target
"""


def install_tools() -> None:
    """What the container needs, by apt where it is missing."""
    packages = {package for tool, package in _TOOLS.items() if shutil.which(tool) is None}
    # The system's own Python: another one may be where a hardened service cannot see it.
    if subprocess.run(["/usr/bin/python3", "-c", "import ensurepip"], check=False).returncode:
        packages.add("python3-venv")
    apt_install(packages)


class Container:
    """Boots on entry, is gone on exit.

    Args:
        base: an empty directory.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._log = base.with_suffix(".log")

    def __enter__(self) -> Self:
        unshare = ["unshare", "--mount", "--pid", "--cgroup", "--fork", "--kill-child"]
        boot = ["sh", "-euc", _BOOT, "boot", str(self._base), uuid.uuid4().hex]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*unshare, "--mount-proc", *boot],
                env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._leader = self._booted("its first process", self._find_leader)
            self._booted("its systemd", (self.root / "run/systemd/private").exists)
            self.run("systemctl is-system-running --wait || true")  # a failed unit is not ours
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_S)

    @property
    def root(self) -> Path:
        """Its file system, seen from here."""
        return Path(f"/proc/{self._leader}/root")

    def run(
        self, script: str, *, user: str = "root", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell script inside, in the checkout's directory."""
        # What says to pip where packages are on this machine is all that goes in.
        environ = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        enter = ["nsenter", f"--target={self._leader}", "--all"]
        done = subprocess.run(
            [*enter, "runuser", "-u", user, "--", "sh", "-euc", f"cd /src\n{script}"],
            env={"PATH": path, "LANG": "C.UTF-8", **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done

    def _booted(self, what: str, condition: Callable[[], int | bool]) -> int:
        def met() -> int | bool:
            assert self._process.poll() is None, self._log.read_text(errors="replace")
            return condition()

        return until(f"the container's {what}", met)

    def _find_leader(self) -> int:
        # Number 1 in the namespace below that of `unshare`.
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                status = dict(
                    line.split(":\t", 1) for line in (entry / "status").read_text().splitlines()
                )
            except (OSError, ValueError):
                continue  # it ended while we looked
            pids = status["NSpid"].split()
            if pids[-1] == "1" and len(pids) > 2 and self._is_ours(int(status["PPid"])):
                return int(entry.name)
        return 0

    def _is_ours(self, pid: int) -> bool:
        while pid > 1:
            if pid == self._process.pid:
                return True
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return False
