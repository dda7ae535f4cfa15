"""A receiver that keeps the protocol, and the same with one fault at a time: each is named."""

from __future__ import annotations

import re
import ssl
import time
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import anyio
import pytest
import trustme
from support.keeping import (
    Fault,
    Keeping,
    busy,
    closing,
    data,
    first_signature_only,
    in_work,
    instead,
    is_again,
    is_known,
    is_malformed,
    is_missing,
    is_stale,
    is_taken,
    is_uuid,
    is_wrong,
    kind,
    once,
    slow,
    unproven_pings,
)
from support.receiver import Receiver, Reply, Request
from support.sidecar import new_secret

from paliadin_sidecar.delivery.sender import Sender
from paliadin_sidecar.operator.rehearsal import play, rules
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from paliadin_sidecar.operator.rehearsal.rules import Judgement, Rule

SECRET = new_secret()
#: A limit in the place of 32 MiB, so that each receiver here is rehearsed in a moment.
LIMIT = 64 * 1024


@pytest.fixture(autouse=True)
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes, a 512th of themselves."""
    monkeypatch.setattr(play, "_LARGE", "\x01" * 8192)
    monkeypatch.setattr(play, "_TOO_LARGE_BYTES", LIMIT + 2048)
    sizes = tuple(size // 512 for size in play._SMALLER_BYTES)
    monkeypatch.setattr(play, "_SMALLER_BYTES", sizes)


def rehearsed(url: str, *secrets: str, **environ: str) -> dict[str, Judgement]:
    """What is said of each rule, by its name."""
    variables = {
        "PALIADIN_CALLBACK_URL": url,
        "PALIADIN_CALLBACK_SECRET": " ".join(secrets or (SECRET,)),
        "PALIADIN_HOST_LABEL": "mriver",
    }
    found = anyio.run(play.rehearse, Settings.from_environment(variables | environ))
    assert len({each.rule for each in found}) == len(found)
    return {each.rule.name: each for each in found}


def names(*found: Rule) -> set[str]:
    return {rule.name for rule in found}


def at(judgements: dict[str, Judgement], level: str) -> set[str]:
    return {name for name, each in judgements.items() if each.level == level}


def test_a_receiver_that_keeps_the_protocol() -> None:
    """Every rule is played once and kept."""
    with Receiver(Keeping(SECRET, max_body=LIMIT)) as receiver:
        found = rehearsed(receiver.url)
    every = {value.name for value in vars(rules).values() if isinstance(value, rules.Rule)}
    assert at(found, "keeps") == every - names(rules.EACH_SECRET, rules.RATE)
    assert at(found, "keeps") == set(found)


def test_a_rehearsal_is_recognised_by_who_receives_it() -> None:
    """By the host that each callback names, by the persona, and by each id."""
    good = Keeping(SECRET, max_body=LIMIT)
    with Receiver(good) as receiver:
        rehearsed(receiver.url)
        hosts = {data(each)["host"] for each in receiver.requests if data(each)}
        personas = {data(each)["persona"] for each in receiver.requests if "bytes" in data(each)}
    assert hosts == {"rehearsal of mriver"}
    assert personas == {"rehearsal"}
    assert all(each.startswith(("aichat_rehearsal_", "rehearsal_")) for each in good.seen)


def test_no_two_rehearsals_share_an_id() -> None:
    """What was rehearsed yesterday is known to the receiver, and no turn's memory is touched."""
    good = Keeping(SECRET, max_body=LIMIT)
    with Receiver(good) as receiver:
        rehearsed(receiver.url)
        first = set(good.seen)
        good.seen.clear()
        rehearsed(receiver.url)
    assert not first & set(good.seen)


