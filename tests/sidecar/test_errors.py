from __future__ import annotations

import errno
import importlib
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import paliadin_sidecar
from paliadin_sidecar import errors
from paliadin_sidecar.errors import (
    BadSettings,
    Locked,
    Newer,
    NotServed,
    OutboxError,
    Replaced,
    SidecarError,
    StateDirBlocked,
    StateDirError,
    StateDirFull,
    Unwritable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = Path("/var/lib/paliadin-sidecar")


def _tree(root: type[SidecarError], depth: int = 0) -> Iterator[tuple[int, str]]:
    yield depth, root.__name__
    for child in root.__subclasses__():
        yield from _tree(child, depth + 1)


def test_drawing() -> None:
    """The drawing shows each error below the one that it is a kind of, and no other."""
    line = re.compile(r"^((?:│   |    )*(?:[├└]── )?)(\w+)(?: {2,}|$)", re.MULTILINE)
    drawn = line.findall(errors.__doc__ or "")
    assert sorted((len(indent) // 4, name) for indent, name in drawn) == sorted(_tree(SidecarError))
    assert all(hasattr(errors, name) for _, name in _tree(SidecarError))


def test_one_place() -> None:
    """No module has an error of its own that others could meet."""
    for module in pkgutil.walk_packages(paliadin_sidecar.__path__, "paliadin_sidecar."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and issubclass(value, Exception):
                own = value.__module__.startswith("paliadin_sidecar.") and not name.startswith("_")
                assert not own or issubclass(value, SidecarError), f"{module.name}.{name}"


@pytest.mark.parametrize(
    ("exc", "code", "text", "remedy"),
    [
        (BadSettings(["a", "b"]), 78, "a\nb", ""),
        (StateDirError(PATH, "cannot be made"), 78, f"{PATH} cannot be made", "see PALIADIN_"),
        (StateDirBlocked(PATH, "cannot be made"), 1, f"{PATH} cannot be made", "see PALIADIN_"),
        (StateDirFull(PATH, "cannot be made"), 1, f"{PATH} cannot be made", "make room there"),
        (Locked(PATH), 1, f"another paliadin-sidecar runs on {PATH}", "stop it, or give this one"),
        (OutboxError(PATH, "SQLITE_ERROR"), 1, f"{PATH}: SQLITE_ERROR", "see PALIADIN_STATE_DIR"),
        (Newer(PATH, "is new"), 78, f"{PATH}: is new", "install the version that wrote it"),
        (Unwritable(PATH, "no"), 78, f"{PATH}: no", "all that is there must be that user's"),
        (NotServed("::1:80", "in use"), 1, "PALIADIN_METRICS='::1:80': cannot be", "must be an ad"),
        (Replaced(PATH), 1, f"{PATH} was moved aside", "follow the one that is there now"),
    ],
)
def test_what_and_what_to_do(exc: SidecarError, code: int, text: str, remedy: str) -> None:
    """An error names its object, has its remedy beside it, and decides the exit code."""
    assert exc.exit_code == code
    assert str(exc).startswith(text)
    assert exc.remedy.startswith(remedy)
    assert bool(exc.remedy) == bool(remedy)


def test_what_passes_is_no_configuration_error() -> None:
    """A unit that ended with 78 is not started again; so nothing that passes may end with it."""
    passing: list[type[SidecarError]] = [errors.Blocked, StateDirBlocked, Locked]
    passing += errors.Blocked.__subclasses__()
    assert {kind.exit_code for kind in passing} == {1}


def test_final() -> None:
    """A descriptor whose mount has gone is of no more use; the name may be opened anew."""
    gone = OSError(errno.ESTALE, "stale")
    assert errors.Unreadable("", gone).is_final
    assert not errors.Unreadable("t.txt", gone).is_final
    assert not errors.Unreadable("", OSError(errno.EIO, "x")).is_final
