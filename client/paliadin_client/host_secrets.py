"""Binds a callback's secret to the host that may sign with it."""

from __future__ import annotations

from collections.abc import Iterable

from paliadin_contract.callback import REHEARSAL_HOST
from paliadin_contract.errors import BadSignature
from paliadin_contract.signature import Keys, Verification

_BINDS = "=whsec_"


class HostSecrets(Keys):
    """Secrets that are each good for every host, or for the one that they are bound to.

    Args:
        secrets: each `whsec_<base64>`, or `<host>=whsec_<base64>`. One that is bound to no host is
            good for those to which none is bound. Several of one host are good at once, while they
            are being rotated.

    Raises:
        BadSecret: none given, or some are malformed. The text says which by their places.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        split = [_split(secret) for secret in secrets]
        super().__init__(secret for _, secret in split)
        self._hosts = [host for host, _ in split]

    def check_host(self, verification: Verification, host: str) -> None:
        """Return if one of the secrets that proved the body is good for `host`, whose it is.

        Raises:
            BadSignature: another host's secret signed it.
        """
        host = host.removeprefix(REHEARSAL_HOST)
        good_for = host if host in self._hosts else None
        if good_for not in {self._hosts[place] for place in verification.matched}:
            raise BadSignature(f"the host {host!r:.40} signs with another secret than this one")


def _split(secret: str) -> tuple[str | None, str]:
    host, binds, rest = secret.rpartition(_BINDS)
    return (host, binds[1:] + rest) if host else (None, secret)