SIGNATURES = (
    rules.WRONG, rules.MISSING, rules.MALFORMED_HEADER, rules.DOUBLED, rules.STALE,
)  # fmt: skip
FAULTS: dict[str, tuple[Fault, tuple[Rule, ...]]] = {
    "nothing is verified": (
        instead(lambda _, __, right: right.status == 401, Reply(204)), SIGNATURES,
    ),
    "a page that takes all": (
        instead(lambda *_: True, Reply(200)), (*SIGNATURES, rules.NO_CALLBACK, rules.TOO_LARGE),
    ),
    "pings are not verified": (unproven_pings, (rules.WRONG,)),
    "a wrong signature is taken": (
        instead(lambda good, request, right: right.status == 401 and is_wrong(good, request),
                Reply(204)),
        (rules.WRONG, rules.DOUBLED),
    ),
    "an old signature is taken": (
        instead(lambda good, request, right: right.status == 401 and is_stale(good, request),
                Reply(204)),
        (rules.STALE,),
    ),
    "only the past is stale": (
        instead(lambda good, request, right: right.status == 401 and is_stale(good, request)
                and int(request.headers["webhook-timestamp"]) > good.now(), Reply(204)),
        (rules.STALE,),
    ),
    "a clock must be within 60 s": (
        instead(lambda good, request, right: is_taken(right) and is_stale(good, request, 60),
                Reply(401)),
        (rules.IN_TIME,),
    ),
    "400 for a signature": (
        instead(lambda _, __, right: right.status == 401, Reply(400)),
        tuple(rule for rule in SIGNATURES if rule is not rules.DOUBLED),
    ),
    "403 for a signature": (instead(lambda _, __, right: right.status == 401, Reply(403)),
                            SIGNATURES),
    "an exception at a missing header": (
        instead(lambda _, request, __: is_missing(request), Reply(500)), (rules.MISSING,),
    ),
    "an exception at a malformed header": (
        instead(lambda _, request, __: is_malformed(request), Reply(500)),
        (rules.MALFORMED_HEADER,),
    ),
    "a reset at a missing header": (
        instead(lambda _, request, __: is_missing(request), Reply(how="reset")), (rules.MISSING,),
    ),
    "what is known is a conflict": (
        instead(lambda good, request, _: is_again(good, request), Reply(409)),
        (rules.AGAIN, rules.TWICE),
    ),
    "what is at work is an exception": (in_work, (rules.TWICE,)),
    "a lower revision is a conflict": (
        instead(lambda good, request, right: is_taken(right) and data(request).get("revision") == 1
                and any(f"{data(request).get('turn_id')}_2_" in id_ for id_ in good.seen),
                Reply(409)),
        (rules.ORDER,),
    ),
    "failures are not taken": (
        instead(lambda _, request, right: is_taken(right) and kind(request) == "turn.failed",
                Reply(422)),
        (rules.FAILURE, rules.ORDER),
    ),
    "reasons are an enumeration": (
        instead(lambda _, request, right: is_taken(right) and "reason" in data(request)
                and data(request)["reason"] != "empty", Reply(400)),
        (rules.FAILURE,),
    ),
    "ids are UUIDs": (
        instead(lambda _, request, right: is_taken(right) and "turn_id" in data(request)
                and not is_uuid(data(request)["turn_id"]), Reply(400)),
        (rules.NO_UUID,),
    ),
    "types are an enumeration": (
        instead(lambda _, request, right: is_taken(right) and kind(request)[:5] not in
                ("turn.", "ping"), Reply(400)),
        (rules.LATER_TYPE,),
    ),
    "fields are an enumeration": (
        instead(lambda _, request, right: is_taken(right) and not is_known(request), Reply(400)),
        (rules.LATER_FIELDS,),
    ),
    "what it cannot read is taken": (
        instead(lambda _, __, right: right.status == 400, Reply(204)), (rules.NO_CALLBACK,),
    ),
    "an exception at what it cannot read": (
        instead(lambda _, __, right: right.status == 400, Reply(500)), (rules.NO_CALLBACK,),
    ),
    "what it cannot read is unproven": (
        instead(lambda _, __, right: right.status == 400, Reply(401)), (rules.NO_CALLBACK,),
    ),
    "what it cannot read is put off": (
        instead(lambda _, __, right: right.status == 400, Reply(503)), (rules.NO_CALLBACK,),
    ),
    "one signature": (first_signature_only, (rules.TWO_SECRETS,)),
    "a proxy's limit": (
        instead(lambda _, request, __: len(request.body) > 2048, Reply(413)), (rules.LARGE,),
    ),
    "a reset where it is too large": (
        instead(lambda _, __, right: right.status == 413, Reply(how="reset")), (rules.TOO_LARGE,),
    ),
    "no limit": (instead(lambda _, __, right: right.status == 413, Reply()), (rules.TOO_LARGE,)),
    "a turn takes long": (slow(1.8), (rules.PROMPT,)),
    "pings are no type": (
        instead(lambda _, request, right: is_taken(right) and kind(request) == "ping", Reply(400)),
        (rules.PING,),
    ),
    "unknown turns are missing": (
        instead(lambda _, request, right: is_taken(right) and kind(request)[:5] == "turn.",
                Reply(404)),
        (rules.GOOD,),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "broken"), FAULTS.values(), ids=FAULTS)
