"""What some tests need of the machine beside the README's packages, and what mends its lack."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

#: Debian's package of a program, where it is not called so too.
_PACKAGES = {
    "go": "golang-go",
    "ip": "iproute2",
    "mkfs.ext4": "e2fsprogs",
    "mount": "mount",
    "nsenter": "util-linux",
    "psql": "postgresql",
    "setfacl": "acl",
    "unshare": "util-linux",
}


def need(*programs: str) -> None:
    """Skip the test where one of these is not installed; in CI, fail it."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        packages = {_PACKAGES.get(program, program) for program in missing}
        lacks(f"{', '.join(missing)} not installed", f"apt install {' '.join(sorted(packages))}")


def lacks(what: str, mend: str) -> NoReturn:
    """Skip the test; in CI, where everything is to be tested, fail it.

    Args:
        what: the reason.
        mend: the command after which it is not skipped.
    """
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what}: {mend}")
