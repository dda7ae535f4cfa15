"""What `check` says of a host, and what is done about it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from support.sidecar import COMMAND, Sidecar


def findings(
    host: Sidecar, *before: str, shell: str = "", **environ: str
) -> dict[str, tuple[str, str]]:
    """Level and message by the first two words of the subject.

    `before` is what starts the command, `shell` what is done first where it is started.
    """
    command = [COMMAND, "check", "--json"]
    if shell:
        command = ["sh", "-ec", f'{shell}\nexec "$@"', "sh", *command]
    if before or shell:
        done = subprocess.run(
            [*before, *command],
            env=host.environ | environ, capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
    else:
        done = host.typed(*command[1:], **environ)
    assert "Traceback" not in done.stderr, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    wrong = any(one["level"] == "wrong" for one in found)
    assert done.returncode == (int(wrong) or 0) or done.returncode == 78
    return {" ".join(f["subject"].split()[:2]): (f["level"], f["message"]) for f in found}


def mend(message: str) -> None:
    """Type what a finding says after its last colon."""
    subprocess.run(["sh", "-ec", message.rpartition(": ")[2]], check=True)