def test_a_receiver_with_one_fault(fault: Fault, broken: tuple[Rule, ...]) -> None:
    """The rules that it breaks are named, and no others."""
    with Receiver(fault(Keeping(SECRET, max_body=LIMIT))) as receiver:
        timeout = "3" if rules.PROMPT in broken else "10"
        found = rehearsed(receiver.url, PALIADIN_CALLBACK_TIMEOUT_S=timeout)
    assert at(found, "breaks") == names(*broken)
    for rule in broken:
        # What it costs, beside what was seen.
        assert ": " in found[rule.name].message


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (instead(lambda _, __, right: right.status == 400, Reply(422)), rules.NO_CALLBACK),
        (closing, rules.KEPT),
        (once(429, {"retry-after": "0"}), rules.RATE),
        (busy, rules.TWICE),
    ],
    ids=["another refusal", "no connection is kept", "a limit of the rate", "put off"],
)
def test_what_is_worth_a_note(fault: Fault, rule: Rule) -> None:
    """It breaks no rule."""
    with Receiver(fault(Keeping(SECRET, max_body=LIMIT))) as receiver:
        found = rehearsed(receiver.url)
    assert at(found, "breaks") == set()
    assert at(found, "note") == names(rule)


def test_a_login_before_the_route() -> None:
    """Where it points to is said, without what may be a secret."""
    location = {"location": "/login?next=secret-token"}
    with Receiver(lambda _: Reply(302, location)) as receiver:
        found = rehearsed(receiver.url)
        login = receiver.url.replace("/callback", "/login")
    message = found[rules.GOOD.name].message
    assert found[rules.GOOD.name].level == "breaks"
    assert message.endswith(f"It points to {login}")
    assert "secret-token" not in str(found)
    assert at(found, "untried") >= names(rules.WRONG, rules.AGAIN, rules.LARGE, rules.PROMPT)


def test_every_answer_takes_long() -> None:
    """That is said at once, and not after minutes."""

    def behaviour(request: Request) -> Reply:
        return replace(good(request), delay_s=0.8)

    good = Keeping(SECRET, max_body=LIMIT)
    with Receiver(behaviour) as receiver:
        found = rehearsed(receiver.url, PALIADIN_CALLBACK_TIMEOUT_S="1.5")
        assert len(receiver.requests) == 3
    assert at(found, "breaks") == names(rules.PROMPT)
    assert at(found, "keeps") == names(rules.PING, rules.GOOD, rules.CLOCK)
    assert len(at(found, "untried")) > 15


def test_the_clock_is_compared_when_it_was_told() -> None:
    """And not when all has been played, which may be minutes later."""
    begin = time.time()
    ticks = count(begin, 0.1)

    async def played(url: str) -> list[Judgement]:
        variables = {"PALIADIN_CALLBACK_URL": url, "PALIADIN_CALLBACK_SECRET": SECRET}
        settings = Settings.from_environment(variables)
        async with Sender(url, [SECRET], timeout_s=10) as sender:
            one = play.Play(settings, sender, wall=lambda: next(ticks))
            return [each async for each in one.judgements()]

    with Receiver(Keeping(SECRET, max_body=LIMIT)) as receiver:
        found = anyio.run(played, receiver.url)
    assert next(ticks) - begin > 3
    (of_clocks,) = (each.message for each in found if each.rule is rules.CLOCK)
    # A Date has whole seconds.
    assert re.fullmatch(r"[+-][01] s from the receiver's", of_clocks)


