"""The documents name modules, functions and files as they are, and their links lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIDECAR = ROOT / "sidecar/paliadin_sidecar"
CLIENT = ROOT / "client/paliadin_client"
CONTRACT = ROOT / "contract/paliadin_contract"
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
ROOMS = sorted(path.name for path in SIDECAR.iterdir() if (path / "__init__.py").exists())
CLIENT_ROOMS = sorted(path.name for path in CLIENT.iterdir() if (path / "__init__.py").exists())
#: A module as the documents write it: its room, a slash, its name.
MODULE = re.compile(rf"(?<![\w/.-])((?:{'|'.join(ROOMS)})/\w+(?:/\w+)?)(?![\w/])")


def modules(package: Path) -> set[str]:
    """The modules below this folder, without what only makes a folder a package."""
    found = (path.relative_to(package).with_suffix("") for path in package.rglob("*.py"))
    return {str(path) for path in found if path.name != "__init__"}


def described(heading: str) -> list[str]:
    """The modules in the table below this heading, in its order."""
    _, _, below = ARCHITECTURE.partition(f"\n{heading}\n")
    section = re.split(r"^##", below, maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(.+?)`", row)]


def heading_of(room: str) -> str:
    """The line of the architecture that begins what it says of a room."""
    (found,) = re.findall(rf"^### `{room}/`: .+$", ARCHITECTURE, re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("room", ROOMS)
def test_each_module_of_a_room_has_one_row(room: str) -> None:
    """No row is of a module that is gone, and no module is missing."""
    assert sorted(described(heading_of(room))) == sorted(modules(SIDECAR / room))


@pytest.mark.parametrize("room", CLIENT_ROOMS)
def test_each_module_of_a_room_of_the_client_has_one_row(room: str) -> None:
    """The same for the client's rooms."""
    assert sorted(described(heading_of(room))) == sorted(modules(CLIENT / room))


@pytest.mark.parametrize(
    ("heading", "package"),
    [
        ("### At the top of `sidecar/paliadin_sidecar/`", SIDECAR),
        ("## The client's modules", CLIENT),
        ("## The contract's modules", CONTRACT),
    ],
)
def test_each_module_outside_the_rooms_has_one_row(heading: str, package: Path) -> None:
    """The same for the modules beside the rooms, and those of the other packages."""
    assert sorted(described(heading)) == sorted(path.stem for path in package.glob("[a-z]*.py"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_module_that_is_named_is_there(document: Path) -> None:
    """In a sentence, a table or a picture."""
    named = set(MODULE.findall(document.read_text()))
    assert not named - modules(SIDECAR) - {"outbox/outbox"}


def test_the_picture_names_modules_of_each_room_that_a_turn_meets() -> None:
    """It shows the whole way."""
    picture = re.findall(r"```\n(.+?)```", ARCHITECTURE, re.DOTALL)[0]
    rooms = {name.partition("/")[0] for name in MODULE.findall(picture)}
    assert rooms == {"intake", "outbox", "delivery", "audit"}


@pytest.mark.parametrize(
    "document", ["docs/architecture.md", "docs/decisions.md", "CONTRIBUTING.md"]
)
def test_what_a_module_is_said_to_have_is_in_it(document: str) -> None:
    """As in `completion.decide`: a module's name, a dot, and a name at its top."""
    homes: dict[str, set[str]] = {}
    for package in (SIDECAR, CLIENT, CONTRACT):
        for path in package.rglob("*.py"):
            homes.setdefault(path.stem, set()).update(names_at_the_top(path))
    # Words that an event's name begins with, or a field's.
    for word in ("metrics", "outbox", "service", "signature", "turn"):
        homes.pop(word, None)
    for module, name in re.findall(r"`(\w+)\.(\w+)`", (ROOT / document).read_text()):
        if module in homes and name not in {"py", "sql", "db", "md", "json"}:
            assert name in homes[module], f"{module}.{name}"


def names_at_the_top(path: Path) -> set[str]:
    """What a module defines outside of functions and classes."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                found.add(name)
            case ast.Assign(targets) | ast.AnnAssign(target=ast.Name() as targets):
                for target in targets if isinstance(targets, list) else [targets]:
                    found |= {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_file_and_link_leads_somewhere(document: Path) -> None:
    """Relative to the document for a link; from the top, or from a package, for a path."""
    text = document.read_text()
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)", text):
        target = document.parent / link if link else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"
    for path in re.findall(r"`((?:\w[\w-]*/)+[\w.-]+\.(?:py|sql|md|go|c|service|yaml))`", text):
        assert any((top / path).exists() for top in (ROOT, SIDECAR, CLIENT, CONTRACT)), path


def anchors(document: Path) -> set[str]:
    """Its headings as a link names them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
