"""Makes the pictures of the documents, from a past that is the same each time: `make pictures`."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

from demo.browser import Browser
from demo.past import Past
from paliadin_sidecar.operator.cli import main

_FOLDER = Path(__file__).parents[1] / "docs/pictures"
#: A week of the firm's time, of which the report is.
_ZONE, _SINCE, _UNTIL = "CET-1CEST,M3.5.0,M10.5.0/3", "2026-03-02", "2026-03-09"
#: Each picture: the width of its screen, whether that is dark, and the part of the page, by what
#: stands at its top and at its end.
PICTURES = {
    "report-light.png": (1080, False, "body", "#turns ~ figure:nth-of-type(2)"),
    "report-dark.png": (1080, True, "body", "#turns ~ figure:nth-of-type(2)"),
    "report-receiver.png": (1080, False, "#receiver", "#attention"),
    "report-phone.png": (360, False, "body", "#turns"),
}


def make(folder: Path) -> None:
    """Make all of them in this folder.

    Args:
        folder: it is there.
    """
    os.environ["TZ"] = _ZONE
    time.tzset()
    until = datetime.fromisoformat(_UNTIL).timestamp()
    with tempfile.TemporaryDirectory() as base, Browser() as browser:
        Past(Path(base, "outbox.db"), until=until, days=8, per_day=260).play()
        report = Path(base, "report.html")
        environ = {"PALIADIN_STATE_DIR": base, "PALIADIN_HOST_LABEL": "mriver"}
        # As if it were typed when that week ended, so that the same pictures come each time.
        with (
            patch.dict(os.environ, environ),
            patch("time.time", lambda: until),
            redirect_stdout(io.StringIO()),
        ):
            main(["report", "--since", _SINCE, "--out", str(report)], standalone_mode=False)
        for name, (width, dark, first, last) in PICTURES.items():
            browser.look(width=width, dark=dark)
            browser.open(report.as_uri())
            browser.screenshot(folder / name, first, last)


if __name__ == "__main__":
    if shutil.which("chromium") is None:
        sys.exit("chromium is not installed: apt install chromium")
    _FOLDER.mkdir(exist_ok=True)
    make(_FOLDER)
