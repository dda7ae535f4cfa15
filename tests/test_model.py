"""The model of the promise holds in a few hundred histories; `make chaos` tries many more."""

from __future__ import annotations

import hypothesis
import pytest
from chaos.model import ENGINES, Promise
from hypothesis.stateful import run_state_machine_as_test


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ENGINES)
def test_whatever_happens(engine: str) -> None:
    """Written, renamed, removed, killed, refused, in any order: whole, in the end, once."""
    machine = type(f"Promise_{engine}", (Promise,), {"engine": engine})
    run_state_machine_as_test(
        machine, settings=hypothesis.settings(max_examples=300, stateful_step_count=40)
    )
