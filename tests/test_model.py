"""The model of the promise holds in some histories; `make chaos` tries thousands."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import hypothesis
import pytest
from chaos import model
from chaos.machine import Promise
from chaos.model import ENGINES
from chaos.writers import TRAILER
from hypothesis.stateful import run_state_machine_as_test

from paliadin_sidecar.delivery import policy
from paliadin_sidecar.intake import turnfile

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ENGINES)
def test_whatever_happens(engine: str) -> None:
    """Written, renamed, removed, killed, refused, in any order: whole, in the end, once."""
    machine = type(f"Promise_{engine}", (Promise,), {"engine": engine})
    settings = hypothesis.settings(stateful_step_count=40)
    run_state_machine_as_test(machine, settings=settings)


def test_a_whole_answer_that_stays_open_may_be_taken() -> None:
    """After two minutes in which nobody changed it; what its writer adds is a revision."""
    promise = Promise()
    promise.first_start(seed=0)
    promise.open_and_write("aichat", 0, "Anna")
    promise.time_passes(400.0)
    assert len(promise.arrived) == 1
    promise.write_and_close("aichat", 0, b"mehr\n")
    promise.teardown()
    assert [one.revision for one in promise.arrived] == [1, 2]


def test_a_daemon_that_tries_once_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came while the receiver was down is lost."""
    monkeypatch.setattr(policy, "decide", lambda *_, **__: policy.Delivered())
    monkeypatch.setattr(model, "_IN_THE_END_S", 60.0)  # it never comes
    with breach("lost") as promise:
        promise.receiver_is("down", ping_is_well=False)
        promise.write("aichat", 0, "Anna", TRAILER, 0)
        promise.time_passes(9.0)


def test_a_daemon_that_does_not_wait_for_writers_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it takes from under their hands is cut."""
    monkeypatch.setattr(turnfile, "_being_written", lambda _: False)
    with breach("cut") as promise:
        promise.open_and_write("aichat", 0, "Anna")
        promise.time_passes(9.0)
        promise.write_and_close("aichat", 0, b"mehr\n")


@contextmanager
def breach(kind: str) -> Iterator[Promise]:
    """A history that is played step by step, and at whose end the accounts differ so."""
    promise = Promise()
    try:
        promise.first_start(seed=0)
        yield promise
    finally:
        with pytest.raises(AssertionError, match=rf"{kind}=\['"):
            promise.teardown()
