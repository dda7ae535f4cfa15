"""What is wrong, what it usually comes from, and what mends it. Pure: sentences for an operator.

`check --ping`, `status` and `turns` say the same of the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple
from urllib.parse import urljoin, urlsplit

from paliadin_sidecar.operator.terminal import local_time, printable
from paliadin_sidecar.outbox.records import Outcome

#: Why there was no HTTP status, by `records.Outcome.error`.
_ERRORS = {
    "dns": "its name does not resolve: see PALIADIN_CALLBACK_URL and this host's resolver "
    "(getent hosts NAME)",
    "connect": "nothing listens there: is the receiver up, is a firewall between, is it the right "
    "port?",
    "tls": "TLS with it fails: paliadin-sidecar check --ping says why",
    "timeout": "it did not answer in time: see PALIADIN_CALLBACK_TIMEOUT_S and its load; a "
    "firewall that drops packets, and a port that speaks something else, look the same",
    "early": "it said 2xx before it had the whole request, so it cannot have stored it: a proxy or "
    "a page that takes everything stands before the receiver; see PALIADIN_CALLBACK_URL",
    "reset": "the connection ended without an answer: the receiver or a proxy died or closed it, "
    "or that port speaks TLS where PALIADIN_CALLBACK_URL says http",
}
#: Why TLS failed, by `records.Outcome.detail`.
_TLS = {
    "no_tls": "that port does not speak TLS, probably plain HTTP: see the port in "
    "PALIADIN_CALLBACK_URL, and whether what ends TLS listens on it",
    "wrong_name": "its certificate is for another name: PALIADIN_CALLBACK_URL must name the host "
    "as the certificate does, or the receiver needs a certificate for this name. If this host came "
    "to another network just now, that one's login page may answer instead: log in there",
    "unknown_authority": "its certificate is signed by an authority that this host does not know: "
    "name that authority's file in PALIADIN_CALLBACK_CA_FILE; if it is a public one, the receiver "
    "does not send its intermediate certificate. If this host came to another network just now, "
    "that one's login page may answer instead: log in there",
    "expired": "its certificate has expired: renew it there; if it has not, this host's clock is "
    "wrong (date -u)",
    "not_yet_valid": "its certificate is not valid yet: this host's clock is wrong (date -u), or "
    "the certificate is of the future",
}
_STATUSES = {
    400: "it, or a proxy before it, does not understand the request: is it TLS on a port that "
    "PALIADIN_CALLBACK_URL names with http? Does the receiver read what docs/protocol.md says?",
    401: "it does not accept the signature: is PALIADIN_CALLBACK_SECRET the same there, and are "
    "the clocks less than 300 s apart (date -u, on both)?",
    403: "it does not let us in: is a login, a CSRF check or a firewall before the route?",
    404: "there is no such route: see the path in PALIADIN_CALLBACK_URL",
    405: "the route does not take POST: see the path in PALIADIN_CALLBACK_URL",
    408: "it, or a proxy, waited too long for the body: a slow line, or a limit that is too short",
    410: "the route was taken away: see the path in PALIADIN_CALLBACK_URL",
    411: "it, or a proxy, does not take the request's form: see its own log",
    413: "the body is larger than it takes: usually the limit of a proxy before it (nginx: "
    "client_max_body_size 32m), else the receiver's own",
    414: "the address is too long for it: see PALIADIN_CALLBACK_URL",
    415: "it does not take application/json there: see the path in PALIADIN_CALLBACK_URL",
    422: "it does not accept the body: see its own log",
    429: "it asks for fewer requests: a rate limit there or in a proxy, which the sender respects",
    431: "the headers are larger than it takes: see the limits of a proxy before it",
    500: "the receiver failed: see its own log at that time",
    502: "a proxy is up and the receiver behind it is not: see the receiver",
    503: "it says that it cannot now: the receiver, or its database, is down or overloaded",
    504: "a proxy got no answer from the receiver behind it in time: see the receiver",
    511: "the network wants a login first, and nothing goes out before: log in there",
}


class Problem(NamedTuple):
    """Something that is wrong.

    Attributes:
        cause: which of the known causes it is, as one sentence without a full stop.
        text: all that there is to say, and what mends it.
    """

    cause: str
    text: str


@dataclass(frozen=True)
class Finding:
    """One thing that `check` examined.

    Attributes:
        level: `ok`, `note` (nothing to do, but know it) or `wrong`.
        subject: what was examined.
        message: what was found, why it matters, and what mends it.
        cause: see `Problem`; where it is empty, the beginning of the message says it.
    """

    level: Literal["ok", "note", "wrong"]
    subject: str
    message: str
    cause: str = ""

    @property
    def sentence(self) -> str:
        """What is wrong, in one sentence, without what mends it."""
        return self.cause or f"{self.subject}: {_without_cure(self.message)}"


ok = partial(Finding, "ok")
note = partial(Finding, "note")
wrong = partial(Finding, "wrong")


def answer_name(status: int | None, error: str | None, detail: str | None = None) -> str:
    """What came back, in a word or two: `413`, `timeout`, `tls (expired)`; empty for nothing."""
    if status is not None:
        return str(status)
    return f"{error} ({detail})" if error and detail else error or ""


def likely_cause(status: int | None, error: str | None, detail: str | None = None) -> str:
    """The likely cause of a failed attempt, and its cure, as one sentence without a full stop.

    Args:
        status: the HTTP status, None where there was none.
        error: see `records.Outcome`.
        detail: see `records.Outcome`.
    """
    if status is None:
        if error == "tls" and detail:
            return _TLS.get(
                detail, f"TLS with it fails ({detail}): see the receiver's TLS settings"
            )
        return _ERRORS.get(error or "", "see this host's network, and the receiver's own log")
    if status in _STATUSES:
        return _STATUSES[status]
    if 300 <= status < 400:  # noqa: PLR2004 - HTTP's own class
        return (
            "it points to another address, and redirects are not followed, since an answer goes "
            "only where it was configured to: PALIADIN_CALLBACK_URL must be the last address"
        )
    return "see the receiver's own log at that time"


def cause_of(outcome: Outcome, url: str) -> str:
    """The likely cause of a failed attempt, and where a redirect points to.

    Args:
        outcome: of the attempt.
        url: where it went.
    """
    cause = likely_cause(outcome.status, outcome.error, outcome.detail)
    if outcome.location is None or outcome.status is None or outcome.status // 100 != 3:  # noqa: PLR2004 - HTTP's own classes
        return cause
    try:
        # What stands behind the path, or before the host, may be a secret.
        to = urlsplit(urljoin(url, outcome.location))
        shown = f"{to.scheme}://{to.hostname}{f':{to.port}' if to.port else ''}{to.path}"
    except ValueError:
        return cause
    return f"{cause}. It points to {printable(shown)}"


def _without_cure(sentence: str) -> str:
    # Each sentence says first what is so, and behind a colon what is done about it.
    return sentence.partition(": ")[0].partition(". ")[0]


def receiver_cause(answer: str, cause: str) -> str:
    """The receiver, with what it answered and why, without what mends it.

    Args:
        answer: see `answer_name`.
        cause: see `likely_cause`.
    """
    # Where the cause is not known, all that can be said is where to look.
    known = "" if cause.startswith("see ") else f": {_without_cure(cause)}"
    return f"the receiver ({answer}){known}"


def failing_problems(
    rows: Iterable[Mapping[str, Any]], *, dead: int, paused_for: str | None
) -> list[Problem]:
    """What `status` says of deliveries that do not get through: one for each last answer.

    Args:
        rows: see `outbox.queries.failing`.
        dead: how many were given up within a day.
        paused_for: why the receiver is paused, which is then said once and not for each turn.
    """
    pending: list[Problem] = []
    given_up, causes = [], []
    for row in rows:
        status, error, detail = row["status"], row["error"], row["detail"]
        answer, cause = answer_name(status, error, detail), likely_cause(status, error, detail)
        if row["state"] == "dead":
            given_up.append(f"{row['n']} with {answer}: {cause}")
            causes.append(f", by {receiver_cause(answer, cause)}")
        elif paused_for is None or paused_for not in {error, f"status_{status}"}:
            pending.append(
                Problem(
                    f"{row['n']} undelivered, for {receiver_cause(answer, cause)}",
                    f"{row['n']} undelivered after several attempts, last answer {answer}: {cause}",
                )
            )
    if dead:
        why = "; ".join(given_up) or "turns --state dead lists them"
        text = (
            f"{dead} given up within a day ({why}). Mend that first, see that check --ping is "
            "well, and then: paliadin-sidecar replay --dead"
        )
        pending.append(Problem(f"{dead} given up within a day{''.join(causes[:1])}", text))
    return pending


def pause_reason(paused_for: str) -> tuple[int | None, str | None]:
    """The status, or else the error, that a pause is recorded for.

    Args:
        paused_for: an error, or `status_` and the number.
    """
    number = paused_for.removeprefix("status_")
    if number != paused_for and number.isdecimal():
        return int(number), None
    return None, paused_for


def pause_problem(paused_for: str, since: float, rows: Iterable[Mapping[str, Any]]) -> Problem:
    """What `status` says of a pause: why, since when, and what mends it.

    Args:
        paused_for: see `pause_reason`.
        since: when it began, in epoch seconds.
        rows: see `outbox.queries.failing`; they may know more of why.
    """
    status, error = pause_reason(paused_for)
    detail = next((row["detail"] for row in rows if error and row["error"] == error), None)
    answer, cause = answer_name(status, error, detail), likely_cause(status, error, detail)
    text = (
        f"the receiver is not well since {local_time(since)} ({answer}), and turns wait until a "
        f"ping is answered; paliadin-sidecar check --ping sends one now. Its likely cause: {cause}"
    )
    return Problem(f"turns wait for {receiver_cause(answer, cause)}", text)


def root_problems(roots: Iterable[Mapping[str, Any]], missing_before: float) -> list[Problem]:
    """What is wrong with the directories.

    Args:
        roots: the daemon's, of `outbox.queries.service`.
        missing_before: one that is missing since a later time, in epoch seconds, is not wrong yet.
    """
    return [
        Problem(
            f"no answers are taken from {root['path']}, since {_without_cure(root['why'])}",
            f"root {root['path']}: {root['why']} (since {local_time(root['since'])}); "
            "paliadin-sidecar check says what mends it",
        )
        for root in roots
        if root["state"] in ("untrusted", "unreadable")
        or (root["state"] == "missing" and root["since"] < missing_before)
    ]


def waiting_problems(roots: Iterable[Mapping[str, Any]]) -> list[Problem]:
    """One for each file that has waited for long, of those that a root's state names.

    Args:
        roots: the daemon's, of `outbox.queries.service`.
    """
    found = []
    for root in roots:
        for one in root["waiting"]:
            path = f"{root['path']}/{one['turn_id']}.txt"
            why = "a process has it open for writing: fuser -v names it"
            if one["why"] == "unreadable":
                why = f"it cannot be opened ({one['detail']}): see its owner and mode"
            cause = f"{path} waits, since {_without_cure(why)}"
            found.append(Problem(cause, f"{path} waits since {local_time(one['since'])}, {why}"))
        if (more := root["waiting_files"] - len(root["waiting"])) > 0:
            text = f"{more} more files wait in {root['path']}"
            found.append(Problem(text, text))
    return found
