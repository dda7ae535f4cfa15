"""Every error that the client raises, and what an HTTP status or an exit status of ssh means.

PaliadinError
├── ConfigError         the environment is wrong; names all that is wrong with it
├── NotConfigured       the legacy path has no host yet
├── BadRequest          refused, here or there, and would be again
│   └── MessageTooLong  more than the legacy path can carry
├── AuthFailed          aichat does not take our token
│   └── ShimAuthFailed  ssh does not take our key, or we do not know the host's
├── PersonaUnknown      aichat has no such persona
├── Unreachable         nothing was sent: the host cannot be reached
├── BootstrapFailed     the host could not start the agent
├── ShimError           the backend failed in another way
├── SubmitLost          the submit is over, but the turn may still be answered
│   ├── BackendTimeout  the backend gave up waiting
│   └── ConnectionLost  the connection went away after something was sent
├── TurnTimeout         no answer within the deadline
├── StoreFailed         the store of pushes and responses does not answer
└── AnswerUnusable      the agent's file cannot become an answer
"""

from __future__ import annotations

from collections.abc import Sequence

from paliadin_client.sshlog import Stage
from paliadin_client.text import excerpt, last_lines

_IS_IT_UP = "Is the host up? `paliadin health` shows when it is again."
_AGENT_IS_BUSY = "The agent may still be at it. `paliadin reset` ends its session."


class PaliadinError(Exception):
    """Root of everything the client raises.

    Its `str` is for a log: our own words, never what the backend said, because a backend's
    complaint may quote the message or the token that it complains of. What it said is in
    `detail`, for the one who asked.

    Attributes:
        code: stable name of the kind of error.
        remedy: what to do about it; a traceback shows it as a note. It may be empty where the
            reason says it already.
        exit_code: that of a command which ends with it.
        retryable: whether the same call may well succeed later, with nothing changed.
        detail: what the backend said: one line, at most 200 characters, no control characters. Of
            several hosts it is why none can be asked, each by its name, however many there are.
    """

    code = ""
    remedy = ""
    exit_code = 1
    retryable = False

    def __init__(
        self,
        reason: str,
        *,
        detail: str = "",
        retryable: bool | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.detail = excerpt(detail)
        if retryable is not None:
            self.retryable = retryable
        if remedy is not None:
            self.remedy = remedy
        if self.remedy:
            self.add_note(self.remedy)

    def __str__(self) -> str:
        return f"{self.code}: {self.args[0]}"


class ConfigError(PaliadinError):
    """The environment is wrong. `problems` has a sentence for each variable that is."""

    code = "bad_config"
    remedy = "Set them in the environment; docs/client.md has the table."
    exit_code = 78

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class NotConfigured(PaliadinError):
    """There is no backend to ask."""

    code = "not_configured"
    remedy = "Set PALIADIN_REMOTE_HOST, or PALIADIN_BACKEND=aichat and its variables."
    exit_code = 78


class BadRequest(PaliadinError):
    """The request is refused, and would be again."""

    code = "bad_request"
    remedy = "Change the request: the same one would be refused again."
    exit_code = 2


class MessageTooLong(BadRequest):
    """More than the legacy path can carry. Sizes are bytes of base64."""

    remedy = "Shorten the question or the primer, or ask over aichat."

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the message is {size} bytes as base64, and at most {limit} fit into one argument"
        )
        self.size = size
        self.limit = limit


class AuthFailed(PaliadinError):
    """The backend does not know us."""

    code = "auth_failed"
    remedy = "Is AICHAT_TOKEN the backend's?"


class ShimAuthFailed(AuthFailed):
    """The host refused our key, or its own key is not the known one."""

    code = "shim_auth_failed"
    remedy = "Are PALIADIN_SSH_PRIVATE_KEY and PALIADIN_KNOWN_HOSTS the host's?"


class PersonaUnknown(PaliadinError):
    """The backend has no such persona."""

    code = "persona_unknown"
    remedy = "Is AICHAT_PERSONA one that the backend has?"


class Unreachable(PaliadinError):
    """The host cannot be reached; nothing was sent to it.

    Attributes:
        answered: whether something else answered for it, such as a proxy, to which all was sent.
    """

    code = "mriver_unreachable"
    remedy = _IS_IT_UP
    retryable = True
    answered = False


class BootstrapFailed(PaliadinError):
    """The host could not start the agent."""

    code = "bootstrap_failed"
    remedy = "The host could not start the agent: look at its tmux session there."
    retryable = True


class ShimError(PaliadinError):
    """The backend failed, or answered what cannot be read."""

    code = "shim_error"
    remedy = "The backend's own log says more."


