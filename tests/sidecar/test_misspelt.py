"""A variable that looks like ours and is none is named, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from paliadin_sidecar.errors import BadSettings
from paliadin_sidecar.misspelt import sentence, unknown_variables
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from support.receiver import Receiver
    from support.sidecar import Sidecar

KNOWN = {"PALIADIN_QUIET_S", "PALIADIN_OWNER", "PALIADIN_CALLBACK_URL", "STATE_DIRECTORY"}


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
    assert sentence(name, nearest).endswith(f"is it {nearest}?")


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
