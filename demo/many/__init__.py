"""Several hosts, and an app of several processes with one PostgreSQL: `make demo-many`."""

from __future__ import annotations

import sys
from pathlib import Path

#: The PostgreSQL and the balancer of the tests are those of the demo, too.
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
