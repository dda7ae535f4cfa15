"""Is everything as it must be? Each finding says what, why it matters, and what mends it."""

from __future__ import annotations

import os
import pwd
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Literal

from paliadin_sidecar import policy
from paliadin_sidecar.deliver import Sender
from paliadin_sidecar.dispatch import ping_body
from paliadin_sidecar.watch import Root

if TYPE_CHECKING:
    from pathlib import Path

    from paliadin_sidecar.deliver import Outcome
    from paliadin_sidecar.settings import RootSpec, Settings

__all__ = ["Finding", "examine", "ping"]

#: Signatures are refused when the clocks are 300 s apart; a good clock is never this far off.
_SKEW_S = 30.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `ok`, `note` (nothing to do, but know it) or `wrong`.
        subject: what was looked at.
        message: what was found, why it matters, and what mends it.
    """

    level: Literal["ok", "note", "wrong"]
    subject: str
    message: str


def examine(settings: Settings) -> list[Finding]:
    """Look at everything that can be seen without sending anything."""
    return [
        Finding("ok", "configuration", "every variable can be read"),
        _state_dir(settings.state_dir),
        *(_root(spec, settings.owner) for spec in settings.roots),
        _leases(settings.owner),
        _secrets(settings),
        _url(settings),
    ]


async def ping(settings: Settings) -> list[Finding]:
    """Ask the receiver whether it is well, and how its clock stands."""
    async with Sender(
        settings.callback_url,
        settings.secrets,
        timeout_s=settings.callback_timeout_s,
        ca_file=settings.callback_ca_file,
    ) as sender:
        outcome = await sender.attempt(*ping_body(settings.host_label, time.time()))
    return [_answer(outcome), *_clock(outcome.date, time.time())]


def _state_dir(path: Path) -> Finding:
    subject = f"state directory {path}"
    if not path.exists():
        return Finding("note", subject, "does not exist yet; `run` makes it")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        user = pwd.getpwuid(os.geteuid()).pw_name
        return Finding(
            "wrong",
            subject,
            f"cannot be written by {user}, so no answer could be kept: chown {user} {path}",
        )
    if path.stat().st_mode & 0o077:
        return Finding("note", subject, f"is open to others, its files are not: chmod 700 {path}")
    return Finding("ok", subject, "can be written")


def _root(spec: RootSpec, owner: int) -> Finding:
    subject = f"root {spec.backend}/{spec.persona} {spec.path}"
    root = Root(spec.path, owner)
    root.check()
    root.close()
    if root.state == "untrusted":
        return Finding("wrong", subject, f"{root.why}; nothing is taken from it until then")
    if root.state == "missing":
        return Finding("note", subject, f"{root.why}; it is watched as soon as it does")
    return Finding("ok", subject, "is there and can be trusted")


def _leases(owner: int) -> Finding:
    subject = "read leases"
    if os.geteuid() == owner or _has_capability(_CAP_LEASE):
        return Finding("ok", subject, "can be taken: a closed file is known at once")
    return Finding(
        "note",
        subject,
        f"cannot be taken on files of user {owner}, so every answer waits until its file was "
        "quiet: run as that user, or with CAP_LEASE and CAP_DAC_READ_SEARCH",
    )


def _secrets(settings: Settings) -> Finding:
    count = len(settings.secrets)
    if count == 1:
        return Finding("ok", "callback secret", "one")
    return Finding("note", "callback secret", f"{count}, as during a rotation; both ends know all?")


def _url(settings: Settings) -> Finding:
    if settings.callback_insecure:
        return Finding(
            "note",
            "callback",
            f"{settings.callback_url}: PALIADIN_CALLBACK_INSECURE=1 allows answers to be read "
            "on the way; unset it where the way is not a host's own",
        )
    return Finding("ok", "callback", settings.callback_url)


def _answer(outcome: Outcome) -> Finding:
    verdict = policy.classify(outcome.status)
    if verdict is policy.Verdict.ACKNOWLEDGED:
        return Finding("ok", "ping", f"{outcome.status} after {outcome.ms:.0f} ms")
    mend = {
        "dns": "its name does not resolve: see PALIADIN_CALLBACK_URL and this host's resolver",
        "connect": "nothing listens there: is the receiver up, is a firewall between?",
        "tls": "its certificate is not trusted: renew it, or name the authority in "
        "PALIADIN_CALLBACK_CA_FILE",
        "timeout": "it did not answer in time: see PALIADIN_CALLBACK_TIMEOUT_S and its load",
        401: "it does not accept the signature: is PALIADIN_CALLBACK_SECRET the same there?",
        403: "it does not let us in: is a session or a firewall before the route?",
        404: "there is no such route: see PALIADIN_CALLBACK_URL",
    }.get(outcome.error or outcome.status or 0, "see the receiver's own log")
    what = outcome.error or f"status {outcome.status}"
    return Finding("wrong", "ping", f"{what}: {mend}")


def _clock(date: str | None, now: float) -> list[Finding]:
    try:
        skew_s = now - parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return []  # it sends no date, so nothing can be said
    if abs(skew_s) > _SKEW_S:
        return [
            Finding(
                "wrong",
                "clock",
                f"is {skew_s:+.0f} s from the receiver's, and at 300 s every signature is "
                "refused: timedatectl set-ntp true, on whichever is wrong",
            )
        ]
    return [Finding("ok", "clock", f"{skew_s:+.0f} s from the receiver's")]


#: Source: linux/capability.h.
_CAP_LEASE = 28


def _has_capability(number: int) -> bool:
    try:
        with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123 - no path of ours
            effective = next(line for line in lines if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return False
    return bool(int(effective.split()[1], 16) >> number & 1)
