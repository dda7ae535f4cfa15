"""What is installed beside the program says the same as the program."""

from __future__ import annotations

import re
from pathlib import Path

from paliadin_sidecar.environment import merged_environment

REPOSITORY = Path(__file__).parents[2]
ENV_FILE = REPOSITORY / "systemd/sidecar.env"


def _named(text: str) -> set[str]:
    return set(re.findall(r"PALIADIN_[A-Z_]+[A-Z]", text))


def test_the_environment_file_has_every_variable() -> None:
    """Those of the README and of the settings, each with what is right for it."""
    readme = (REPOSITORY / "README.md").read_text()
    table = readme[readme.index("## Configure the sidecar") : readme.index("## Operate")]
    settings = (REPOSITORY / "sidecar/paliadin_sidecar/settings.py").read_text()
    assert _named(ENV_FILE.read_text()) >= _named(table) | _named(settings)


def test_the_environment_file_as_shipped_asks_for_what_each_host_must_say() -> None:
    """The rest is commented out, with its default."""
    assert merged_environment({}, ENV_FILE) == {
        "PALIADIN_CALLBACK_URL": "",
        "PALIADIN_OWNER": "AGENT_USER",
    }


def test_the_defaults_that_it_names_are_the_program_s() -> None:
    """A value that stands there commented out changes nothing when it is taken in."""
    text = ENV_FILE.read_text()
    readme = (REPOSITORY / "README.md").read_text()
    defaults = dict(re.findall(r"^\| `(PALIADIN_\w+)` \| `?([^|`($]+?)`? \|", readme, re.MULTILINE))
    for name, value in re.findall(r"^#(PALIADIN_\w+)=([^<\s]+)$", text, re.MULTILINE):
        assert value in defaults.get(name, value), name
    assert f"#PALIADIN_WATCH={defaults['PALIADIN_WATCH']}\n" in text
    assert "#PALIADIN_RESCAN_S=2\n" in text


def test_each_directory_that_is_watched_by_default_is_made_at_boot() -> None:
    """The tmpfiles.d file names the very paths, and their parents below /tmp."""
    rules = (REPOSITORY / "systemd/paliadin-sidecar.tmpfiles.conf").read_text()
    made = re.findall(r"^d (\S+) ", rules, re.MULTILINE)
    watched = re.search(r"^#PALIADIN_WATCH=(.*)$", ENV_FILE.read_text(), re.MULTILINE)
    assert watched
    paths = [Path(part.split("=")[1]) for part in watched[1].split(":")]
    assert set(made) == {
        str(step)
        for path in paths
        for step in (path, *path.parents)
        if len(step.parts) > len(Path("/tmp").parts)
    }
