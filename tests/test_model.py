"""The model of the promise holds in a few hundred histories; `make chaos` tries many more."""

from __future__ import annotations

import hypothesis
import pytest
from chaos.model import ENGINES, Promise
from hypothesis.stateful import run_state_machine_as_test

from paliadin_sidecar import policy, turnfile


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ENGINES)
def test_whatever_happens(engine: str) -> None:
    """Written, renamed, removed, killed, refused, in any order: whole, in the end, once."""
    play(engine, examples=150)


@pytest.mark.parametrize(
    ("module", "decision", "broken", "breach"),
    [
        (policy, "decide", lambda *_, **__: policy.Delivered(), "lost"),
        (turnfile, "_being_written", lambda _: False, "cut"),
    ],
    ids=["tries once", "does not wait for writers"],
)
def test_a_daemon_that_breaks_it_is_found_out(
    monkeypatch: pytest.MonkeyPatch, module: object, decision: str, broken: object, breach: str
) -> None:
    """One that tries once, or that takes a file from under its writer's hands, does not pass."""
    monkeypatch.setattr(module, decision, broken)
    with pytest.raises(AssertionError, match=rf"{breach}=\['"):
        play("told", examples=300, find_only=True)


def play(engine: str, *, examples: int, find_only: bool = False) -> None:
    machine = type(f"Promise_{engine}", (Promise,), {"engine": engine})
    settings = hypothesis.settings(max_examples=examples, stateful_step_count=40)
    if find_only:
        once = (hypothesis.Phase.generate,)
        settings = hypothesis.settings(
            settings, phases=once, database=None, report_multiple_bugs=False
        )
    run_state_machine_as_test(machine, settings=settings)
