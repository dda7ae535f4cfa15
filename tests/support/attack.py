"""A process that exchanges two names, again and again, as fast as it can."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: renameat2(AT_FDCWD, one, AT_FDCWD, two, RENAME_EXCHANGE), which Python has not.
_SCRIPT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
one, two = map(os.fsencode, sys.argv[1:])
def exchange():
    if libc.renameat2(-100, one, -100, two, 2):
        sys.exit(os.strerror(ctypes.get_errno()))
exchange()
print("running", flush=True)
while True:
    exchange()
"""


@contextmanager
def exchanging(one: Path, two: Path) -> Iterator[None]:
    """Exchange these two names until the block ends; it has begun when the block begins."""
    command = [sys.executable, "-c", _SCRIPT, str(one), str(two)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attacker:
        try:
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == "running\n"
            yield
            assert attacker.poll() is None
        finally:
            attacker.kill()
