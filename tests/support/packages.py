"""Tools of the system that a test needs, where it runs as root."""

from __future__ import annotations

import os
import subprocess

__all__ = ["apt_install"]


def apt_install(packages: set[str]) -> None:
    """Install these, if any."""
    if packages:
        environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends"]
        subprocess.run(["apt-get", "update", "--quiet=2"], check=True, env=environ)
        subprocess.run([*install, *sorted(packages)], check=True, env=environ)
