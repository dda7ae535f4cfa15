"""Plays the rules against a receiver, one after the other."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from uuid import uuid4

import anyio

from paliadin_contract.signature import Keys
from paliadin_sidecar.delivery.policy import Verdict, classify, retry_after_s
from paliadin_sidecar.delivery.sender import Sender, sender_of
from paliadin_sidecar.operator.checks.receiver import clock, unknown_secret
from paliadin_sidecar.operator.rehearsal import rules
from paliadin_sidecar.operator.rehearsal.callbacks import Author, Message
from paliadin_sidecar.operator.rehearsal.rules import Judgement
from paliadin_sidecar.outbox.records import Outcome
from paliadin_sidecar.settings import Settings

_MIB = 1024 * 1024
#: As many turns as a sender has under way at once.
_AT_ONCE = 8
#: A file of the usual limit, each of whose bytes JSON writes as six, makes a body of 24 MiB.
_LARGE = "\x01" * (4 * _MIB)
_TOO_LARGE_BYTES = 33 * _MIB
#: What is tried where the large one does not pass, downwards: limits are usually powers of two.
_SMALLER_BYTES = tuple(round(size * _MIB) for size in (15, 7.5, 3.5, 1.5, 0.75, 0.3))
#: Seconds by which a clock may be off, and by which it may not; the protocol's limit is 300.
_NEAR_S, _FAR_S = 240, 400
#: A receiver that limits the rate is waited for: so often, and no longer at a time.
_MAX_RESTS, _MAX_REST_S = 5, 10.0

Part = Callable[[], AsyncIterator[Judgement]]


async def rehearse(settings: Settings) -> list[Judgement]:
    """All that is to be said of the receiver, in the order in which it was played."""
    async with sender_of(settings) as sender:
        return [judgement async for judgement in Play(settings, sender).judgements()]


class Play:
    """One rehearsal.

    Args:
        settings: the daemon's: where the receiver is, and what proves a callback.
        sender: open, to that receiver.
        wall: the clock, in epoch seconds.
    """

    def __init__(
        self, settings: Settings, sender: Sender, wall: Callable[[], float] = time.time
    ) -> None:
        self._url = settings.callback_url
        self._timeout_s = settings.callback_timeout_s
        self._secrets = settings.secrets
        self._keys = Keys(settings.secrets)
        self._unknown = unknown_secret()
        self._sender = sender
        self._wall = wall
        self._author = Author(settings.host_label, self._now())
        self._good = self._author.answer()
        self._longest_ms = 0.0
        self._rests = 0  # how often the receiver asked for fewer requests, and was waited for

    async def judgements(self) -> AsyncIterator[Judgement]:
        """Each rule as it is played, and then those that could not be, as `untried`."""
        ping = await self._send(self._author.ping())
        # They may be why signatures are refused, so they come early.
        of_clocks = [rules.clocks(each) for each in clock(ping, self._wall())]
        yield rules.taken(rules.PING, [ping], self._url)
        for judgement in of_clocks:
            yield judgement
        first = await self._send(self._good)
        yield rules.taken(rules.GOOD, [first], self._url)
        parts, needs = await self._parts(ping, first)
        played = set()
        for part in parts:
            async for judgement in part():
                played.add(judgement.rule)
                yield judgement
        for rule in rules.IN_ORDER:
            if rule not in played:
                text = f"needs a receiver that {needs}: mend that first, and rehearse again"
                yield Judgement("untried", rule, text)
        if self._rests:
            text = f"it asked for fewer requests {self._rests} times, and was waited for"
            yield Judgement("note", rules.RATE, text)

    async def _parts(self, ping: Outcome, first: Outcome) -> tuple[tuple[Part, ...], str]:
        # What can be played after these answers, and what the receiver must do for the others.
        if not (_is_taken(ping) or _is_taken(first)):
            # A secret, a clock, a login, nobody there: whatever else is seen comes from that.
            return (), "takes a ping and a turn"
        if self._is_late(first) and self._is_late(await self._send(self._author.answer())):
            # Not just a receiver that wakes up: all of it would take minutes.
            return (self._in_good_time,), "answers in good time"
        refusals = (self._wrong_signatures, self._wrong_headers, self._no_callback)
        if not _is_taken(first):
            return refusals, "takes a turn"
        taken = (self._again, self._others, self._secrets_of_both, self._eight)
        return (*refusals, *taken, self._sizes, self._in_good_time), ""

    # --- what is not proven ---------------------------------------------------------------

    async def _wrong_signatures(self) -> AsyncIterator[Judgement]:
        unknown, author = Keys([self._unknown]), self._author
        outcomes = [
            await self._send(author.ping(), unknown),
            await self._send(author.answer(), unknown),
        ]
        # Signed well, and changed on the way.
        signed, other = author.answer(), author.answer()
        outcomes.append(await self._post(self._signed(signed), other.body))
        yield rules.refused(rules.WRONG, outcomes, wanted=401)
        outcomes = [await self._send(author.answer(), shift_s=shift) for shift in (-_FAR_S, _FAR_S)]
        yield rules.either_way(rules.refused(rules.STALE, outcomes, wanted=401), outcomes)

    async def _wrong_headers(self) -> AsyncIterator[Judgement]:
        outcomes = []
        for missing in ("webhook-signature", "webhook-timestamp", "webhook-id"):
            message = self._author.answer()
            headers = self._signed(message)
            del headers[missing]
            outcomes.append(await self._post(headers, message.body))
        yield rules.refused(rules.MISSING, outcomes, wanted=401)
        outcomes = []
        for name, value in (
            ("webhook-signature", "v1,"),
            ("webhook-signature", "rehearsal"),
            ("webhook-signature", ""),
            ("webhook-timestamp", "now"),
            ("webhook-timestamp", "9" * 400),
        ):
            message = self._author.answer()
            outcomes.append(await self._post(self._signed(message) | {name: value}, message.body))
        yield rules.refused(rules.MALFORMED_HEADER, outcomes, wanted=401)
        message = self._author.answer()
        wrong = self._signed(message, Keys([self._unknown]))
        twice = wrong | {"Webhook-Signature": wrong["webhook-signature"]}
        outcome = await self._post(twice, message.body)
        # A server, or a proxy, may take such a request for none at all.
        yield rules.refused(rules.DOUBLED, [outcome], wanted=401, also=(400,))

    async def _no_callback(self) -> AsyncIterator[Judgement]:
        author = self._author
        messages = (
            author.no_json(),
            author.wrong_shape(turn_id="../rehearsal"),
            author.wrong_shape(response=7),
        )
        outcomes = [await self._send(message) for message in messages]
        yield rules.refused(rules.NO_CALLBACK, outcomes, wanted=400)

    # --- what is taken --------------------------------------------------------------------

    async def _again(self) -> AsyncIterator[Judgement]:
        yield rules.taken(rules.AGAIN, [await self._send(self._good)], self._url)
        message = self._author.answer()
        outcomes = await self._at_once([message, message])
        again = await self._send(message)
        yield rules.taken_at_once(outcomes, again, self._url)

    async def _others(self) -> AsyncIterator[Judgement]:
        author, turn_id = self._author, str(uuid4())
        for rule, messages in (
            (
                rules.ORDER,
                (
                    author.answer(turn_id, revision=2),
                    author.answer(turn_id),
                    author.failure(turn_id),
                ),
            ),
            (rules.FAILURE, (author.failure(), author.failure(reason="rehearsal"))),
            (rules.NO_UUID, (author.answer(f"Rehearsal_{secrets.token_hex(8)}-"),)),
            (rules.LATER_TYPE, (author.later_type(),)),
            (rules.LATER_FIELDS, (author.later_fields(),)),
        ):
            yield rules.taken(rule, [await self._send(each) for each in messages], self._url)
        outcomes = [
            await self._send(author.answer(), shift_s=shift) for shift in (-_NEAR_S, _NEAR_S)
        ]
        yield rules.either_way(rules.taken(rules.IN_TIME, outcomes, self._url), outcomes)

    async def _secrets_of_both(self) -> AsyncIterator[Judgement]:
        outcomes = [
            await self._send(self._author.answer(), Keys(both))
            for both in ((self._unknown, *self._secrets), (*self._secrets, self._unknown))
        ]
        # One that is there twice, and one behind another version's.
        for others in ("{0} {0}", "v2,{0} v1a,{0} {0}"):
            message = self._author.answer()
            headers = self._signed(message)
            several = others.format(headers["webhook-signature"])
            headers |= {"webhook-signature": several}
            outcomes.append(await self._post(headers, message.body))
        yield rules.taken(rules.TWO_SECRETS, outcomes, self._url)
        if len(self._secrets) > 1:
            outcomes = [
                await self._send(self._author.answer(), Keys([each])) for each in self._secrets
            ]
            yield rules.taken(rules.EACH_SECRET, outcomes, self._url)

    async def _eight(self) -> AsyncIterator[Judgement]:
        outcomes = await self._at_once([self._author.answer() for _ in range(_AT_ONCE)])
        before = self._sender.opened
        outcomes += await self._at_once([self._author.answer() for _ in range(_AT_ONCE)])
        yield rules.taken(rules.EIGHT, outcomes, self._url)
        yield rules.kept(self._sender.opened - before, _AT_ONCE)

    async def _sizes(self) -> AsyncIterator[Judgement]:
        outcome = await self._send_large(self._author.answer(text=_LARGE))
        passes, fails = None, len(_LARGE) * 6
        for size in () if _is_taken(outcome) else _SMALLER_BYTES:
            smaller = await self._send_large(self._author.answer(text="x" * size))
            if _is_taken(smaller):
                passes = size
                break
            fails = size
        yield rules.large(outcome, passes, fails, self._url)
        outcome = await self._send_large(self._author.answer(text="x" * _TOO_LARGE_BYTES))
        yield rules.refused(rules.TOO_LARGE, [outcome], wanted=413)

    async def _in_good_time(self) -> AsyncIterator[Judgement]:
        yield rules.prompt(self._longest_ms, self._timeout_s)

    # --- attempts -------------------------------------------------------------------------

    def _now(self, shift_s: float = 0) -> datetime:
        return datetime.fromtimestamp(self._wall(), UTC) + timedelta(seconds=shift_s)

    def _signed(
        self, message: Message, keys: Keys | None = None, shift_s: float = 0
    ) -> dict[str, str]:
        return (keys or self._keys).sign(message.id, message.body, self._now(shift_s))

    async def _send(
        self, message: Message, keys: Keys | None = None, shift_s: float = 0
    ) -> Outcome:
        return await self._post(self._signed(message, keys, shift_s), message.body)

    async def _post(self, headers: Mapping[str, str], body: bytes) -> Outcome:
        outcome = await self._sender.post(headers, body)
        for _ in range(_MAX_RESTS):
            if outcome.status != HTTPStatus.TOO_MANY_REQUESTS:
                break
            # A limit is no fault. The signature is still good, and what is stale stays so.
            self._rests += 1
            asked_s = retry_after_s(outcome.retry_after, self._wall()) or 1.0
            await anyio.sleep(min(asked_s, _MAX_REST_S))
            outcome = await self._sender.post(headers, body)
        if outcome.status is not None:
            self._longest_ms = max(self._longest_ms, outcome.ms)
        return outcome

    def _is_late(self, outcome: Outcome) -> bool:
        return _is_taken(outcome) and rules.prompt(outcome.ms, self._timeout_s).level == "breaks"

    async def _send_large(self, message: Message) -> Outcome:
        # How long these take says more of the line than of the receiver.
        longest = self._longest_ms
        outcome = await self._send(message)
        self._longest_ms = longest
        return outcome

    async def _at_once(self, messages: list[Message]) -> list[Outcome]:
        return await asyncio.gather(*map(self._send, messages))


def _is_taken(outcome: Outcome) -> bool:
    return classify(outcome.status) is Verdict.ACKNOWLEDGED
