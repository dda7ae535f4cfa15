"""What a rehearsal plays of docs/protocol.md, and what the answers say. Pure.

Each rule has its place there, and what a receiver that breaks it costs those who run it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from http import HTTPStatus
from typing import Literal, NamedTuple

from paliadin_sidecar.delivery.policy import Verdict, classify
from paliadin_sidecar.operator import diagnosis
from paliadin_sidecar.outbox.records import Outcome

_DOCUMENT = "docs/protocol.md"
#: Of an attempt's time, what an answer may take before it is called late.
_LATE_PART = 0.5
_MIB = 1024 * 1024

Level = Literal["keeps", "breaks", "note", "untried"]


class Rule(NamedTuple):
    """One rule.

    Attributes:
        name: what is played.
        anchor: where it stands in docs/protocol.md.
        cost: what it costs to break it.
    """

    name: str
    anchor: str
    cost: str

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{_DOCUMENT}#{self.anchor}"


class Judgement(NamedTuple):
    """What was seen of a rule.

    Attributes:
        level: `keeps`, `breaks`, `note` (nothing to do, but know it) or `untried`.
        message: what was answered, and where it is wrong what that costs and likely comes from.
    """

    level: Level
    rule: Rule
    message: str


PING = Rule(
    "a ping",
    "ping-are-you-well",
    "a ping is what ends a pause, so after the first one nothing would be sent any more",
)
GOOD = Rule(
    "a turn that nobody has",
    "rule-unknown-turn",
    "no answer gets through, or none that it has no record of, such as of what another app or a "
    "test asked",
)
AGAIN = Rule(
    "the same again",
    "rule-known-id",
    "each turn whose first answer was lost on the way is sent again, and would never end",
)
TWICE = Rule(
    "the same twice at once",
    "rule-at-once",
    "an attempt that ran out of time may still be at work when the next one comes",
)
ORDER = Rule(
    "a lower revision, and a failure after an answer",
    "rule-outranked",
    "they come late now and then, and would be tried until they are given up",
)
FAILURE = Rule(
    "a failure, also of an unknown reason",
    "rule-reason",
    "who waits for that turn would not be told, and a later sender's reasons would be given up",
)
NO_UUID = Rule(
    "an id that is no UUID, without hints",
    "rule-ids",
    "a turn that was asked by hand, or whose token was not seen, would not get through",
)
LATER_TYPE = Rule(
    "an unknown type",
    "rule-unknown-type",
    "after the sender's upgrade what is new would be given up",
)
LATER_FIELDS = Rule(
    "unknown fields",
    "rule-unknown-fields",
    "after the sender's upgrade every answer would be given up",
)
TWO_SECRETS = Rule(
    "several signatures, as in a rotation",
    "changing-the-secret",
    "while the secret is replaced nothing would get through",
)
EACH_SECRET = Rule(
    "each of the sender's secrets alone",
    "changing-the-secret",
    "it does not know all of them, and when the sender drops the others nothing gets through",
)
IN_TIME = Rule(
    "a timestamp 240 s old, or of the future",
    "rule-clock",
    "a clock that is off by less than the protocol permits would stop everything",
)
WRONG = Rule(
    "a wrong signature",
    "rule-signature",
    "anybody who reaches it can forge answers; or what answers there is not the route but "
    "something that takes all, such as a login page or a proxy's own, and then every answer that "
    "it acknowledges is lost",
)
MISSING = Rule(
    "a missing header", "rule-headers", "whoever leaves out the signature can forge answers"
)
MALFORMED_HEADER = Rule(
    "a malformed header", "rule-headers", "whoever sends half a signature can forge answers"
)
DOUBLED = Rule(
    "a wrong signature in two headers",
    "rule-headers",
    "whoever sends the header twice can forge answers",
)
STALE = Rule(
    "a timestamp 400 s old, or of the future",
    "rule-clock",
    "whoever recorded a callback once can send it again at any time",
)
NO_CALLBACK = Rule(
    "no JSON, or not its type's shape",
    "rule-malformed",
    "what it acknowledges and cannot read is lost, and nobody is told",
)
CLOCK = Rule("the clocks agree", "rule-clock", "signatures are refused at 300 s")
RATE = Rule("a limit of the rate", "what-to-answer", "after an outage the backlog comes slowly")
EIGHT = Rule(
    "eight at once, twice", "rule-eight", "after an outage they come so, and others wait for them"
)
KEPT = Rule("connections are kept", "rule-kept", "each turn pays for a connection and its TLS")
LARGE = Rule(
    "a body of 24 MiB",
    "rule-32-mib",
    "the largest answers would not get through",
)
TOO_LARGE = Rule(
    "a body of 33 MiB",
    "rule-413",
    "whoever reaches it can fill its memory, since a body is held before it is proven",
)
PROMPT = Rule(
    "answers in good time",
    "rule-10-s",
    "under a little more load attempts run out of time, and a turn that was stored is sent again "
    "and counts as undelivered",
)

#: What is played beyond a ping and a turn: always, where the receiver is such that it can be.
IN_ORDER = (
    WRONG, STALE, MISSING, MALFORMED_HEADER, DOUBLED, NO_CALLBACK, AGAIN, TWICE, ORDER, FAILURE,
    NO_UUID, LATER_TYPE, LATER_FIELDS, IN_TIME, TWO_SECRETS, EIGHT, KEPT, LARGE, TOO_LARGE, PROMPT,
)  # fmt: skip

#: What the sender does about a turn that it wants taken, by what the answer says.
_NOT_TAKEN = {
    Verdict.RETRY: "The sender tries it again without end",
    Verdict.FAILED: "The sender tries it for a day at least, then may give it up",
    Verdict.REFUSED: "The sender gives it up after 15 minutes, while others pass",
    Verdict.AMBIGUOUS: "The sender pauses where pings are not taken either, and else gives it up "
    "after 15 minutes",
}
_NO_ANSWER = "It looks like an outage: five such attempts in a row, and the sender pauses"
#: What another refusal costs where it is to be a 401.
_NOT_401 = {
    Verdict.RETRY: "it looks like an overload, so nobody is told that secrets do not match",
    Verdict.FAILED: "it looks like a failure of the receiver: where secrets do not match, answers "
    "may be given up after a day, when a 401 only pauses the sender",
    Verdict.REFUSED: "it looks like a fault of that turn: where secrets do not match, it may be "
    "given up after 15 minutes, when a 401 only pauses the sender",
    Verdict.AMBIGUOUS: "the sender pauses as with a 401, but who looks for the reason looks for a "
    "login, a firewall or a missing route",
}
#: The same where it is to be a refusal of the turn.
_NOT_REFUSED = {
    Verdict.RETRY: "the sender tries it again without end",
    Verdict.FAILED: "the sender tries it for a day at least, and an operator looks for a failure",
    Verdict.AMBIGUOUS: "the sender asks by a ping each time, and an operator looks for a wrong "
    "secret or a missing route",
}


def clocks(finding: diagnosis.Finding) -> Judgement:
    """What `check` says of the receiver's clock, as it does of a rule."""
    levels: dict[str, Level] = {"ok": "keeps", "note": "note", "wrong": "breaks"}
    return Judgement(levels[finding.level], CLOCK, finding.message)


