"""The variables: how each is read, from a file as well, and those that are none of ours."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.envfiles import READ
from support.users import without_privilege

from paliadin_sidecar import environment
from paliadin_sidecar.environment import (
    Reader,
    assignments,
    find_state_dir,
    merged_environment,
    unknown_sentence,
    unknown_variables,
)
from paliadin_sidecar.errors import BadSettings
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from support.receiver import Receiver
    from support.sidecar import Sidecar

#: What systemd takes as a variable's name.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
KNOWN = {"PALIADIN_QUIET_S", "PALIADIN_OWNER", "PALIADIN_CALLBACK_URL", "STATE_DIRECTORY"}


def test_reader_collects() -> None:
    """Every problem is kept, and so is every name that was asked for."""
    reader = Reader({"A": "2", "B": "x", "C": " Two ", "D": "9", "E": "whsec_AAAA"})
    assert reader.flag("A") is False
    assert reader.number("B", 1.5, least=0, most=9) == 1.5
    assert reader.choice("C", ("one", "two"), "one") == "two"
    assert reader.number("D", 1.5, least=0, most=9) == 9
    assert reader.choice("E", ("one",), "one") == "one"
    assert reader.text("F", "default") == "default"
    assert reader.problems == [
        "A='2': must be 1 or 0",
        "B='x': must be a number from 0 to 9",
        "E=<hidden>: must be one of one",
    ]
    assert reader.asked == {"A", "B", "C", "D", "E", "F"}


@pytest.mark.parametrize("name", ["PALIADIN_STATE_DIR", "STATE_DIRECTORY"])
def test_relative_state_dir(name: str) -> None:
    """A relative one would depend on where a command is typed."""
    with pytest.raises(BadSettings) as caught:
        find_state_dir({name: "state"})
    assert caught.value.problems == ["PALIADIN_STATE_DIR='state': must be an absolute path"]


# --- the file -------------------------------------------------------------------------------


def test_env_file(tmp_path: Path) -> None:
    """A file says what the environment does not, and nothing in it is expanded."""
    path = tmp_path / "sidecar.env"
    path.write_text("# a comment\nA=1\nB='two words'\nC=$HOME ${HOME}\nD=4\nE\n")
    assert merged_environment({"D": "from outside", "F": "6"}, path) == {
        "A": "1",
        "B": "two words",
        "C": "$HOME ${HOME}",
        "D": "from outside",
        "F": "6",
        "E without =": "",  # to be reported
    }


def test_default_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual file may be missing; where it is there, it counts."""
    path = tmp_path / "sidecar.env"
    monkeypatch.setattr(environment, "DEFAULT_ENV_FILE", path)
    assert merged_environment({"A": "1"}, None) == {"A": "1"}
    path.write_text("B=2\n")
    assert merged_environment({"A": "1"}, None) == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing", "--env-file {} does not exist"),
        ("folder", "{} cannot be read: IsADirectoryError"),
        ("binary", "{} cannot be read: UnicodeDecodeError"),
    ],
)
def test_bad_env_file(tmp_path: Path, name: str, sentence: str) -> None:
    """A file that was named must be there, and be text."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"A=\xff\n")
    with pytest.raises(BadSettings) as caught:
        merged_environment({}, tmp_path / name)
    assert caught.value.problems == [sentence.format(tmp_path / name)]


def test_forbidden_env_file(tmp_path: Path) -> None:
    """A file that is there and may not be read is for the command to explain."""
    path = tmp_path / "sidecar.env"
    path.write_text("A=1\n")
    path.chmod(0)
    with without_privilege(), pytest.raises(PermissionError):
        merged_environment({}, path)


def test_an_environment_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Systemd ignores the first variable of such a file: it is said, with what mends it."""
    path = tmp_path / "sidecar.env"
    path.write_text("\ufeffA=1\nB=2\n", encoding="utf-8")
    with pytest.raises(BadSettings, match="byte order mark") as caught:
        merged_environment({}, path)
    subprocess.run(["sh", "-ec", caught.value.problems[0].partition(": ")[2]], check=True)
    assert merged_environment({}, path) == {"A": "1", "B": "2"}
    path.write_text("\ufeff# of an editor\nA=1\n", encoding="utf-8")
    assert merged_environment({}, path) == {"A": "1"}


