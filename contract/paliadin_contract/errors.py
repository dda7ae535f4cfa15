"""Every error that the contract raises.

ContractError
├── BadId               a name that must not reach a path, a header or a query
├── BadSecret           a signing secret that cannot be one
├── BadSignature        headers and body that do not prove each other
└── MalformedCallback   a proven body that is no callback
"""

from __future__ import annotations


class ContractError(ValueError):
    """Root of everything the contract raises. Its text never holds a secret or an answer."""


class BadId(ContractError):
    """A text that is no turn id, or no label."""


class BadSecret(ContractError):
    """A text that is no `whsec_<base64>` of at least 24 bytes."""


class BadSignature(ContractError):
    """Missing, malformed, stale or wrong: in no case may the body be looked at."""


class MalformedCallback(ContractError):
    """A body that is not one of the callback's JSON shapes."""
