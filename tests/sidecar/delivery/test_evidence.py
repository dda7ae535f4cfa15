from __future__ import annotations

import math
from random import Random

import pytest

from paliadin_sidecar.delivery.evidence import CERTAIN, FaultEvidence

OTHERS = range(1000, 10_000)


def against(faults: FaultEvidence, passed: list[bool], turn: int = 1) -> float:
    """What a failure says after these attempts of others."""
    for other, acknowledged in zip(OTHERS, passed, strict=False):
        (faults.acknowledged if acknowledged else faults.not_acknowledged)(other)
    return faults.failed(turn)


def test_the_first_failure_says_nothing() -> None:
    """It is between no two, whatever was acknowledged before."""
    assert against(FaultEvidence(), [True] * 9) == 0


@pytest.mark.parametrize("others", [[], [False], [False] * 100])
def test_a_failure_says_nothing_where_none_was_acknowledged_meanwhile(others: list[bool]) -> None:
    """In an outage no number of failures counts."""
    faults = FaultEvidence()
    assert sum(against(faults, others) for _ in range(100)) == 0


@pytest.mark.parametrize(
    ("others", "one_in"),
    [
        ([True], 2),
        ([True, False], 1.5),
        ([True, True, False], 2),
        ([True] * 10, 11),
        ([True] * 5 + [False] * 500 + [True] * 5, 11),
        ([False] * 5 + [True] * 500 + [False] * 5, 1),
    ],
)
def test_how_much_a_failure_says(others: list[bool], one_in: float) -> None:
    """As much as it was unlikely among its neighbours; those far from it are not looked at."""
    faults = FaultEvidence()
    faults.failed(1)
    assert against(faults, others) == pytest.approx(math.log(one_in))
    assert against(faults, others) == pytest.approx(math.log(one_in))
    assert faults.evidence_of(1) == pytest.approx(2 * math.log(one_in))
    faults.acknowledged(1)
    assert faults.evidence_of(1) == 0


def test_a_turn_is_not_compared_with_itself() -> None:
    """Its own failures of another kind make no neighbour."""
    faults = FaultEvidence()
    faults.failed(1)
    faults.not_acknowledged(1)
    assert against(faults, [True]) == pytest.approx(math.log(2))


def test_an_acknowledgement_before_an_outage_arms_nothing() -> None:
    """Nor does the first one after it: each counts for one failure at most."""
    faults = FaultEvidence()
    faults.acknowledged(2)
    evidence = sum(faults.failed(1) for _ in range(100))
    faults.acknowledged(3)
    evidence += sum(faults.failed(1) for _ in range(100))
    assert evidence == pytest.approx(math.log(2))


def test_a_turn_that_fails_whenever_it_comes_is_found() -> None:
    """After twenty failures with one acknowledgement between each two, or six with ten."""
    for passed, failures in ((1, 20), (10, 6)):
        faults, count = FaultEvidence(), 0
        evidence = faults.failed(1)
        while evidence < CERTAIN:
            evidence += against(faults, [True] * passed)
            count += 1
        assert count == failures


@pytest.mark.parametrize("refused", [0.1, 0.5, 0.9])
def test_a_receiver_that_refuses_by_chance_costs_no_turn(refused: float) -> None:
    """Every second pod, or nine of ten: each of 2,000 turns is tried until it passes."""
    random, faults = Random(1), FaultEvidence()
    evidence = dict.fromkeys(range(2000), 0.0)
    waiting = list(evidence)
    while waiting:
        turn = waiting.pop(random.randrange(min(len(waiting), 200)))
        if random.random() < refused:
            evidence[turn] += faults.failed(turn)
            waiting.append(turn)
        else:
            faults.acknowledged(turn)
    assert max(evidence.values()) < CERTAIN


@pytest.mark.parametrize("well_s", [5, 20, 200])
def test_a_receiver_that_comes_and_goes_costs_no_turn(well_s: int) -> None:
    """It is well and down by turns; what is fresh passes in the one, what waits meets the other.

    Most are acknowledged while it is well, and few fail while it is not.
    """
    random, faults = Random(2), FaultEvidence()
    evidence = dict.fromkeys(range(50), 0.0)
    due = {turn: random.uniform(0, 60) for turn in evidence}
    for second in range(20_000):
        is_well = second // well_s % 2 == 0
        for fresh in range(5 if is_well else 1):
            (faults.acknowledged if is_well else faults.failed)(1000 + fresh + 10 * second)
        for turn in [turn for turn, at in due.items() if at <= second]:
            if is_well:
                faults.acknowledged(turn)
                evidence[turn], due[turn] = 0.0, second + random.uniform(0, 60)
            else:
                evidence[turn] += faults.failed(turn)
                due[turn] = second + random.uniform(0, 60)
            assert evidence[turn] < CERTAIN


def test_its_memory_is_bounded() -> None:
    """Turns that were superseded never come back."""
    faults = FaultEvidence()
    for turn in range(10_000):
        faults.failed(turn)
    assert len(faults._failed) <= 1025
