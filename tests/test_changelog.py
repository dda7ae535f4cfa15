"""CHANGELOG.md has the form that it names, and agrees with the version, which has one place."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CHANGELOG.md").read_text()
#: The one place.
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
#: Each version's heading, its date, and what stands below, the newest first.
SECTIONS = re.findall(
    r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL
)
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_it_has_the_form_that_it_names() -> None:
    """Unreleased first, then the versions with their dates, the newest first."""
    assert TEXT.count("\n## ") == len(SECTIONS)
    assert SECTIONS[0][:2] == ("Unreleased", "")
    dates = [date for _, date, _ in SECTIONS[1:]]
    versions = [Version(name) for name, _, _ in SECTIONS[1:]]
    assert all(dates)
    assert versions == sorted(set(versions), reverse=True)
    assert dates == sorted(dates, reverse=True)
    assert KINDS.issuperset(re.findall(r"^### (.*)", TEXT, re.MULTILINE))


def test_the_version_is_the_one_that_it_tells_of() -> None:
    """The newest released one, or, once anything is unreleased, one that comes after it."""
    (_, _, unreleased), *released = SECTIONS
    newest = released[0][0] if released else "0"
    assert Version(VERSION) > Version(newest) if unreleased.strip() else newest == VERSION


def test_what_must_spell_the_version_out_has_the_same() -> None:
    """The image's label and tag; the programs ask the installed package."""
    assert f'org.opencontainers.image.version="{VERSION}"' in (ROOT / "Dockerfile").read_text()
    assert f"image: paliadin-sidecar:{VERSION}\n" in (ROOT / "compose.yaml").read_text()
    assert version("paliadin") == VERSION
