"""A process of its own that holds a file open for writing."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

#: Says "." once the file is open, and once after each line that it was given and has written.
_SCRIPT = """
exec 3>>"$1"; echo .
while IFS= read -r line; do printf '%s\\n' "$line" >&3; echo .; done
"""


class Writer:
    """Opens on construction, writes line by line, closes when the block ends."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "writer", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, line: str) -> None:
        """Append one line; it is in the file when this returns."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        self._wait()

    def close(self) -> None:
        """Let go of the file; it is closed when this returns."""
        self._process.communicate()

    def _wait(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == ".\n"