def taken(rule: Rule, outcomes: Sequence[Outcome], url: str) -> Judgement:
    """Whether all of these were acknowledged.

    Args:
        rule: what was played.
        outcomes: of its attempts.
        url: where they went.
    """
    wrong = [one for one in outcomes if classify(one.status) is not Verdict.ACKNOWLEDGED]
    if not wrong:
        return Judgement("keeps", rule, f"gets {_names(outcomes)}")
    worst = wrong[0]
    then = _NO_ANSWER if worst.status is None else _NOT_TAKEN[classify(worst.status)]
    cause = diagnosis.cause_of(worst, url)
    return Judgement(
        "breaks", rule, f"gets {_names(outcomes)}: {rule.cost}. {then}. Its likely cause: {cause}"
    )


def taken_at_once(first: Sequence[Outcome], again: Outcome, url: str) -> Judgement:
    """The same for one callback twice at the same moment, where one may have been put off."""
    put_off = [one for one in first if _is_later(one)]
    judged = taken(TWICE, [*(one for one in first if not _is_later(one)), again], url)
    if judged.level != "keeps" or not put_off:
        return judged
    text = f"gets {_names(first)}, then {_names([again])}: what is put off costs an attempt"
    return Judgement("note", TWICE, text)


def refused(
    rule: Rule, outcomes: Sequence[Outcome], *, wanted: int, also: Collection[int] = ()
) -> Judgement:
    """Whether all of these got this status.

    Args:
        rule: what was played.
        outcomes: of its attempts.
        wanted: 401 for what is not proven, another 4xx for a turn that is not taken.
        also: statuses that are as good.
    """
    wrong = [one for one in outcomes if one.status not in {wanted, *also}]
    if not wrong:
        return Judgement("keeps", rule, f"gets {_names(outcomes)}")
    verdicts = [classify(one.status) for one in wrong]
    says = f"gets {_names(outcomes)} where {wanted} belongs: "
    if Verdict.ACKNOWLEDGED in verdicts:
        return Judgement("breaks", rule, says + rule.cost)
    if None in {one.status for one in wrong}:
        return Judgement("breaks", rule, f"{says}{_NO_ANSWER[0].lower()}{_NO_ANSWER[1:]}")
    costs = _NOT_401 if wanted == HTTPStatus.UNAUTHORIZED else _NOT_REFUSED
    serious = [costs[verdict] for verdict in verdicts if verdict in costs]
    if serious:
        return Judgement("breaks", rule, says + serious[0])
    return Judgement("note", rule, f"{says}the sender does the same about both")


