"""What all commands have in common."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from support.sidecar import COMMAND, Sidecar
from support.users import NOBODY, root_only

if TYPE_CHECKING:
    from pathlib import Path


def test_commands_without_an_outbox_say_where_they_looked(host: Sidecar) -> None:
    """Only `run` makes one."""
    for command in (["status"], ["turns"], ["show", "t1"], ["replay", "t1"]):
        done = host.typed(*command)
        assert done.returncode == 1
        assert f"There is no outbox in {host.state}" in done.stderr
    assert not host.state.exists()


def test_the_commands_read_a_file_of_variables(delivered: Sidecar, tmp_path: Path) -> None:
    """--env-file fills in what the environment does not say."""
    path = tmp_path / "sidecar.env"
    path.touch(mode=0o600)  # it holds the secret
    path.write_text(
        "# a comment\n"
        + "".join(f'{k}="{v}"\n' for k, v in delivered.environ.items() if "PALIADIN" in k)
    )
    bare = {"PATH": delivered.environ["PATH"]}

    def command(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *args], env=bare, capture_output=True, text=True, check=False
        )

    assert command("status", "--env-file", str(path)).returncode == 0
    assert command("check", "--env-file", str(path)).returncode == 0
    missing = command("status", "--env-file", str(tmp_path / "none"))
    assert missing.returncode == 78
    assert "does not exist" in missing.stderr


@root_only
def test_who_may_not_read_is_told_who_may(host: Sidecar) -> None:
    """The line to type stands in the message."""
    host.start()
    host.stop()
    code = (
        "import sys; from paliadin_sidecar.operator.cli import main;"
        "sys.argv[0] = 'paliadin-sidecar'; main()"
    )
    ordinary = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    for command in ("status", "turns"):
        done = subprocess.run(
            [*ordinary, COMMAND.replace("paliadin-sidecar", "python"), "-c", code, command],
            env=host.environ | {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""},
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert "may not be read by this user" in done.stderr
        assert f"Try: sudo -u root paliadin-sidecar {command}" in done.stderr
