"""The callback: how it is configured, and, for `check --ping`, what the receiver answers."""

from __future__ import annotations

import base64
import re
import secrets
import ssl
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import anyio

from paliadin_sidecar.delivery import policy
from paliadin_sidecar.delivery.health import ping_body
from paliadin_sidecar.delivery.sender import sender_of
from paliadin_sidecar.operator import diagnosis
from paliadin_sidecar.operator.diagnosis import Finding, note, ok, wrong
from paliadin_sidecar.operator.terminal import utc_time
from paliadin_sidecar.outbox.records import Outcome
from paliadin_sidecar.settings import Settings

#: Not `whsec_<base64>`, which explains one.
_SECRET = re.compile(rb"whsec_[A-Za-z0-9+/=]{8}")
#: Signatures are refused when the clocks are 300 s apart; a good clock is never this far off.
_SKEW_S = 30.0
#: How long a port is asked what it speaks.
_PROBE_S = 5.0
#: What a receiver answers, or does not, when it is spoken to in the wrong protocol.
_MAYBE_PROTOCOL = {"tls", "timeout", "reset", 400}


def callback_secrets(settings: Settings) -> Finding:
    """How many there are; two are right while one is being replaced."""
    count = len(settings.secrets)
    if count == 1:
        return ok("callback secret", "one")
    return note("callback secret", f"{count}, as during a rotation; both ends know all?")


def exposed_secrets(paths: Iterable[Path]) -> Iterator[Finding]:
    """The files that hold a secret and that everybody can read."""
    for path in paths:
        try:
            exposed = path.stat().st_mode & stat.S_IROTH and _SECRET.search(path.read_bytes())
        except OSError:
            continue  # there is none
        if exposed:
            text = (
                f"{path} can be read by everybody, who can then forge callbacks: chmod 600 {path}"
            )
            yield wrong("secret's file", text)


def callback_url(settings: Settings) -> Finding:
    """Where answers go, and whether they may be read on the way."""
    if not settings.callback_insecure:
        return ok("callback", settings.callback_url)
    text = (
        f"{settings.callback_url}: PALIADIN_CALLBACK_INSECURE=1 allows answers to be read on the "
        "way, and taken by whoever answers in the receiver's place, as the login page of a network "
        "does; unset it where the way is not a host's own"
    )
    return note("callback", text)


async def ping(settings: Settings) -> list[Finding]:
    """Ask the receiver whether it is well and verifies signatures, and how its clock stands."""
    outcome = await _attempt(settings, settings.secrets)
    of_clocks = clock(outcome, time.time())
    if _is_acknowledged(outcome):
        answer = ok("ping", f"{outcome.status} after {outcome.ms:.0f} ms")
        forged = await _attempt(settings, (unknown_secret(),))
        return [answer, _verification(forged), *of_clocks]
    cause = await _other_protocol(settings.callback_url, outcome)
    cause = cause or diagnosis.cause_of(outcome, settings.callback_url)
    what = diagnosis.answer_name(outcome.status, outcome.error, outcome.detail)
    sentence = f"turns wait for {diagnosis.receiver_cause(what, cause)}"
    what = f"status {what}" if outcome.status is not None else what
    answer = wrong("ping", f"{what}, so answers wait here; {cause}", sentence)
    is_off = any(each.level == "wrong" for each in of_clocks)
    if is_off and outcome.status == HTTPStatus.UNAUTHORIZED:
        return [*of_clocks, answer]  # which comes from it
    return [answer, *of_clocks]


def unknown_secret() -> str:
    """A secret that no receiver has."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


async def _attempt(settings: Settings, signed_with: Iterable[str]) -> Outcome:
    async with sender_of(settings, signed_with) as sender:
        return await sender.attempt(*ping_body(settings.host_label, time.time()))


def _is_acknowledged(outcome: Outcome) -> bool:
    return policy.classify(outcome.status) is policy.Verdict.ACKNOWLEDGED


def _verification(forged: Outcome) -> Finding:
    # What acknowledges whatever comes acknowledges answers as well, and they are not sent again.
    gets = diagnosis.answer_name(forged.status, forged.error, forged.detail)
    if not _is_acknowledged(forged):
        return ok("signature check", f"a ping with a wrong signature gets {gets}")
    text = (
        f"a ping with a wrong signature gets {gets} as well, so what answers there is not paliad's "
        "route but something that takes all, such as a login page or a proxy's own, and then every "
        "answer that it acknowledges is lost: see the path in PALIADIN_CALLBACK_URL and what is "
        "before paliad. Or the route verifies no signatures, and anybody can forge answers there"
    )
    cause = (
        f"what answers takes a wrong signature ({gets}), so it is not paliad's route or verifies "
        "none"
    )
    return wrong("signature check", text, cause)


async def _other_protocol(url: str, outcome: Outcome) -> str | None:
    # What the port really speaks, where the answer may mean that it is not what the URL says.
    if not {outcome.error, outcome.status} & _MAYBE_PROTOCOL:
        return None
    parts = urlsplit(url)
    no_answer = (OSError, anyio.EndOfStream, anyio.BrokenResourceError)
    with anyio.move_on_after(_PROBE_S), suppress(*no_answer):
        if parts.scheme.lower() == "https":
            if await _speaks_plain_http(parts):
                return (
                    "that port speaks plain HTTP, no TLS: PALIADIN_CALLBACK_URL needs the port "
                    "where TLS ends, or, on this very host, http:// instead of https://"
                )
        elif await _speaks_tls(parts):
            return "that port speaks TLS: PALIADIN_CALLBACK_URL must begin with https://"
    return None


async def _speaks_plain_http(url: SplitResult) -> bool:
    async with await anyio.connect_tcp(url.hostname or "", url.port or 443) as stream:
        await stream.send(f"HEAD / HTTP/1.0\r\nHost: {url.hostname}\r\n\r\n".encode())
        return (await stream.receive()).startswith(b"HTTP/")


async def _speaks_tls(url: SplitResult) -> bool:
    with suppress(ssl.SSLCertVerificationError):
        await (await anyio.connect_tcp(url.hostname or "", url.port or 80, tls=True)).aclose()
    return True


def clock(outcome: Outcome, now: float) -> list[Finding]:
    """How the clock of who answered stands, by the answer's `Date`.

    Args:
        outcome: of an attempt just made.
        now: this host's clock, in epoch seconds.
    """
    try:
        skew_s = now - parsedate_to_datetime(outcome.date or "").timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        if outcome.status not in {400, 401, 403}:
            return []  # nothing can be said, and nothing points to the clocks
        unknown = (
            f"this host's is {utc_time(now)}; the receiver sends no Date, so its own cannot be "
            "compared here, and at 300 s every signature is refused: date -u, on both"
        )
        return [note("clock", unknown)]
    if abs(skew_s) > _SKEW_S:
        text = (
            f"is {skew_s:+.0f} s from the receiver's, and at 300 s every signature is refused: "
            "timedatectl set-ntp true, on whichever is wrong"
        )
        return [wrong("clock", text)]
    return [ok("clock", f"{skew_s:+.0f} s from the receiver's")]
