"""The commands of docs/operate.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "docs/operate.md").read_text()


def block(name: str) -> str:
    """The code under the marker of this name."""
    (found,) = re.findall(rf"<!-- {re.escape(name)} -->\n```[a-z]+\n(.*?)```", TEXT, re.DOTALL)
    assert isinstance(found, str)
    return found


def blocks() -> dict[str, str]:
    """Each marker's shell code."""
    return dict(re.findall(r"<!-- ([^>]+) -->\n```sh\n(.*?)```", TEXT, re.DOTALL))
