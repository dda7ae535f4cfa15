"""Measurements: `make bench`. Never installed."""

from __future__ import annotations

import sys
from pathlib import Path

#: The PostgreSQL of the tests is measured here, too.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
