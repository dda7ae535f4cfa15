"""The command as a newcomer types it."""

from __future__ import annotations

import subprocess
import sys

from support.sidecar import COMMAND


def test_help_and_version_need_no_configuration() -> None:
    """Also for a person who has just installed it."""
    for args in (["--help"], ["--version"], ["replay", "-h"]):
        done = subprocess.run([COMMAND, *args], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert done.stdout


def test_a_command_loads_only_what_it_needs() -> None:
    """Whoever asks for the state every few seconds waits for no TLS, event loop or watcher."""
    code = (
        "import sys; from paliadin_sidecar.operator.cli import main;"
        "main.get_command(None, 'status'); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "paliadin_sidecar.operator.commands.status" in loaded
    heavy = {"anyio", "asyncio", "prometheus_client", "rich", "ssl", "structlog", "watchfiles"}
    others = {name for name in loaded if name.startswith("paliadin_sidecar.operator.commands.")}
    assert not loaded & heavy
    assert others == {"paliadin_sidecar.operator.commands.status"}
