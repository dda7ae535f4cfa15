"""Token files beside the answers: who waits for a turn. They are hints, and decide nothing."""

from __future__ import annotations

import base64
import binascii
from contextlib import closing

import msgspec

from paliadin_contract.ids import is_turn_id
from paliadin_sidecar.errors import Changed, Unreadable
from paliadin_sidecar.intake.completion import IntakeRules
from paliadin_sidecar.intake.events import Hint
from paliadin_sidecar.intake.roots import Root
from paliadin_sidecar.intake.turnfile import TurnFile, fingerprint_at
from paliadin_sidecar.outbox.records import TurnKey

_MAX_TOKEN_BYTES = 8 * 1024
#: So many tokens are remembered. Without its token a turn is taken too, and reads it when it is.
_MAX_TOKENS = 50_000


class Tokens:
    """The tokens of a root, each of which is read once.

    Args:
        root: where they are.
        rules: whose they must be.

    Attributes:
        seen: by name: "" for one that was read, else what it looked like.
    """

    def __init__(self, root: Root, rules: IntakeRules) -> None:
        self._root = root
        self._rules = rules
        self.seen: dict[str, str] = {}

    @property
    def is_full(self) -> bool:
        """Whether no further one can be remembered."""
        return len(self.seen) >= _MAX_TOKENS

    def read(self, key: TurnKey) -> Hint | None:
        """What the token of this turn says; None where it was read before, or says nothing."""
        name = f"{key.turn_id}.jwt"
        judged = self.seen.get(name)
        if judged == "" or self._root.fd is None:
            return None
        try:
            seen = fingerprint_at(self._root.fd, name)
            if seen is None or str(seen) == judged:
                return None
            # What cannot be one is not opened: an empty one is cheap to make by the thousand.
            defect = self._rules.defect_of(seen)
            claims = None if defect else read_claims(self._root.fd, name, self._rules.owner)
        except (FileNotFoundError, Unreadable, Changed):
            return None
        if judged is not None or not self.is_full:
            # A young one that said nothing is read again, but not by each scan.
            as_seen = str(seen) if seen.is_conclusive(self._rules.wall()) else "young"
            self.seen[name] = as_seen if claims is None else ""
        return None if claims is None else Hint(key, *claims)


def read_claims(directory: int, name: str, owner: int) -> tuple[str, str] | None:
    """`jti` and `sub` of the token in this file, or None where it has none as it is.

    Nothing is decided by them, so the token's signature is not checked. The token itself leaves
    this function in no way.

    Raises:
        FileNotFoundError: there is no such name (any more).
        Unreadable: the system would not let us see it.
        Changed: somebody writes it.
    """
    with closing(TurnFile(directory, name, owner)) as file:
        snapshot = file.inspect()
        seen = snapshot.fingerprint
        if not snapshot.trusted or seen.size > _MAX_TOKEN_BYTES or seen.names > 1:
            return None
        return _claims(file.read(snapshot))


class _Claims(msgspec.Struct):
    jti: str
    sub: str


def _claims(token: bytes) -> tuple[str, str] | None:
    parts = token.strip().split(b".")
    if len(parts) != 3:  # noqa: PLR2004 - header, claims, signature (RFC 7515, section 7.1)
        return None
    try:
        raw = base64.b64decode(parts[1] + b"=" * (-len(parts[1]) % 4), b"-_", validate=True)
        claims = msgspec.json.decode(raw, type=_Claims)
    except (binascii.Error, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None
    if not (is_turn_id(claims.jti) and is_turn_id(claims.sub)):
        return None
    return claims.jti, claims.sub
