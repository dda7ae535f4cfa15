"""Each command of CONTRIBUTING.md is run, and what it names is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.needs import need

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = dict(re.findall(r"<!-- (.+?) -->\n```sh\n(.*?)```", TEXT, re.DOTALL))


def run(commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """As a person types them, whatever runs these tests."""
    author = {"NAME": "Anna", "EMAIL": "anna@example.org"}
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        **{f"GIT_{who}_{k}": v for who in ("AUTHOR", "COMMITTER") for k, v in author.items()},
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_each_block_is_run() -> None:
    """A command that nobody ran is not in the document."""
    assert BLOCKS.keys() == {"loop", "release"}
    assert TEXT.count("```sh") == len(BLOCKS)


def test_each_target_is_run_by_ci_or_a_newcomer() -> None:
    """`make` in here would run the tests within a test."""
    runs = (ROOT / ".ci/run").read_text() + (ROOT / "tests/newcomer/run.py").read_text()
    for target in re.findall(r"^make (\S+)", BLOCKS["loop"], re.MULTILINE):
        assert f"make {target}" in runs
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", TEXT):
        assert f"\n{target}:" in makefile


def test_what_it_names_is_there() -> None:
    """Paths from the top, or from the sidecar's package; the names in a module's code, too."""
    package = ROOT / "sidecar/paliadin_sidecar"
    named = re.findall(r"`([\w./-]+(?:\.\w+|/))`|\]\(([\w./]+)\)", TEXT)
    paths = [path for found in named for path in found if path]
    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).exists() or (package / path).exists(), path
    for name, path in (
        ("def record_event", "outbox/event_rows.py"),
        ("MIGRATIONS", "outbox/database.py"),
        ("class Settings", "settings.py"),
    ):
        assert name in (package / path).read_text()


@pytest.mark.slow
def test_the_loop() -> None:
    """The tests of a room, and a few of them."""
    for line in BLOCKS["loop"].splitlines():
        if not line.startswith("make "):
            done = run(line, ROOT)
            assert done.returncode == 0, done.stdout + done.stderr
            assert " passed" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_release(tmp_path: Path) -> None:
    """What was unreleased is the version's, which has a tag; nothing is left over."""
    need("git")
    for name in ("pyproject.toml", "CHANGELOG.md", "Dockerfile", "compose.yaml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("contract", "sidecar", "client"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/test_changelog.py", tmp_path / "tests")
    (tmp_path / ".gitignore").write_text("*\n!/CHANGELOG.md\n")
    begun = run("git init -q -b main && git add CHANGELOG.md && git commit -qm Begun", tmp_path)
    assert begun.returncode == 0, begun.stderr
    before = (tmp_path / "CHANGELOG.md").read_text()
    done = run(BLOCKS["release"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    after = (tmp_path / "CHANGELOG.md").read_text().splitlines()
    (added,) = [line for line in after if line and line not in before.splitlines()]
    version = re.fullmatch(r"## \[(.+)\] - \d{4}-\d\d-\d\d", added)
    assert version
    seen = run("git status --porcelain; git describe; git log -1 --format=%s", tmp_path)
    assert seen.stdout == f"v{version[1]}\nVersion {version[1]}\n"
