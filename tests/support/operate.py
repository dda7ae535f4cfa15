"""The commands of the documents, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

_DOCS = Path(__file__).parents[2] / "docs"


def block(name: str, document: str = "operate.md") -> str:
    """The code under the marker of this name."""
    text = (_DOCS / document).read_text()
    (found,) = re.findall(rf"<!-- {re.escape(name)} -->\n```[a-z]+\n(.*?)```", text, re.DOTALL)
    assert isinstance(found, str)
    return found


def blocks(document: str = "operate.md") -> dict[str, str]:
    """Each marker's shell code."""
    text = (_DOCS / document).read_text()
    return dict(re.findall(r"<!-- ([^>]+) -->\n```sh\n(.*?)```", text, re.DOTALL))
