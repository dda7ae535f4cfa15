"""What keeps modules short and their rooms apart, beside the contracts in pyproject.toml."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

_TOP = Path(__file__).parent.parent
_MODULES = sorted(
    path for top in ("contract", "sidecar", "client") for path in (_TOP / top).rglob("*.py")
)
_MAX_LINES, _MAX_SIBLINGS = 350, 8


def siblings_of(module: Path) -> set[str]:
    """The modules of its own package that it imports."""
    package = ".".join(module.parent.relative_to(_TOP).parts[1:])
    there = {path.stem for path in module.parent.iterdir()}
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {each.name for each in node.names if each.name in there}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            found.add((node.module or "").removeprefix(f"{package}.").split(".")[0])
    return found


@pytest.mark.parametrize("module", _MODULES, ids=lambda path: str(path.relative_to(_TOP)))
def test_a_module_is_short(module: Path) -> None:
    """Nobody must scroll for long to see all of one job."""
    assert len(module.read_text(encoding="utf-8").splitlines()) <= _MAX_LINES


@pytest.mark.parametrize(
    "room", sorted((_TOP / "sidecar/paliadin_sidecar").glob("*/")), ids=lambda path: path.name
)
def test_a_module_needs_few_of_its_room(room: Path) -> None:
    """More than that is a room in a room."""
    for module in room.rglob("*.py"):
        assert len(siblings_of(module)) <= _MAX_SIBLINGS, module