def either_way(judged: Judgement, outcomes: Sequence[Outcome]) -> Judgement:
    """The same, where an old timestamp and one of the future may have met different answers."""
    if judged.level == "keeps" or len({classify(one.status) for one in outcomes}) == 1:
        return judged
    text = "The other direction is well, so a clock may be off: date -u, on both"
    return judged._replace(message=f"{judged.message}. {text}")


def large(outcome: Outcome, passes: int | None, fails: int, url: str) -> Judgement:
    """Whether the largest body that a sender makes was taken.

    Args:
        outcome: of that body.
        passes: the bytes of the largest body that was; None for none.
        fails: the bytes of the smallest that was not.
        url: where it went.
    """
    judged = taken(LARGE, [outcome], url)
    if judged.level == "keeps":
        return judged
    limit = (
        f"Of smaller ones {_mib(passes)} passes, and " if passes else "Of smaller ones not even "
    )
    limit += f"{_mib(fails)} does not" if passes else f"{_mib(fails)} passes"
    if outcome.error == "timeout":
        limit += ". If the line is slow, raise PALIADIN_CALLBACK_TIMEOUT_S"
    return judged._replace(message=f"{judged.message}. {limit}")


def kept(opened: int, sent: int) -> Judgement:
    """Whether the connections of some attempts were used again for as many more."""
    if not opened:
        return Judgement("keeps", KEPT, "each was used again")
    text = (
        f"{opened} of {sent} could not be used again: {KEPT.cost}. A proxy or the receiver closes "
        "them, or an answer's end is not plain: send 204 without a body"
    )
    return Judgement("note", KEPT, text)


def prompt(longest_ms: float, timeout_s: float) -> Judgement:
    """Whether answers come well within the time of an attempt.

    Args:
        longest_ms: how long the slowest of the small ones took.
        timeout_s: how long an attempt may take.
    """
    text = f"the slowest took {longest_ms / 1000:.2f} s of {timeout_s:g} s"
    if longest_ms <= timeout_s * 1000 * _LATE_PART:
        return Judgement("keeps", PROMPT, text)
    cure = "Store, answer, and do everything else afterwards"
    return Judgement("breaks", PROMPT, f"{text}: {PROMPT.cost}. {cure}")


def _is_later(outcome: Outcome) -> bool:
    return outcome.status is not None and classify(outcome.status) is Verdict.RETRY


def _names(outcomes: Sequence[Outcome]) -> str:
    # Each answer once, in the order in which they came.
    names = [diagnosis.answer_name(one.status, one.error, one.detail) for one in outcomes]
    return " and ".join(dict.fromkeys(names))


def _mib(size: int) -> str:
    return f"{size / _MIB:.3g} MiB"