@pytest.mark.parametrize(("text", "said"), READ)
def test_it_is_read_as_systemd_reads_it(text: str, said: dict[str, str]) -> None:
    """Comments, blanks, quotes, escapes, line ends, and what is still open at the end."""
    found = dict(assignments(text))
    assert {name: value for name, value in found.items() if NAME.fullmatch(name)} == said


def test_what_systemd_ignores_is_found() -> None:
    """A shell's `export`, and a line without `=`, of which nothing but the first word is kept."""
    assert assignments("export A=1\nB=2\n") == [("export A", "1"), ("B", "2")]
    assert assignments("A: 1\nB\n \n# C\n") == [("A: without =", ""), ("B without =", "")]


@given(st.text(alphabet="aB =#;'\"\\\n\r\t$`"))
def test_any_text_comes_to_an_end(text: str) -> None:
    """And no value holds what was never written."""
    for name, value in assignments(text):
        assert set(name.removesuffix(" without =") + value) <= set(text)


# --- names that are misspelt ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("PALIADIN_QUIETS", "PALIADIN_QUIET_S"),
        ("PALIADIN_QUIET", "PALIADIN_QUIET_S"),
        ("paliadin_owner", "PALIADIN_OWNER"),
        ("PALADIN_OWNER", "PALIADIN_OWNER"),
        ("PALIADIN-OWNER", "PALIADIN_OWNER"),
        ("PALIADIN_CALBACK_URL", "PALIADIN_CALLBACK_URL"),
        ("PALIADIN_CALLBACK_URI", "PALIADIN_CALLBACK_URL"),
        ("export PALIADIN_QUIET_S", "PALIADIN_QUIET_S"),
        ("PALIADIN_OWNER: without =", "PALIADIN_OWNER"),
    ],
)
def test_the_nearest_is_named(name: str, nearest: str) -> None:
    """Wherever in the name the mistake is."""
    assert unknown_variables([name, "PALIADIN_OWNER", "PATH"], KNOWN) == [(name, nearest)]
    assert unknown_sentence(name, nearest).endswith(f"is it {nearest}?")


@pytest.mark.parametrize(
    "name",
    ["PALIADIN_OWNER", "PALIADIN_BACKEND", "PALIADIN_TIMEOUT_S", "PATH", "HOME", "OWNER",
     "STATE_DIRECTORY", "LANG", "_PALIADIN_SIDECAR_COMPLETE", "QUIET_S"],
)  # fmt: skip
def test_what_is_somebody_else_s_is_left_alone(name: str) -> None:
    """Also the client's and the shim's, which may stand in the same file."""
    assert unknown_variables([name], KNOWN) == []


def test_what_is_missing_may_be_misspelt(host: Sidecar) -> None:
    """Both stand together, so that the cause is beside its effect."""
    host.environ["PALIADIN_CALBACK_URL"] = host.environ.pop("PALIADIN_CALLBACK_URL")
    with pytest.raises(BadSettings) as raised:
        Settings.from_environment(host.environ)
    assert [problem.split()[0] for problem in raised.value.problems] == [
        "PALIADIN_CALLBACK_URL", "PALIADIN_CALBACK_URL",
    ]  # fmt: skip


def test_the_journal_says_so_at_the_start(host: Sidecar, receiver: Receiver) -> None:
    """The daemon runs on, with a warning for each."""
    host.environ["PALIADIN_QUIETS"] = "2"
    host.start()
    line = host.wait_event("service.unknown_variable")
    assert (line["variable"], line["nearest"]) == ("PALIADIN_QUIETS", "PALIADIN_QUIET_S")
    assert line["level"] == "warning"
