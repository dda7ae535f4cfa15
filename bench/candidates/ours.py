"""The daemon with a variant under trial, for measurements alone.

    ours.py [no-commits]

`no-commits`: no commit is flushed to the disk, so that a loss of power may lose turns. All else is
`paliadin-sidecar run`.
"""

from __future__ import annotations

import sys
from typing import Any

from paliadin_sidecar.operator import cli
from paliadin_sidecar.outbox.database import Outbox


def no_commits() -> None:
    """Let SQLite leave everything to the page cache."""
    set_up = Outbox._set_up  # noqa: SLF001 - no setting exists, so that nobody uses it

    def unsynchronised(self: Outbox, **named: Any) -> None:  # noqa: ANN401 - handed on
        set_up(self, **named)
        self.connection.execute("PRAGMA synchronous = OFF")

    setattr(Outbox, set_up.__name__, unsynchronised)


if sys.argv[1:] == ["no-commits"]:
    no_commits()
sys.argv = ["paliadin-sidecar", "run"]
cli.main()
