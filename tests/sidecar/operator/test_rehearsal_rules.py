"""What answers say of a rule, and where each rule stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paliadin_sidecar.operator.rehearsal import rules
from paliadin_sidecar.outbox.records import Outcome

DOCUMENT = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
RULES = [value for value in vars(rules).values() if isinstance(value, rules.Rule)]
URL = "http://127.0.0.1:1/callback"


def answers(*statuses: int | None) -> list[Outcome]:
    return [Outcome(status=each, error=None if each else "reset") for each in statuses]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_has_its_place(rule: rules.Rule) -> None:
    """An anchor in the protocol's page, or a heading."""
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", DOCUMENT, re.MULTILINE)
    }
    anchors = re.findall(r'<a id="([\w-]+)"></a>', DOCUMENT)
    assert len(anchors) == len(set(anchors))
    assert rule.anchor in headings | set(anchors)
    assert rule.place == f"docs/protocol.md#{rule.anchor}"


def test_each_place_is_a_rules() -> None:
    """No anchor is left of a rule that is gone."""
    anchors = set(re.findall(r'<a id="([\w-]+)"></a>', DOCUMENT))
    assert anchors <= {rule.anchor for rule in RULES}


@pytest.mark.parametrize(
    ("status", "then"),
    [
        (503, "tries it again without end"),
        (500, "for a day at least"),
        (400, "gives it up after 15 minutes"),
        (401, "pauses where pings are not taken either"),
        (None, "looks like an outage"),
    ],
)
def test_what_is_not_taken(status: int | None, then: str) -> None:
    """What the sender would do about it is said, and what it usually comes from."""
    judged = rules.taken(rules.LATER_TYPE, answers(204, status, 204), URL)
    assert judged.level == "breaks"
    assert judged.message.startswith(f"gets 204 and {status or 'reset'}: {rules.LATER_TYPE.cost}. ")
    assert then in judged.message
    assert "Its likely cause: " in judged.message


@pytest.mark.parametrize(
    ("rule", "wanted", "statuses", "level"),
    [
        (rules.DOUBLED, 401, [401], "keeps"),
        (rules.DOUBLED, 401, [400], "keeps"),
        (rules.DOUBLED, 401, [204], "breaks"),
        (rules.DOUBLED, 401, [500], "breaks"),
        (rules.WRONG, 401, [401, 403], "breaks"),
        (rules.NO_CALLBACK, 400, [400, 422], "note"),
        (rules.NO_CALLBACK, 400, [422, 401], "breaks"),
        (rules.TOO_LARGE, 413, [413], "keeps"),
        (rules.TOO_LARGE, 413, [400], "note"),
        (rules.TOO_LARGE, 413, [None], "breaks"),
        (rules.TOO_LARGE, 413, [503], "breaks"),
    ],
)
def test_what_is_not_refused(
    rule: rules.Rule, wanted: int, statuses: list[int | None], level: str
) -> None:
    """What means the same to the sender is worth a note, and the worst answer is what is said."""
    also = (400,) if rule is rules.DOUBLED else ()
    judged = rules.refused(rule, answers(*statuses), wanted=wanted, also=also)
    assert judged.level == level


def test_the_worst_is_said() -> None:
    """An acknowledgement of what is not proven is worse than any other answer."""
    judged = rules.refused(rules.WRONG, answers(401, 500, None, 200), wanted=401)
    assert (
        judged.message
        == f"gets 401 and 500 and reset and 200 where 401 belongs: {rules.WRONG.cost}"
    )


def test_a_large_body_that_takes_too_long() -> None:
    """A slow line is no fault of the receiver's, and something can be done about it here."""
    judged = rules.large(Outcome(error="timeout"), None, 1024 * 1024, URL)
    assert judged.level == "breaks"
    assert "not even 1 MiB passes. If the line is slow" in judged.message


@pytest.mark.parametrize(("ms", "level"), [(5000, "keeps"), (5001, "breaks"), (9000, "breaks")])
def test_good_time(ms: float, level: str) -> None:
    """Half of an attempt's time is what a little load may double."""
    assert rules.prompt(ms, 10).level == level