def test_clocks_apart() -> None:
    """The receiver's own, by its answers' Date, and before what comes from it."""
    with Receiver(Keeping(SECRET, max_body=LIMIT, clock_s=500)) as receiver:
        found = rehearsed(receiver.url)
    assert at(found, "breaks") == names(rules.PING, rules.CLOCK, rules.GOOD)
    # A Date has whole seconds.
    assert re.search("is -(499|500) s from the receiver's", found[rules.CLOCK.name].message)
    assert list(found)[:2] == [rules.PING.name, rules.CLOCK.name]


def test_a_clock_that_is_nearly_too_far_off() -> None:
    """What is refused in one direction alone is a clock's, and that is said."""
    with Receiver(Keeping(SECRET, max_body=LIMIT, clock_s=200)) as receiver:
        found = rehearsed(receiver.url)
    assert at(found, "breaks") == names(rules.CLOCK, rules.STALE, rules.IN_TIME)
    assert found[rules.IN_TIME.name].message.endswith("so a clock may be off: date -u, on both")


def test_secrets_of_both() -> None:
    """During a rotation each of the sender's is tried alone."""
    old = new_secret()
    with Receiver(Keeping(SECRET, old, max_body=LIMIT)) as receiver:
        found = rehearsed(receiver.url, old, SECRET)
    assert found[rules.EACH_SECRET.name].level == "keeps"
    with Receiver(Keeping(old, max_body=LIMIT)) as receiver:
        found = rehearsed(receiver.url, old, SECRET)
    assert at(found, "breaks") == names(rules.EACH_SECRET)


def test_a_proxys_limit_is_found() -> None:
    """The largest body that passes, and the smallest that does not."""
    fault = instead(lambda _, request, __: len(request.body) > 2048 + 700, Reply(413))
    with Receiver(fault(Keeping(SECRET, max_body=LIMIT))) as receiver:
        message = rehearsed(receiver.url)[rules.LARGE.name].message
    assert message.startswith("gets 413: ")
    assert "client_max_body_size 32m" in message
    mib = 1024 * 1024
    passes, fails = (round(size * mib) // 512 / mib for size in (0.75, 1.5))
    assert message.endswith(f"{passes:.3g} MiB passes, and {fails:.3g} MiB does not")


def test_nobody_answers() -> None:
    """Then nothing else is tried."""
    with Receiver() as receiver:
        url = receiver.url
    found = rehearsed(url)
    assert at(found, "breaks") == names(rules.PING, rules.GOOD)
    assert at(found, "untried") == set(found) - names(rules.PING, rules.GOOD)
    assert "nothing listens there" in found[rules.PING.name].message


def test_over_tls() -> None:
    """With the authority of the daemon's settings."""
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    with Receiver(Keeping(SECRET, max_body=LIMIT), tls=context) as receiver:
        with ca.cert_pem.tempfile() as pem:
            assert at(rehearsed(receiver.url, PALIADIN_CALLBACK_CA_FILE=pem), "breaks") == set()
        message = rehearsed(receiver.url)[rules.PING.name].message
    assert message.startswith("gets tls (unknown_authority): ")


@pytest.mark.parametrize("takes", [True, False])
def test_nothing_of_a_secret_or_a_body_is_said(*, takes: bool) -> None:
    """Whatever the receiver puts into its answers, and wherever in the rehearsal."""
    good = Keeping(SECRET, max_body=LIMIT)

    def behaviour(request: Request) -> Reply:
        status = good(request).status
        if takes and status == 204:
            return Reply()
        said = SECRET.encode() + request.body[:500]
        return Reply(418, {"x-echo": SECRET, "retry-after": SECRET}, said, phrase=SECRET)

    with Receiver(behaviour) as receiver:
        found = rehearsed(receiver.url)
    assert at(found, "breaks")
    assert SECRET.removeprefix("whsec_")[:16] not in str(found)
    assert "This is a rehearsal" not in str(found)
