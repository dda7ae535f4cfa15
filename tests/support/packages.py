"""Tools of the system that a test needs, where it runs as root."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def apt_install(packages: set[str]) -> None:
    """Install these, if any."""
    if packages:
        environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends"]
        subprocess.run(["apt-get", "update", "--quiet=2"], check=True, env=environ)
        subprocess.run([*install, *sorted(packages)], check=True, env=environ)


def apt_fetch(package: str, to: Path) -> None:
    """Unpack its files there and install nothing: some packages start a service."""
    subprocess.run(["apt-get", "update", "--quiet=2"], check=True)
    subprocess.run(["apt-get", "download", "--quiet=2", package], check=True, cwd=to)
    (archive,) = to.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", archive, to], check=True)
