from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
from paliadin_sidecar.host.limits import raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[1:])))
print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "held", "becomes"),
    [
        (1024, 4096, 1024, 4096),  # as far as is of use
        (256, 512, 128, 512),  # as far as it is permitted
        (8192, 8192, 2048, 8192),  # never lower than it was
    ],
)
def test_the_soft_limit_is_raised(soft: int, hard: int, held: int, becomes: int) -> None:
    """A part of it is for files that are held open; the rest is for everything else."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(soft), str(hard)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert tuple(map(int, done.stdout.split())) == (held, becomes, hard)