class SubmitLost(PaliadinError):
    """The submit is over, but the turn may still be answered: by a push."""

    retryable = True


class BackendTimeout(SubmitLost):
    """The backend gave up waiting for the agent."""

    code = "timeout"
    remedy = _AGENT_IS_BUSY


class ConnectionLost(SubmitLost):
    """The connection went away after something was sent."""

    code = "mriver_unreachable"
    remedy = _IS_IT_UP


class TurnTimeout(PaliadinError):
    """No answer came within the deadline. A later one still reaches the inbox's `on_turn`.

    Attributes:
        turn_id: the request's.
        deadline_s: how long was waited in all, in seconds.
        queued_s: how much of it the turn was queued behind another one of its window, in seconds.
        unsent: why it was never sent; empty where it was, and the agent may be at it.
    """

    code = "timeout"
    remedy = _AGENT_IS_BUSY
    retryable = True

    def __init__(
        self, turn_id: str, deadline_s: float, *, queued_s: float = 0.0, unsent: str = ""
    ) -> None:
        reason = f"no answer to turn {turn_id} within {deadline_s:g} s"
        if unsent:
            reason += f": it was never sent, since {unsent}"
        elif queued_s:
            reason += f", for {queued_s:.1f} s of which it was queued behind another turn"
        super().__init__(reason)
        self.turn_id = turn_id
        self.deadline_s = deadline_s
        self.queued_s = queued_s
        self.unsent = unsent


class StoreFailed(PaliadinError):
    """The store does not answer. Its text names the store, without a password, and the reason."""

    code = "store_failed"
    remedy = "Is what PALIADIN_STORE or store= names there, and not full?"
    retryable = True


class AnswerUnusable(PaliadinError):
    """The agent wrote a file that cannot become an answer (`turn.failed`)."""

    code = "answer_unusable"
    remedy = "`paliadin-sidecar show TURN_ID` on the host says what was wrong with the file."

    def __init__(self, turn_id: str, reason: str) -> None:
        # An untrusted file is a fault of the host, which asking again does not mend.
        super().__init__(f"turn {turn_id}: {reason}", retryable=reason != "untrusted")
        self.turn_id = turn_id
        self.reason = reason


_BY_CODE: dict[str, type[PaliadinError]] = {
    kind.code: kind
    for kind in (
        *(AuthFailed, BackendTimeout, BadRequest, BootstrapFailed),
        *(PersonaUnknown, ShimError, Unreachable),
    )
}
#: For an answer that names no known code, such as a proxy's.
_BY_STATUS: dict[int, type[PaliadinError]] = {
    **dict.fromkeys((400, 413, 422), BadRequest),
    **dict.fromkeys((401, 403), AuthFailed),
    # 502: a proxy lost the backend in the middle of a turn.
    **dict.fromkeys((408, 502, 504), BackendTimeout),
    **dict.fromkeys((429, 503), Unreachable),
}
_BY_EXIT: dict[int, type[PaliadinError]] = {
    2: BadRequest,
    3: BootstrapFailed,  # its working directory is missing
    124: BackendTimeout,
}
_SSH_FAILED = 255


def error_from_http(status: int, code: object, retryable: object, detail: object) -> PaliadinError:
    """The error that an HTTP answer means: by the backend's code, else by the status."""
    kind = _BY_CODE.get(code) if isinstance(code, str) else None
    kind = kind or _BY_STATUS.get(status, ShimError)
    error = kind(
        f"HTTP {status}",
        detail=detail if isinstance(detail, str) else "",
        retryable=retryable if isinstance(retryable, bool) else None,
    )
    if isinstance(error, Unreachable):
        error.answered = True
    return error


def error_from_exit(status: int, stage: Stage, cause: str, stderr: str) -> PaliadinError:
    """The error that an exit status of ssh, its own or the shim's, means.

    Args:
        status: a negative one is a signal that ended our ssh; the shim may go on.
        stage: how far ssh came, by its own log.
        cause: what that log says last.
        stderr: what the host wrote, banner or shim, or its end.
    """
    if status == _SSH_FAILED or status < 0:
        if stage is Stage.REFUSED:
            kind: type[PaliadinError] = ShimAuthFailed
        else:
            unsent = stage in (Stage.CONNECTING, Stage.DROPPED)
            kind = Unreachable if unsent else ConnectionLost
        detail = cause if issubclass(kind, Unreachable | ShimAuthFailed) else f"{stderr}\n{cause}"
    else:
        kind = _BY_EXIT.get(status, ShimError)
        detail = stderr if stderr.strip() else cause
    return kind(f"ssh ended with {status}", detail=last_lines(detail))
