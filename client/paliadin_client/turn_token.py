"""Signs the token that lets the agent's queries run as the user who asked."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import jwt

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["LIFETIME_S", "MIN_SECRET_BYTES", "sign_turn_token"]

LIFETIME_S = 120
#: A key of HS256 has at least as many bytes as its hash (RFC 7518, 3.2).
MIN_SECRET_BYTES = 32


def sign_turn_token(user_id: str, turn_id: str, secret: str, now: datetime) -> str:
    """A token for one turn, of the shape that Supabase's row-level security reads.

    Args:
        user_id: becomes `sub`.
        turn_id: becomes `jti`: the id under which the caller waits, so that a late answer finds
            it also where the backend chose an id of its own.
        secret: the project's `SUPABASE_JWT_SECRET`.
        now: moment of issue, with a time zone.
    """
    issued = int(now.timestamp())
    claims = {
        "sub": user_id,
        "role": "authenticated",
        "aud": "authenticated",
        "iss": "paliad/paliadin",
        "iat": issued,
        "exp": issued + LIFETIME_S,
        "jti": turn_id,
    }
    with warnings.catch_warnings():
        # `connect` says it once, in the log, where somebody can do something about it.
        warnings.simplefilter("ignore", jwt.InsecureKeyLengthWarning)
        return jwt.encode(claims, secret, algorithm="HS256")
