"""The product as it was at commit 4b11c36, beside which it is measured today."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

COMMIT = "4b11c36"
_HERE = Path(__file__).parent
NAME = f"before-{COMMIT}"
#: In the environment that measures: `make clean` removes both.
_MADE = Path(sys.prefix) / NAME
_TREE = _MADE / "tree"
PYTHON = _MADE / "env/bin/python"
PROGRAM = _MADE / "env/bin/paliadin-sidecar"
#: That commit's own program for `no-commits`.
VARIANTS = _TREE / "bench/candidates/ours.py"
_WHEEL = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
_PIP = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def prepare() -> str:
    """Check it out, in an environment of its own made from its own lock; once.

    Returns:
        Why that is not possible here; empty where it is there.
    """
    if PROGRAM.exists() and VARIANTS.exists():
        return ""
    shutil.rmtree(_MADE, ignore_errors=True)
    _TREE.mkdir(parents=True)
    archive = _MADE / "tree.tar"
    if _run("git", "-C", str(_HERE.parent), "archive", "-o", str(archive), COMMIT):
        return f"commit {COMMIT}, which is not in this clone: git fetch --unshallow"
    lock = ["--only-binary", ":all:", "--require-hashes", "-r", f"{_TREE}/requirements/sidecar.txt"]
    for command in (
        ["tar", "-x", "-f", str(archive), "-C", str(_TREE)],
        [sys.executable, "-m", "venv", str(PYTHON.parents[1])],
        [str(PYTHON), *_PIP, *lock],
        # Built by what is installed here: that commit's lock has no build system.
        [sys.executable, *_WHEEL, "--wheel-dir", str(_MADE), str(_TREE)],
        [str(PYTHON), *_PIP, "--no-index", "--no-deps", "--find-links", str(_MADE), "paliadin"],
    ):
        if _run(*command):
            return f"an environment for commit {COMMIT}: `{' '.join(command[:4])} …` failed"
    return ""


def _run(*command: str) -> int:
    try:
        return subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        return 127  # as a shell says it
