"""The command as a newcomer types it."""

from __future__ import annotations

import subprocess

from support.sidecar import COMMAND


def test_help_and_version_need_no_configuration() -> None:
    """Also for a person who has just installed it."""
    for args in (["--help"], ["--version"], ["replay", "-h"]):
        done = subprocess.run([COMMAND, *args], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert done.stdout
