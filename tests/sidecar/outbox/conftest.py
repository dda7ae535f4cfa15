from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from paliadin_sidecar.outbox.database import FILENAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

from support.outbox_box import Box


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path / FILENAME, create=True)
    yield box
    box.outbox.close()
