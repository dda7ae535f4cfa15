"""Tries to make the daemon lose, cut or double an answer, and says whether it did.

`python -m chaos` drives the real `paliadin-sidecar run`, real files by writers that are
processes of their own, and a real receiver. Each keeps its own log; `verdict` compares them
when all is over. Never installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

#: The host and the receiver that the tests drive are driven here too.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
