from __future__ import annotations

import os
import threading

import pytest

from paliadin_sidecar.host.priority import at_low_priority


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_only_the_work_has_a_low_priority() -> None:
    """What comes after it has its own again."""
    before = priority()
    assert at_low_priority(priority) == 5
    assert priority() == before


def test_an_error_comes_out() -> None:
    """Also one that ends the process."""

    def end() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        at_low_priority(end)
    assert caught.value.code == 3
