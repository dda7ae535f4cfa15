"""Asks paliad's assistant in a user's name, and returns the answer.

    async with paliadin_client.connect(inbox=inbox) as paliadin:
        result = await paliadin.run_turn(TurnRequest(user=User(user_id), message="…"))

`connection` opens the backend that the environment selects, `turn` runs a turn, `inbox` receives
pushes, and `aichat` and `legacy` are the two ways to the host behind `backend`'s protocol.
"""

from __future__ import annotations

from paliadin_client.backend import Exchange, TurnRequest, User
from paliadin_client.connection import connect
from paliadin_client.errors import (
    AnswerUnusable,
    AuthFailed,
    BackendTimeout,
    BadRequest,
    BootstrapFailed,
    ConfigError,
    ConnectionLost,
    MessageTooLong,
    NotConfigured,
    PaliadinError,
    PersonaUnknown,
    ShimAuthFailed,
    ShimError,
    StoreFailed,
    SubmitLost,
    TurnTimeout,
    Unreachable,
)
from paliadin_client.inbox import Inbox
from paliadin_client.result import Timings, TurnResult
from paliadin_client.turn import Paliadin
from paliadin_client.waiting import TurnCallback
from paliadin_contract.callback import TurnCompleted, TurnFailed
from paliadin_contract.trailer import Trailer, split

__all__ = [
    "AnswerUnusable", "AuthFailed", "BackendTimeout", "BadRequest", "BootstrapFailed",
    "ConfigError", "ConnectionLost", "Exchange", "Inbox", "MessageTooLong", "NotConfigured",
    "Paliadin", "PaliadinError", "PersonaUnknown", "ShimAuthFailed", "ShimError", "StoreFailed",
    "SubmitLost", "Timings", "Trailer", "TurnCallback", "TurnCompleted", "TurnFailed",
    "TurnRequest", "TurnResult", "TurnTimeout", "Unreachable", "User", "connect", "split",
]  # fmt: skip
